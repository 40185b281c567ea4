//! JSON files of a model.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::folder::read;
use crate::error::{Error, Result};
use crate::limits::{self, MAX_CONFIG_BYTES};

/// A configuration file's bytes.
///
/// # Errors
/// [`Error::UnreadableFile`]; [`Error::InvalidConfig`] for one of more than a file of its name may have.
pub(crate) fn read_config(path: &Path) -> Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    read(path, limits::file_bytes(&name).unwrap_or(MAX_CONFIG_BYTES))
}

/// A configuration file, read as JSON.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read_config(path)?)
        .map_err(|error| Error::InvalidConfig { file: path.to_owned(), reason: error.to_string() })
}
