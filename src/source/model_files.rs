//! The files of an opened source as an application's own loader sees them. Opening and fetching is left to the parent
//! module.

use std::path::PathBuf;

use model_actors::LoadContext;

use super::Files;
use crate::error::Result;

/// Files of an opened source, for a loader of an application's own. A file of a repository is fetched when it is first
/// asked for, with progress and stop through the load's [`LoadContext`], and lies in the cache afterwards.
///
/// ```
/// use candle_actors::model_actors::{LoadContext, ModelId};
/// use candle_actors::{EngineResources, LoadOptions, Source};
/// # fn main() -> candle_actors::Result<()> {
/// let resources = EngineResources::new(&LoadOptions::default())?;
/// let context = LoadContext::detached(&ModelId::from("small"));
/// let files = resources.open(&Source::directory("models/english-embedding-small"), &context)?;
/// assert!(files.get("config.json")?.is_file());
/// assert_eq!(files.find("none.json")?, None);
/// # Ok(())
/// # }
/// ```
pub struct ModelFiles {
    files: Files,
    context: LoadContext,
}

impl ModelFiles {
    pub(crate) fn new(files: Files, context: LoadContext) -> Self {
        Self { files, context }
    }

    /// Path of a file by its name in the model, such as `tokenizer.json` or `1_Pooling/config.json`.
    ///
    /// # Errors
    /// [`Error::MissingFile`](crate::Error::MissingFile) if the model has none; [`Error::Stopped`](crate::Error::Stopped) once nobody waits for the load; the hub's errors.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        self.files.required(file, &self.context)
    }

    /// Path of a file, or nothing if the model has none.
    ///
    /// # Errors
    /// As [`Self::get`], but for a file that is not there.
    pub fn find(&self, file: &str) -> Result<Option<PathBuf>> {
        self.files.optional(file, &self.context)
    }

    /// The GGUF file that is the model: the one that the source names, or the only one of a directory without safetensors.
    ///
    /// # Errors
    /// As [`Self::get`]; [`Error::SeveralGgufFiles`](crate::Error::SeveralGgufFiles) if the directory has more than one.
    pub fn gguf(&self) -> Result<Option<PathBuf>> {
        self.files.gguf(&self.context)
    }
}
