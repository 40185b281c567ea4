//! The small files that a vision model's family reads beside `config.json`, or what two GGUF files have in their place.

use std::path::PathBuf;

use model_actors::LoadContext;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::generation::{ChatTemplate, SpecialTokens, read_chat_template};
use crate::models::generation_config::GenerationConfig;
use crate::preprocessing;
use crate::source::Files;

/// The small files of a model.
pub(super) enum SmallFiles<'a> {
    Folder(&'a Files),
    Gguf(&'a Files, &'a InGguf),
}

/// The settings that stand in a model's GGUF files.
pub(super) struct InGguf {
    /// The one with the vision tower.
    pub(super) tower: PathBuf,
    /// Its settings of preprocessing as those of `preprocessor_config.json`.
    pub(super) preprocessing: Value,
    pub(super) template: Option<ChatTemplate>,
    pub(super) special: SpecialTokens,
}

impl SmallFiles<'_> {
    /// The file in which the model's settings are.
    pub(super) fn config(&self, context: &LoadContext) -> Result<PathBuf> {
        match self {
            Self::Folder(files) => files.required("config.json", context),
            Self::Gguf(_, own) => Ok(own.tower.clone()),
        }
    }

    /// A file that only folders have.
    pub(super) fn optional(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        match self {
            Self::Folder(files) => files.optional(file, context),
            Self::Gguf(..) => Ok(None),
        }
    }

    /// The settings of the image processor, and the file that they are from.
    pub(super) fn processor_config(&self, context: &LoadContext) -> Result<(PathBuf, Value)> {
        match self {
            Self::Folder(files) => preprocessing::processor_config(files, context),
            Self::Gguf(_, own) => Ok((own.tower.clone(), own.preprocessing.clone())),
        }
    }

    pub(super) fn chat_template(
        &self,
        context: &LoadContext,
    ) -> Result<(Option<ChatTemplate>, SpecialTokens)> {
        match self {
            Self::Folder(files) => read_chat_template(files, context),
            Self::Gguf(_, own) => Ok((own.template.clone(), own.special.clone())),
        }
    }

    /// Settings of the texts that the model writes. GGUF files have none.
    pub(super) fn generation(&self, context: &LoadContext) -> Result<GenerationConfig> {
        match self {
            Self::Folder(files) => GenerationConfig::read(files, context),
            Self::Gguf(..) => Ok(GenerationConfig::default()),
        }
    }

    /// The error for a needed file that is not there.
    pub(super) fn missing(&self, file: &str, context: &LoadContext) -> Error {
        let (Self::Folder(files) | Self::Gguf(files, _)) = self;
        files.missing(file, context)
    }
}
