//! Refusal of settings that nothing reads. What is read is found by trial: a setting is put out of any form that a
//! setting can have, and a family that then still takes the file does not read it. So no family has to list what it reads, and
//! none can forget to. What has no effect although nothing reads it is in the tables of `no_effect`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::no_effect::{harmless_value, is_never_read, matches};
use crate::error::{Error, Result};

/// Maximum number of settings that are tried. Published files have a hundred.
const MAX_TRIALS: usize = 2048;
/// Maximum number of bytes that all trials read together, since each reads the whole file.
const MAX_TRIED_BYTES: usize = 256 << 20;

/// Refuses the first setting of a file which nothing reads and which may have an effect. `takes` tells whether the
/// file would be taken with this content.
///
/// # Errors
/// [`Error::UnreadSetting`] names it; [`Error::InvalidConfig`] for a file with too many settings.
pub(crate) fn refuse(file: &Path, config: &Value, takes: impl Fn(&Value) -> bool) -> Result<()> {
    let Some(settings) = config.as_object() else { return Ok(()) };
    let kind = kind_of(settings, "");
    let bytes = config.to_string().len();
    let most = MAX_TRIALS.min(MAX_TRIED_BYTES / bytes.max(1));
    let mut search = Search { file, config: config.clone(), takes, trials: 0, most, bytes };
    search.table(settings, kind, &mut Vec::new())
}

/// Refuses the first setting of a file that is listed here and is not off, nor has the value that is written as JSON beside
/// its name and with which it has no effect.
///
/// # Errors
/// [`Error::UnreadSetting`] names it.
pub(crate) fn refuse_listed(file: &Path, config: &Value, listed: &[(&str, &str)]) -> Result<()> {
    for (name, neutral) in listed {
        let Some(value) = config.get(name) else { continue };
        if !is_off(value) && !is_same(value, neutral) {
            let (setting, found) = ((*name).to_owned(), shown(value));
            return Err(Error::UnreadSetting { file: file.to_owned(), setting, found });
        }
    }
    Ok(())
}

/// Refuses the first setting of a file that is neither in `read` nor off, nor has a value that is beside its name in
/// `no_effect`, `*` for any.
///
/// # Errors
/// [`Error::UnreadSetting`] names it.
pub(crate) fn refuse_unlisted(
    file: &Path,
    config: &Value,
    read: &[&str],
    no_effect: &[(&str, &str)],
) -> Result<()> {
    let settings = config.as_object().into_iter().flatten();
    for (name, value) in settings.filter(|(name, _)| !read.contains(&name.as_str())) {
        let is_harmless = |(pattern, neutral): &(&str, &str)| {
            matches(pattern, name) && (*neutral == "*" || is_same(value, neutral))
        };
        if !is_off(value) && !no_effect.iter().any(is_harmless) {
            let (setting, found) = (name.clone(), shown(value));
            return Err(Error::UnreadSetting { file: file.to_owned(), setting, found });
        }
    }
    Ok(())
}

/// The model type of a table of settings, which a table without one has of the table around it.
fn kind_of<'a>(settings: &'a Map<String, Value>, outer: &'a str) -> &'a str {
    let named = ["model_type", "_class_name"].into_iter().filter_map(|name| settings.get(name));
    named.filter_map(Value::as_str).next().unwrap_or(outer)
}

struct Search<'a, F> {
    file: &'a Path,
    /// Content in which one setting at a time is changed.
    config: Value,
    takes: F,
    trials: usize,
    /// Most of them.
    most: usize,
    bytes: usize,
}

impl<F: Fn(&Value) -> bool> Search<'_, F> {
    fn table(&mut self, settings: &Map<String, Value>, kind: &str, path: &mut Vec<String>) -> Result<()> {
        for (name, value) in settings {
            let harmless = harmless_value(kind, name);
            // Nothing is refused for the outcome of a trial where any value is harmless, and only a table has parts.
            let is_any = harmless == Some("*") && !value.is_object();
            if is_never_read(name) || is_any || (harmless.is_none() && is_off(value)) {
                continue;
            }
            path.push(name.clone());
            if self.is_read(path)? {
                if let Some(inner) = value.as_object() {
                    self.table(inner, kind_of(inner, kind), path)?;
                }
            } else if !harmless.is_some_and(|harmless| harmless == "*" || is_same(value, harmless)) {
                let (setting, found) = (path.join("."), shown(value));
                return Err(Error::UnreadSetting { file: self.file.to_owned(), setting, found });
            }
            path.pop();
        }
        Ok(())
    }

    /// True if the file is not taken with something impossible in this place.
    fn is_read(&mut self, path: &[String]) -> Result<bool> {
        self.trials += 1;
        if self.trials > self.most {
            let (most, bytes) = (self.most, self.bytes);
            let reason = format!("it has more than {most} settings in {bytes} bytes, too many to try each");
            return Err(Error::InvalidConfig { file: self.file.to_owned(), reason });
        }
        // No setting is a list of lists of lists of nothing.
        let Some(kept) = self.put(path, json!([[[]]])) else { return Ok(true) };
        let taken = (self.takes)(&self.config);
        self.put(path, kept);
        Ok(!taken)
    }

    /// Puts a value into a place, and gives the one that was there.
    fn put(&mut self, path: &[String], value: Value) -> Option<Value> {
        let place = path.iter().try_fold(&mut self.config, |table, name| table.get_mut(name))?;
        Some(std::mem::replace(place, value))
    }
}

