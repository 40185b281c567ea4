//! Settings of a model's files for all texts that it writes: the tokens that end a text, the penalty for tokens that
//! occurred, and, for requests that ask for it, how tokens are chosen. As in transformers, `generation_config.json` decides alone where there is one, also
//! about what it leaves out; only a model without it has these settings in `config.json`, whose top level goes before the
//! part about the text. Unlike transformers, a model whose files name no end stops at that of its family or tokenizer, since
//! it would never stop otherwise.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use model_actors::{LoadContext, Sampling, SamplingDefaults};
use serde_json::Value;

use crate::architecture::refuse_listed;
use crate::error::{Error, Result};
use crate::models::model_sampling::ModelSampling;
use crate::source::{Files, Unread};

/// Settings that change which token is the most likely one, or where a text ends, and that are
/// not read; each with the value that has no effect. Those of sampling are not here: requests say how tokens are chosen.
const NOT_READ: [(&str, &str); 23] = [
    ("suppress_tokens", "null"),
    ("begin_suppress_tokens", "null"),
    ("bad_words_ids", "null"),
    ("sequence_bias", "null"),
    ("force_words_ids", "null"),
    ("constraints", "null"),
    ("forced_bos_token_id", "null"),
    ("forced_eos_token_id", "null"),
    ("forced_decoder_ids", "null"),
    ("exponential_decay_length_penalty", "null"),
    ("watermarking_config", "null"),
    ("stop_strings", "null"),
    ("min_length", "0"),
    ("min_new_tokens", "0"),
    ("no_repeat_ngram_size", "0"),
    ("encoder_no_repeat_ngram_size", "0"),
    ("encoder_repetition_penalty", "1"),
    ("guidance_scale", "1"),
    ("penalty_alpha", "0"),
    ("dola_layers", "null"),
    ("token_healing", "false"),
    ("num_beams", "1"),
    ("num_beam_groups", "1"),
];

/// Settings of the texts that a model writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GenerationConfig {
    /// Tokens that end a text, where the files name any.
    ends: Option<Vec<u32>>,
    /// Of a request that does not say it.
    repetition_penalty: Option<f32>,
    /// Of a request that asks for it.
    sampling: ModelSampling,
}

