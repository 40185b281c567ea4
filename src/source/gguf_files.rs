//! The GGUF files of an opened source: that which is the model, the other parts of it, and its vision tower.

use std::path::{Path, PathBuf};

use model_actors::LoadContext;

use super::folder::Folder;
use super::{Files, Place};
use crate::error::{Error, Result};

/// Names of vision towers, as an error shows them.
const PROJECTOR: &str = "mmproj-*.gguf";

impl Files {
    /// The GGUF file that is the model: the one that was named, or the only one of a directory without safetensors.
    ///
    /// # Errors
    /// [`Error::SeveralGgufFiles`] if the directory has more than one.
    #[cfg_attr(not(feature = "hub"), allow(unused_variables, reason = "only the hub takes its time"))]
    pub(crate) fn gguf(&self, context: &LoadContext) -> Result<Option<PathBuf>> {
        let found = match &self.place {
            Place::Directory(folder) if folder.is_file() => Some(folder.path().to_owned()),
            Place::Directory(folder) => folder.only_gguf()?,
            #[cfg(feature = "hub")]
            Place::Hub(_, None) => None,
            #[cfg(feature = "hub")]
            Place::Hub(_, Some(file)) => Some(self.readable(file, context)?),
        };
        // Whatever it is called, it is the model.
        found.iter().for_each(|path| self.taken.note("gguf", path));
        Ok(found)
    }

    /// The path of another part of the GGUF file that is the model, by its name without a folder.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if it is not beside `gguf`, which is the part that was found.
    pub(crate) fn gguf_part(&self, gguf: &Path, name: &str, context: &LoadContext) -> Result<PathBuf> {
        self.check_name(name)?;
        let found = match &self.place {
            Place::Directory(folder) => {
                if context.should_stop() {
                    return Err(Error::Stopped);
                }
                beside(folder, gguf).find(name)?
            }
            #[cfg(feature = "hub")]
            Place::Hub(files, named) => {
                let named = named.as_deref().and_then(|named| named.rsplit_once('/'));
                let name = named.map_or(name.to_owned(), |(folder, _)| format!("{folder}/{name}"));
                files.fetch(&name, context)?
            }
        };
        found.iter().for_each(|path| self.taken.note(name, path));
        found.ok_or_else(|| Error::MissingFile { model: self.name(), file: name.to_owned() })
    }

    /// The GGUF file with the vision tower of the model in `gguf`: the one that was named, or the only one beside it.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if there is none; [`Error::SeveralGgufFiles`] if there are more and none was named.
    #[cfg_attr(not(feature = "hub"), allow(unused_variables, reason = "only the hub takes its time"))]
    pub(crate) fn projector(&self, gguf: &Path, context: &LoadContext) -> Result<PathBuf> {
        let found = match (&self.place, &self.projector) {
            (Place::Directory(_), Some(path)) => Some(path.clone()),
            (Place::Directory(folder), None) => beside(folder, gguf).only_projector()?,
            #[cfg(feature = "hub")]
            (Place::Hub(..), Some(name)) => Some(self.readable(&name.to_string_lossy(), context)?),
            #[cfg(feature = "hub")]
            (Place::Hub(..), None) => None,
        };
        found.iter().for_each(|path| self.taken.note("projector", path));
        found.ok_or_else(|| Error::MissingFile { model: self.name(), file: PROJECTOR.to_owned() })
    }

    /// True if one GGUF file was named as the model.
    pub(crate) fn is_gguf(&self) -> bool {
        match &self.place {
            Place::Directory(folder) => folder.is_file(),
            #[cfg(feature = "hub")]
            Place::Hub(_, file) => file.is_some(),
        }
    }
}

/// The folder of a GGUF file.
fn beside(folder: &Folder, gguf: &Path) -> Folder {
    Folder::new(super::parent_of(gguf), folder.follows_links())
}