fn is_off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || is_empty(value)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(Map::is_empty)
        || value.as_str().is_some_and(str::is_empty)
}

/// True if a value is the one that is written in JSON as `default`. Null stands for it.
fn is_same(value: &Value, default: &str) -> bool {
    let default: Option<Value> = serde_json::from_str(default).ok();
    let numbers = (value.as_f64(), default.as_ref().and_then(Value::as_f64));
    value.is_null()
        || default.as_ref() == Some(value)
        || matches!(numbers, (Some(one), Some(other)) if one == other)
}

/// A value, shortened for an error.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "the fields are only read from files")]
    struct Read {
        width: usize,
        rope: Option<Inner>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "the fields are only read from files")]
    struct Inner {
        theta: f64,
    }

    fn unread(config: Value) -> Option<String> {
        let takes = |config: &Value| Read::deserialize(config).is_ok();
        assert!(takes(&config), "{config}");
        match refuse(Path::new("config.json"), &config, takes) {
            Ok(()) => None,
            Err(Error::UnreadSetting { setting, .. }) => Some(setting),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_setting_that_nothing_reads_is_named() {
        assert_eq!(unread(json!({"width": 8, "rope": {"theta": 1.0}})), None);
        assert_eq!(unread(json!({"width": 8, "num_experts": 4})).as_deref(), Some("num_experts"));
        let inside = json!({"width": 8, "rope": {"theta": 1.0, "factor": 2.0}});
        assert_eq!(unread(inside).as_deref(), Some("rope.factor"));
    }

    #[test]
    fn what_is_off_or_has_no_effect_may_be_there() {
        for rest in [
            json!({"num_experts": null, "use_qk_norm": false, "pruned_heads": {}, "list": [], "text": ""}),
            json!({"transformers_version": "5.0", "attention_dropout": 0.1, "_name_or_path": "a/b", "use_cache": true}),
            json!({"is_causal": true, "is_encoder_decoder": false}),
        ] {
            let mut config = json!({"width": 8});
            config.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            assert_eq!(unread(config), None);
        }
        assert_eq!(unread(json!({"width": 8, "is_causal": false})).as_deref(), Some("is_causal"));
    }

    #[test]
    fn what_is_harmless_at_any_value_is_not_tried() {
        let tried = std::cell::Cell::new(0);
        let takes = |_: &Value| {
            tried.set(tried.get() + 1);
            false
        };
        let config = json!({"model_type": "t5", "n_positions": 512, "dense_act_fn": "relu", "d_model": 8});
        refuse(Path::new("config.json"), &config, takes).unwrap();
        assert_eq!(tried.get(), 1);
        // What is in a table counts on its own, if the table is read.
        let config = json!({"model_type": "clip", "text_config": {"hidden_size": 8}});
        refuse(Path::new("config.json"), &config, takes).unwrap();
        assert_eq!(tried.get(), 3);
    }

    #[test]
    fn a_large_file_has_fewer_trials() {
        let file = |settings: usize| {
            let mut config = json!({"_comment": "x".repeat(4_000_000)});
            let names = (0..settings).map(|index| (format!("setting_{index}"), json!(index)));
            config.as_object_mut().unwrap().extend(names);
            refuse(Path::new("config.json"), &config, |_| false)
        };
        assert_eq!(file(67), Ok(()));
        let refused = file(68);
        assert!(
            matches!(&refused, Err(Error::InvalidConfig { reason, .. }) if reason.contains("67 settings in 400"))
        );
    }

    #[test]
    fn a_file_of_too_many_settings_is_refused() {
        let many: Map<String, Value> =
            (0..=MAX_TRIALS).map(|index| (format!("setting_{index}"), json!(index))).collect();
        let refused = refuse(Path::new("config.json"), &Value::Object(many), |_| false);
        assert!(matches!(refused, Err(Error::InvalidConfig { reason, .. }) if reason.contains("2048")));
    }
}
