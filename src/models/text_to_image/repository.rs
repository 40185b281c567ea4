//! A repository in the layout of diffusers: `model_index.json` names the pipeline and its components, each component
//! has a folder with its configuration and its weights.

use std::path::{Path, PathBuf};

use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::families::parse;
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

/// The small files of a repository.
pub(super) struct Repository<'a> {
    pub(super) files: &'a Files,
    pub(super) context: &'a LoadContext,
    /// Where `model_index.json` is.
    pub(super) path: PathBuf,
    /// What is in it.
    pub(super) index: serde_json::Value,
}

#[derive(Deserialize)]
struct ClassName {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
}

impl<'a> Repository<'a> {
    pub(super) fn open(files: &'a Files, context: &'a LoadContext) -> Result<Self> {
        let path = files.required("model_index.json", context)?;
        let index = read_json(&path)?;
        Ok(Self { files, context, path, index })
    }

    /// The class of the pipeline.
    pub(super) fn class(&self) -> Result<String> {
        let ClassName { class_name } = parse(&self.path, &self.index)?;
        class_name.ok_or_else(|| Error::InvalidConfig {
            file: self.path.clone(),
            reason: "it has no _class_name".to_owned(),
        })
    }

    /// Whether the pipeline has this component; one that was left out is there as two nulls.
    pub(super) fn has(&self, component: &str) -> bool {
        self.index.get(component).and_then(|entry| entry.get(1)).is_some_and(serde_json::Value::is_string)
    }

    /// A component's configuration, `<folder>/<file>`. It is for one of these classes, if there are any and it names
    /// one, and what it says of the settings in `only` is the one supported value, in JSON, or nothing.
    pub(super) fn config<T: DeserializeOwned>(
        &self,
        file: &str,
        classes: &'static [&'static str],
        only: &'static [(&'static str, &'static str)],
    ) -> Result<(PathBuf, T)> {
        let path = self.files.required(file, self.context)?;
        let config: serde_json::Value = read_json(&path)?;
        let ClassName { class_name } = parse(&path, &config)?;
        match class_name {
            Some(found) if !classes.is_empty() && !classes.contains(&found.as_str()) => {
                Err(Error::UnsupportedSetting {
                    file: path,
                    what: "_class_name",
                    found,
                    supported: classes.first().copied().unwrap_or_default(),
                })
            }
            _ => {
                check_only(&path, &config, only)?;
                let config = parse(&path, &config)?;
                Ok((path, config))
            }
        }
    }
}

fn check_only(
    path: &Path,
    config: &serde_json::Value,
    only: &'static [(&'static str, &'static str)],
) -> Result<()> {
    for (what, supported) in only {
        let found = config.get(what).filter(|found| !found.is_null()).map(ToString::to_string);
        let as_number = |text: &str| text.parse::<f64>().ok();
        match found {
            Some(found)
                if found != *supported
                    && (as_number(&found).is_none() || as_number(&found) != as_number(supported)) =>
            {
                return Err(Error::UnsupportedSetting { file: path.to_owned(), what, found, supported });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is wrong with a configuration file.
pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidConfig { file: path.to_owned(), reason: reason.into() }
}

/// A component with weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Its folder, with a slash at the end.
    pub(super) folder: &'static str,
    /// How its weight files are called, without an ending: [`Part::DIFFUSERS`] or [`Part::TRANSFORMERS`].
    pub(super) file: &'static str,
    /// Whether a tensor of it will be loaded.
    pub(super) uses: fn(&str) -> bool,
}

impl Part {
    pub(super) const DIFFUSERS: &'static str = "diffusion_pytorch_model";
    pub(super) const TRANSFORMERS: &'static str = "model";
}

/// The headers of all parts' weights, in the order of [`super::Architecture::parts`].
pub(super) struct PartWeights(Vec<(Part, WeightFiles)>);

impl PartWeights {
    pub(super) fn open(parts: Vec<Part>, files: &Files, context: &LoadContext) -> Result<Self> {
        let open = |part: Part| Ok((part, WeightFiles::open_named(files, part.folder, part.file, context)?));
        Ok(Self(parts.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// The weights in this folder.
    pub(super) fn of(&self, folder: &str) -> Result<&WeightFiles> {
        let found = self.0.iter().find(|(part, _)| part.folder == folder);
        found
            .map(|(_, weights)| weights)
            .ok_or_else(|| Error::Compute(candle_core::Error::msg(format!("no part {folder} was opened"))))
    }

    pub(super) fn bytes_in_memory(&self) -> Bytes {
        self.0.iter().map(|(part, weights)| weights.bytes_in_memory(part.uses)).sum()
    }

    pub(super) fn bytes_on_disk(&self) -> Bytes {
        self.0.iter().map(|(part, weights)| weights.bytes_on_disk(part.uses)).sum()
    }
}
