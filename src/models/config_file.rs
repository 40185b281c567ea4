//! The file that tells a model's architecture: `config.json`, or `model_index.json` for a pipeline of diffusers. A model
//! that lacks the one that a capability reads is mostly of another kind, and is refused by what it is.

use std::path::{Path, PathBuf};

use model_actors::LoadContext;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::families::{self, Family};
use crate::gguf::GgufFile;
use crate::source::Files;

/// The files of every kind of model.
const NAMES: [&str; 2] = ["config.json", "model_index.json"];

/// The path of the file, of which the last part of `name` is one of [`NAMES`], of a model that is not in GGUF.
///
/// # Errors
/// [`Error::UnsupportedArchitecture`] for a model of another kind, which lists the `list`; [`Error::PickleOnly`];
/// [`Error::MissingFile`].
pub(super) fn find<A>(
    files: &Files,
    name: &str,
    list: &[Family<A>],
    capability: &'static str,
    context: &LoadContext,
) -> Result<PathBuf> {
    if files.is_gguf() {
        return Err(families::unsupported(list, capability, name_in_gguf(files.root())));
    }
    if let Some(path) = files.optional(name, context)? {
        return Ok(path);
    }
    match (other_kind(files, name, context)?, files.pickle("")) {
        (Some(found), _) => Err(families::unsupported(list, capability, found)),
        (None, Some(file)) => Err(Error::PickleOnly { model: files.name(), file }),
        (None, None) => Err(files.missing(name, context)),
    }
}

/// What a model without the file is called by what it has in its place, if it has anything.
fn other_kind(files: &Files, lacking: &str, context: &LoadContext) -> Result<Option<String>> {
    for name in NAMES.into_iter().filter(|name| !lacking.ends_with(name)) {
        if let Some(config) = files.optional_json::<Value>(name, context)? {
            return Ok(Some(families::name_in(&config)));
        }
    }
    match files.gguf(context) {
        Ok(file) => Ok(file.map(|path| name_in_gguf(Some(&path)))),
        Err(Error::SeveralGgufFiles { .. }) => Ok(Some(name_in_gguf(None))),
        Err(error) => Err(error),
    }
}

/// What the metadata of a GGUF file call the architecture. One that would have to be fetched is not looked into.
fn name_in_gguf(path: Option<&Path>) -> String {
    let file = path.and_then(|path| GgufFile::open(path).ok());
    match file.as_ref().and_then(|file| file.header().text("general.architecture")) {
        Some(name) => format!("{name} in GGUF"),
        None => "(a GGUF file)".to_owned(),
    }
}
