//! The way in which a model's files choose tokens, for requests that ask for it: as `generate` of transformers makes it of
//! `generation_config.json`, its own defaults for what the file leaves out included. A file that is not asked for is not
//! judged.

use model_actors::Sampling;
use serde_json::Value;

/// Number of tokens of top-k where a file says nothing.
const TOP_K: usize = 50;

/// Choice of tokens by a model's files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelSampling {
    /// 0 without `do_sample`.
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    /// A setting that chooses tokens too, where the file samples by one that is not read.
    pub(super) not_read: Option<&'static str>,
}

/// Settings that choose tokens when a text is sampled and that are not read; each with the number that has no effect.
const NOT_READ: [(&str, Option<f64>); 4] =
    [("typical_p", Some(1.0)), ("epsilon_cutoff", Some(0.0)), ("eta_cutoff", Some(0.0)), ("top_h", None)];

impl Default for ModelSampling {
    fn default() -> Self {
        Self::read(|_| None)
    }
}

impl ModelSampling {
    /// Reads the settings, of which `first` gives those that are there and not null.
    pub(crate) fn read(first: impl Fn(&str) -> Option<Value>) -> Self {
        // What is no number is out of every range.
        #[allow(clippy::cast_possible_truncation, reason = "the settings are of 32 bits")]
        let number =
            |name: &str| first(name).map(|value| value.as_f64().map_or(f32::NAN, |value| value as f32));
        let samples = first("do_sample").is_some_and(|value| value.as_bool() == Some(true));
        let has_effect = |(name, neutral): &(&str, Option<f64>)| {
            first(name).is_some_and(|value| value.as_f64().is_none() || value.as_f64() != *neutral)
        };
        let not_read = NOT_READ.iter().find(|setting| samples && has_effect(setting)).map(|(name, _)| *name);
        let top_k = match first("top_k") {
            None => Some(TOP_K),
            // 0 is none, and what is no number keeps the most probable token alone.
            Some(value) => Some(value.as_u64().map_or(1, |k| usize::try_from(k).unwrap_or(usize::MAX))),
        };
        Self {
            temperature: if samples { number("temperature").unwrap_or(1.0) } else { 0.0 },
            top_k: top_k.filter(|k| *k > 0),
            top_p: number("top_p").filter(|p| *p != 1.0),
            min_p: number("min_p"),
            not_read,
        }
    }

    /// A request's sampling with these settings for what it leaves out.
    pub(crate) fn complete(&self, sampling: Sampling) -> Sampling {
        let (temperature, top_k) =
            (sampling.temperature.unwrap_or(self.temperature), sampling.top_k.or(self.top_k));
        let (top_p, min_p) = (sampling.top_p.or(self.top_p), sampling.min_p.or(self.min_p));
        sampling.with_temperature(temperature).with_top_k(top_k).with_top_p(top_p).with_min_p(min_p)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct File {
        defaults: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        file: Value,
        greedy: bool,
        settings: Settings,
    }

    #[derive(Deserialize)]
    struct Settings {
        temperature: Option<f32>,
        top_k: Option<usize>,
        top_p: Option<f32>,
        min_p: Option<f32>,
    }

    fn read(file: &Value) -> ModelSampling {
        ModelSampling::read(|name| file.get(name).filter(|value| !value.is_null()).cloned())
    }

    #[test]
    fn a_file_chooses_tokens_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/sampling.json");
        let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(file.defaults.len() > 4);
        for Case { file, greedy, settings } in file.defaults {
            let found = read(&file).complete(Sampling::of_model());
            let temperature = if greedy { 0.0 } else { settings.temperature.unwrap_or(1.0) };
            assert_eq!(found.temperature, Some(temperature), "{file}");
            if !greedy {
                let Settings { top_k, top_p, min_p, .. } = settings;
                assert_eq!((found.top_k, found.top_p, found.min_p), (top_k, top_p, min_p), "{file}");
            }
            assert!(found.check().is_ok());
        }
    }

    #[test]
    fn a_request_goes_before_the_file() {
        let file =
            read(&json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1}));
        let own = Sampling::of_model().with_temperature(0.0).with_top_k(3).with_top_p(1.0).with_min_p(0.0);
        assert_eq!(file.complete(own.clone()), own);
        let part = file.complete(Sampling::of_model().with_top_k(3).with_seed(7));
        assert_eq!(
            (part.temperature, part.top_k, part.top_p, part.seed),
            (Some(0.6), Some(3), Some(0.9), Some(7))
        );
    }

    #[test]
    fn what_samples_and_is_not_read_is_known_by_name() {
        let found = |file: Value| read(&file).not_read;
        for name in ["typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"] {
            assert_eq!(found(json!({"do_sample": true, name: 0.3})), Some(name));
            assert_eq!(found(json!({"do_sample": true, name: "a"})), Some(name));
            assert_eq!(found(json!({name: 0.3})), None, "{name}");
        }
        let off = json!({"do_sample": true, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "top_h": null});
        assert_eq!(found(off), None);
    }

    #[test]
    fn settings_that_are_no_numbers_are_out_of_range() {
        for bad in
            [json!({"do_sample": true, "temperature": "warm"}), json!({"top_p": 1.5}), json!({"min_p": -1})]
        {
            assert!(read(&bad).complete(Sampling::of_model()).check().is_err(), "{bad}");
        }
    }
}
