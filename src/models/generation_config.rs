//! What a model's files say of all texts that it writes, however its tokens are chosen: the tokens that end a text, and the
//! penalty for tokens that occurred. `generation_config.json` goes before the top level of `config.json`, and that before
//! its `text_config`, as in transformers.

use std::path::Path;

use model_actors::{LoadContext, Sampling};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::source::Files;

/// Settings of the texts that a model writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GenerationConfig {
    /// Tokens that end a text, where the files name any.
    ends: Option<Vec<u32>>,
    /// Of a request that does not say it.
    repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for ends that are no numbers of tokens, and for a penalty that is not above 0.
    pub(crate) fn read(files: &Files, context: &LoadContext) -> Result<Self> {
        let mut levels = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let Some(path) = files.optional(name, context)? else { continue };
            let config: Value = crate::source::read_json(&path)?;
            let inner =
                ["text_config", "decoder", "generator"].iter().find_map(|part| config.get(part).cloned());
            levels.push((path.clone(), config));
            levels.extend(inner.map(|inner| (path, inner)));
        }
        let first = |name: &str| {
            levels.iter().find_map(|(file, level)| {
                level.get(name).filter(|value| !value.is_null()).map(|value| (file, value))
            })
        };
        Ok(Self {
            ends: first("eos_token_id").map(|(file, value)| ends(file, value)).transpose()?,
            repetition_penalty: first("repetition_penalty")
                .map(|(file, value)| penalty(file, value))
                .transpose()?,
        })
    }

    /// The tokens that end a text, in their order: those that the files name, or else those of the model's family, or
    /// else that which the tokenizer calls the end.
    pub(crate) fn ends(&self, family: &[u32], tokenizer: Option<u32>) -> Vec<u32> {
        let mut ends = match &self.ends {
            Some(ends) => ends.clone(),
            None if family.is_empty() => tokenizer.into_iter().collect(),
            None => family.to_vec(),
        };
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// A request's sampling, completed by the model's.
    pub(crate) fn complete(&self, sampling: &Sampling) -> Sampling {
        let penalty = sampling.repetition_penalty.or(self.repetition_penalty);
        sampling.clone().with_repetition_penalty(penalty)
    }
}

/// One token or several; a negative number is none.
fn ends(file: &Path, value: &Value) -> Result<Vec<u32>> {
    let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let end = |token: &Value| match (token.as_i64(), token.as_i64().map(u32::try_from)) {
        (Some(..0), _) => Ok(None),
        (_, Some(Ok(token))) => Ok(Some(token)),
        _ => Err(Error::InvalidConfig {
            file: file.to_owned(),
            reason: format!("eos_token_id is {value}, which is no number of a token and no list of them"),
        }),
    };
    all.iter().filter_map(|token| end(token).transpose()).collect()
}

fn penalty(file: &Path, value: &Value) -> Result<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "the penalty is one of 32 bits")]
    let penalty = value.as_f64().map(|penalty| penalty as f32);
    penalty.filter(|penalty| penalty.is_finite() && *penalty > 0.0).ok_or_else(|| Error::InvalidConfig {
        file: file.to_owned(),
        reason: format!("repetition_penalty is {value}; it is a number above 0"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ends_are_those_of_the_first_file_that_names_any() {
        let path = Path::new("generation_config.json");
        assert_eq!(ends(path, &json!([7, 2, -1])).unwrap(), [7, 2]);
        assert_eq!(ends(path, &json!(-1)).unwrap(), [0u32; 0]);
        for wrong in [json!("</s>"), json!([1, "x"]), json!(1.5), json!(5_000_000_000u64)] {
            assert!(matches!(ends(path, &wrong), Err(Error::InvalidConfig { .. })), "{wrong}");
        }
        let named = GenerationConfig { ends: Some(vec![7, 2, 7]), ..GenerationConfig::default() };
        assert_eq!(named.ends(&[1], Some(9)), [2, 7]);
        let silent = GenerationConfig::default();
        assert_eq!(silent.ends(&[1], Some(9)), [1]);
        assert_eq!(silent.ends(&[], Some(9)), [9]);
    }

    /// As transformers: an own file first, then the top level, then the part about the text.
    #[test]
    fn settings_are_taken_from_the_first_level_that_has_them() {
        let read = |generation: Option<Value>, config: Value| {
            let folder = tempfile::tempdir().unwrap();
            let write = |name: &str, json: &Value| std::fs::write(folder.path().join(name), json.to_string());
            write("config.json", &config).unwrap();
            generation.iter().for_each(|json| write("generation_config.json", json).unwrap());
            let context = LoadContext::detached(&model_actors::ModelId::from("a"));
            GenerationConfig::read(&Files::directory(folder.path()), &context)
        };
        let text = json!({"text_config": {"eos_token_id": [5], "repetition_penalty": 1.25}});
        let both = json!({"eos_token_id": 4, "text_config": {"eos_token_id": 5}});
        let penalty = |found: &GenerationConfig| found.repetition_penalty;
        let found = read(None, text.clone()).unwrap();
        assert_eq!((found.ends(&[1], None), penalty(&found)), (vec![5], Some(1.25)));
        assert_eq!(read(None, both.clone()).unwrap().ends(&[1], None), [4]);
        let own = json!({"eos_token_id": [3, 2], "repetition_penalty": null});
        assert_eq!(read(Some(own.clone()), both).unwrap().ends(&[1], None), [2, 3]);
        assert_eq!(penalty(&read(Some(own), text.clone()).unwrap()), Some(1.25));
        assert_eq!(read(Some(json!({})), text).unwrap().ends(&[1], None), [5]);
        assert_eq!(read(None, json!({"eos_token_id": null})).unwrap().ends(&[1], Some(9)), [1]);
        assert!(read(None, json!({"eos_token_id": "</s>"})).is_err());
    }

    #[test]
    fn a_request_without_a_penalty_has_the_models() {
        let model = GenerationConfig { repetition_penalty: Some(1.5), ..GenerationConfig::default() };
        assert_eq!(model.complete(&Sampling::default()).repetition_penalty, Some(1.5));
        let own = Sampling::default().with_repetition_penalty(1.0);
        assert_eq!(model.complete(&own).repetition_penalty, Some(1.0));
        assert!(penalty(Path::new("config.json"), &json!(0)).is_err());
    }
}
