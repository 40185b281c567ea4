//! Repository in the layout of diffusers: `model_index.json` names the pipeline and its components, and each
//! component has a folder with its configuration and its weights.

use std::path::{Path, PathBuf};

use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::architecture::{Family, parse, refuse_unread};
use crate::error::{Error, Result};
use crate::models::config_file;
use crate::source::{Files, Unread, read_json};
use crate::weights::WeightFiles;

/// Maximum number of levels of a UNet or an autoencoder, each of half the resolution of the one above it.
pub(super) const MAX_LEVELS: usize = 8;
/// Largest width of a component, and most layers or heads of a UNet or an autoencoder.
pub(super) const MAX_WIDTH: usize = 1 << 16;
/// Maximum number of layers of a transformer, heads, numbers of a head, and channels of its latents.
pub(super) const MAX_COUNT: usize = 1 << 10;
/// Maximum number of latents along a side of the default image.
pub(super) const MAX_SAMPLE: usize = 4096;

/// Repository whose configuration files are read.
pub(super) struct Repository<'a> {
    pub(super) files: &'a Files,
    pub(super) context: &'a LoadContext,
    /// Path of `model_index.json`.
    pub(super) path: PathBuf,
    /// Content of `model_index.json`.
    pub(super) index: serde_json::Value,
}

#[derive(Deserialize)]
struct ClassName {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
}

impl<'a> Repository<'a> {
    /// Opens a repository; `families` and `capability` are for the error about a model of another kind.
    pub(super) fn open<A>(
        files: &'a Files,
        families: &[Family<A>],
        capability: &'static str,
        context: &'a LoadContext,
    ) -> Result<Self> {
        let path = config_file::find(files, "model_index.json", families, capability, context)?;
        let index = read_json(&path)?;
        Ok(Self { files, context, path, index })
    }

    /// Class of the pipeline.
    pub(super) fn class(&self) -> Result<String> {
        let ClassName { class_name } = parse(&self.path, &self.index)?;
        class_name.ok_or_else(|| Error::InvalidConfig {
            file: self.path.clone(),
            reason: "it has no _class_name".to_owned(),
        })
    }

    /// True if the pipeline has a component; one that was left out is listed as two nulls.
    pub(super) fn has(&self, component: &str) -> bool {
        self.index.get(component).and_then(|entry| entry.get(1)).is_some_and(serde_json::Value::is_string)
    }

    /// Class that a component's configuration names, if any.
    pub(super) fn class_of(&self, file: &str) -> Result<Option<String>> {
        let path = self.files.required(file, self.context)?;
        let ClassName { class_name } = parse(&path, &read_json(&path)?)?;
        Ok(class_name)
    }

    /// Reads a component's configuration, `<folder>/<file>`.
    ///
    /// # Errors
    /// [`Error::UnreadSetting`] for a setting that is neither read nor known to have no effect;
    /// [`Error::UnsupportedSetting`] if the file names a class other than `classes`, unless these are empty, or has a
    /// setting of `only` with another value than the one that is given there in JSON.
    pub(super) fn config<T: DeserializeOwned>(
        &self,
        file: &str,
        classes: &'static [&'static str],
        only: &'static [(&'static str, &'static str)],
    ) -> Result<(PathBuf, T)> {
        self.config_by(file, classes, only, parse)
    }

    /// The same, for a configuration that is read by `read`.
    pub(super) fn config_by<T>(
        &self,
        file: &str,
        classes: &'static [&'static str],
        only: &'static [(&'static str, &'static str)],
        read: impl Fn(&Path, &serde_json::Value) -> Result<T>,
    ) -> Result<(PathBuf, T)> {
        let path = self.files.required(file, self.context)?;
        let config: serde_json::Value = read_json(&path)?;
        let ClassName { class_name } = parse(&path, &config)?;
        match class_name {
            Some(found) if !classes.is_empty() && !classes.contains(&found.as_str()) => {
                Err(Error::UnsupportedSetting {
                    file: path,
                    what: "_class_name".into(),
                    found,
                    supported: classes.first().copied().unwrap_or_default().into(),
                })
            }
            _ => {
                let read = |config: &serde_json::Value| {
                    check_only(&path, config, only)?;
                    read(&path, config)
                };
                let found = read(&config)?;
                if self.files.unread == Unread::Refused {
                    refuse_unread(&path, &config, |changed| read(changed).is_ok())?;
                }
                Ok((path, found))
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
                return Err(Error::UnsupportedSetting {
                    file: path.to_owned(),
                    what: (*what).into(),
                    found,
                    supported: (*supported).into(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Error about a configuration file.
pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidConfig { file: path.to_owned(), reason: reason.into() }
}

/// Checks sizes, each with its name and its largest value, to be at least 1 and at most that.
pub(super) fn check_sizes(path: &Path, sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        Some((name, size, most)) => Err(invalid(path, format!("{name} is {size}; 1 to {most} are allowed"))),
        None => Ok(()),
    }
}

/// Component of a pipeline that has weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Component {
    /// Its folder, with a slash at the end.
    pub(super) folder: &'static str,
    /// Name of its weight files without an ending: [`Component::DIFFUSERS`] or [`Component::TRANSFORMERS`].
    pub(super) file: &'static str,
    /// True for the tensors that are loaded.
    pub(super) is_loaded: fn(&str) -> bool,
}

impl Component {
    pub(super) const DIFFUSERS: &'static str = "diffusion_pytorch_model";
    pub(super) const TRANSFORMERS: &'static str = "model";
}

/// Headers of the weights of all components.
pub(super) struct ComponentWeights(Vec<(Component, WeightFiles)>);

impl ComponentWeights {
    pub(super) fn open(components: Vec<Component>, files: &Files, context: &LoadContext) -> Result<Self> {
        let open = |component: Component| {
            let weights = WeightFiles::open_named(files, component.folder, component.file, context)?;
            Ok((component, weights))
        };
        Ok(Self(components.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// Refuses a tensor that was not read, once everything that is needed has been.
    pub(super) fn check_all_read(&self) -> Result<()> {
        self.0.iter().try_for_each(|(component, weights)| {
            weights.check_all_read(|tensor| !(component.is_loaded)(tensor))
        })
    }

    /// Weights of the component in a folder.
    pub(super) fn of(&self, folder: &str) -> Result<&WeightFiles> {
        let found = self.0.iter().find(|(component, _)| component.folder == folder);
        found
            .map(|(_, weights)| weights)
            .ok_or_else(|| Error::compute(format!("the component {folder} was not opened")))
    }

    pub(super) fn bytes_in_memory(&self) -> Bytes {
        self.0
            .iter()
            .map(|(component, weights)| weights.bytes_in_memory(component.is_loaded, |_| false))
            .sum()
    }

    pub(super) fn bytes_on_disk(&self) -> Bytes {
        self.0.iter().map(|(component, weights)| weights.bytes_on_disk(component.is_loaded)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_with_one_supported_value_may_have_it_or_be_left_out() {
        let check = |value: serde_json::Value| {
            let config = serde_json::json!({"scale": value});
            check_only(Path::new("config.json"), &config, &[("scale", "1")])
        };
        for value in [serde_json::json!(1), serde_json::json!(1.0), serde_json::json!(null)] {
            assert!(check(value).is_ok());
        }
        for value in [serde_json::json!(2), serde_json::json!("1"), serde_json::json!([1])] {
            assert!(matches!(check(value), Err(Error::UnsupportedSetting { what, .. }) if what == "scale"));
        }
    }
}
