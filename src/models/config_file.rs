//! The file that names a model's architecture, `config.json`, or `model_index.json` for a pipeline of
//! diffusers: how it is found, how its settings get their defaults, and the refusals that every family
//! shares. A model that lacks the file that a capability reads is mostly of another kind, and is refused by
//! what it is. The settings themselves are left to the families.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use model_actors::LoadContext;
use serde_json::{Map, Value};

use crate::architecture::{self, Family};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::Activation;
use crate::source::Files;

/// Largest length, count or width that a configuration may name; products of three of them fit 64 bits.
pub(crate) const MAX_SIDE: usize = 1 << 20;
/// Maximum number of layers that a configuration may ask for.
pub(crate) const MAX_LAYERS: usize = 1024;

/// The files of every kind of model.
const NAMES: [&str; 2] = ["config.json", "model_index.json"];

/// The path of the file, of which the last part of `name` is one of [`NAMES`], of a model that is not in
/// GGUF.
///
/// # Errors
/// [`Error::UnsupportedArchitecture`] for a model of another kind, which lists the `list`;
/// [`Error::PickleOnly`]; [`Error::MissingFile`].
pub(super) fn find<A>(
    files: &Files,
    name: &str,
    list: &[Family<A>],
    capability: &'static str,
    context: &LoadContext,
) -> Result<PathBuf> {
    if files.is_gguf() {
        return Err(architecture::unsupported(list, capability, name_in_gguf(files.root())));
    }
    if let Some(path) = files.optional(name, context)? {
        return Ok(path);
    }
    match (other_kind(files, name, context)?, files.pickle("")) {
        (Some(found), _) => Err(architecture::unsupported(list, capability, found)),
        (None, Some(file)) => Err(Error::PickleOnly { model: files.name(), file }),
        (None, None) => Err(files.missing(name, context)),
    }
}

/// The architecture of a model without the file by what it has in its place, if it has anything.
fn other_kind(files: &Files, lacking: &str, context: &LoadContext) -> Result<Option<String>> {
    for name in NAMES.into_iter().filter(|name| !lacking.ends_with(name)) {
        if let Some(config) = files.optional_json::<Value>(name, context)? {
            return Ok(Some(architecture::name_in(&config)));
        }
    }
    match files.gguf(context) {
        Ok(file) => Ok(file.map(|path| name_in_gguf(Some(&path)))),
        Err(Error::SeveralGgufFiles { .. }) => Ok(Some(name_in_gguf(None))),
        Err(error) => Err(error),
    }
}

/// The architecture in the metadata of a GGUF file. One that would have to be fetched is not looked into.
fn name_in_gguf(path: Option<&Path>) -> String {
    let file = path.and_then(|path| GgufFile::open(path).ok());
    match file.as_ref().and_then(|file| file.header().text("general.architecture")) {
        Some(name) => format!("{name} in GGUF"),
        None => "(a GGUF file)".to_owned(),
    }
}

/// The settings of `config`, and those of `defaults` that it leaves out. A setting of `null` is a setting.
pub(crate) fn with_defaults(config: &Value, defaults: Value) -> Value {
    let mut config = match config {
        Value::Null => Value::Object(Map::new()),
        config => config.clone(),
    };
    if let (Some(settings), Value::Object(defaults)) = (config.as_object_mut(), defaults) {
        for (name, value) in defaults {
            settings.entry(name).or_insert(value);
        }
    }
    config
}

/// The settings that are not `null`, for files in which a `null` stands for the default.
pub(crate) fn without_nulls(config: &Value) -> Value {
    match config {
        Value::Object(settings) => {
            let given = settings.iter().filter(|(_, value)| !value.is_null());
            Value::Object(given.map(|(name, value)| (name.clone(), value.clone())).collect())
        }
        config => config.clone(),
    }
}

/// The activation that a configuration names under `setting`.
///
/// # Errors
/// [`Error::UnsupportedSetting`].
pub(crate) fn activation(file: &Path, setting: &'static str, name: &str) -> Result<Activation> {
    Activation::from_name(name).ok_or_else(|| unsupported(file, setting, name, Activation::NAMES))
}

/// The error for a setting that is valid elsewhere and not supported here.
pub(crate) fn unsupported(
    file: &Path,
    what: impl Into<Cow<'static, str>>,
    found: &str,
    supported: impl Into<Cow<'static, str>>,
) -> Error {
    Error::UnsupportedSetting {
        file: file.to_owned(),
        what: what.into(),
        found: found.to_owned(),
        supported: supported.into(),
    }
}

/// The error for a configuration that no model can have.
pub(crate) fn invalid(file: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidConfig { file: file.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_null_is_a_setting_unless_it_stands_for_the_default() {
        let (config, defaults) = (json!({"a": 1, "b": null}), json!({"a": 2, "b": 3, "c": 4}));
        assert_eq!(with_defaults(&config, defaults.clone()), json!({"a": 1, "b": null, "c": 4}));
        let given = without_nulls(&config);
        assert_eq!(with_defaults(&given, defaults.clone()), json!({"a": 1, "b": 3, "c": 4}));
        assert_eq!(with_defaults(&Value::Null, defaults.clone()), defaults);
    }
}