impl GenerationConfig {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for ends that are no numbers of tokens, and for a penalty that is not above 0;
    /// [`Error::UnreadSetting`] for a setting of these that changes texts and is not read, unless that is allowed.
    pub(crate) fn read(files: &Files, context: &LoadContext) -> Result<Self> {
        let mut levels: Vec<(PathBuf, Value)> = Vec::new();
        if let Some(path) = files.optional("generation_config.json", context)? {
            let own = crate::source::read_json(&path)?;
            if files.unread == Unread::Refused {
                refuse_listed(&path, &own, &NOT_READ)?;
            }
            levels.push((path, own));
        } else if let Some(path) = files.optional("config.json", context)? {
            let config: Value = crate::source::read_json(&path)?;
            let part = |part: &&str| config.get(part).filter(|inner| !inner.is_null()).cloned();
            let inner = ["decoder", "generator", "text_config"].iter().find_map(part);
            levels.push((path.clone(), config));
            levels.extend(inner.map(|inner| (path, inner)));
            if files.unread == Unread::Refused {
                levels.iter().try_for_each(|(path, level)| refuse_listed(path, level, &NOT_READ))?;
            }
        }
        let first = |name: &str| {
            levels.iter().find_map(|(file, level)| {
                level.get(name).filter(|value| !value.is_null()).map(|value| (file, value))
            })
        };
        let mut sampling = ModelSampling::read(|name| first(name).map(|(_, value)| value.clone()));
        if files.unread == Unread::Allowed {
            sampling.not_read = None;
        }
        Ok(Self {
            ends: first("eos_token_id").map(|(file, value)| ends(file, value)).transpose()?,
            repetition_penalty: first("repetition_penalty")
                .map(|(file, value)| penalty(file, value))
                .transpose()?,
            sampling,
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
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the request asks for the model's settings and they are out of range.
    pub(crate) fn complete(&self, sampling: Sampling) -> Result<Sampling> {
        let penalty = sampling.repetition_penalty.or(self.repetition_penalty);
        let sampling = sampling.with_repetition_penalty(penalty);
        if sampling.defaults != SamplingDefaults::Model {
            return Ok(sampling);
        }
        let completed = self.sampling.complete(sampling);
        let invalid = |cause: &dyn Display| {
            Error::InvalidInput(format!("the model's generation_config.json cannot be used: {cause}"))
        };
        completed.check().map_err(|cause| invalid(&cause))?;
        match self.sampling.not_read.filter(|_| completed.temperature != Some(0.0)) {
            Some(setting) => Err(invalid(&format!("it chooses tokens by {setting}, which is not supported"))),
            None => Ok(completed),
        }
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

    /// As transformers: an own file alone, or else the top level, and then the part about the text.
    #[test]
    fn settings_are_taken_from_the_file_that_decides() {
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
        assert_eq!(penalty(&read(Some(own), text.clone()).unwrap()), None);
        for silent in [json!({}), json!({"eos_token_id": null})] {
            let found = read(Some(silent), text.clone()).unwrap();
            assert_eq!((found.ends(&[1], Some(9)), found.ends(&[], Some(9))), (vec![1], vec![9]));
            assert_eq!(penalty(&found), None);
        }
        let parts = json!({"text_config": {"eos_token_id": 5}, "decoder": {"eos_token_id": 6}});
        assert_eq!(read(None, parts).unwrap().ends(&[1], None), [6]);
        assert_eq!(read(None, json!({"eos_token_id": null})).unwrap().ends(&[1], Some(9)), [1]);
        assert!(read(None, json!({"eos_token_id": "</s>"})).is_err());
    }

    #[test]
    fn a_setting_that_changes_texts_and_is_not_read_is_named() {
        let read = |json: &Value, unread: Unread| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("generation_config.json"), json.to_string()).unwrap();
            let context = LoadContext::detached(&model_actors::ModelId::from("a"));
            let mut files = Files::directory(folder.path());
            files.unread = unread;
            GenerationConfig::read(&files, &context).map(drop)
        };
        // As published models have them.
        let neutral = json!({
            "min_length": 0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "num_beams": 1,
            "bad_words_ids": null, "suppress_tokens": [], "forced_eos_token_id": null, "max_length": 4096,
            "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "transformers_version": "5.24.0"
        });
        read(&neutral, Unread::Refused).unwrap();
        for (name, value) in [
            ("suppress_tokens", json!([1, 2])),
            ("begin_suppress_tokens", json!([220])),
            ("bad_words_ids", json!([[1]])),
            ("forced_eos_token_id", json!(2)),
            ("stop_strings", json!("</s>")),
            ("min_length", json!(5)),
            ("min_new_tokens", json!(1)),
            ("no_repeat_ngram_size", json!(3)),
            ("encoder_repetition_penalty", json!(1.2)),
            ("num_beams", json!(4)),
        ] {
            let mut changed = neutral.clone();
            changed[name] = value;
            let error = read(&changed, Unread::Refused).unwrap_err();
            assert!(matches!(&error, Error::UnreadSetting { setting, .. } if setting == name), "{error}");
            read(&changed, Unread::Allowed).unwrap();
        }
    }

    #[test]
    fn a_request_without_a_penalty_has_the_models() {
        let model = GenerationConfig { repetition_penalty: Some(1.5), ..GenerationConfig::default() };
        assert_eq!(model.complete(Sampling::default()).unwrap().repetition_penalty, Some(1.5));
        let own = Sampling::default().with_repetition_penalty(1.0);
        assert_eq!(model.complete(own).unwrap().repetition_penalty, Some(1.0));
        assert!(penalty(Path::new("config.json"), &json!(0)).is_err());
    }
}
