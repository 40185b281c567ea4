//! Notes of the files that a load has asked for: they are what the model is made from. What becomes of them is left to
//! `digest`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The files that have been asked for and are there, by their names in the model.
#[derive(Debug, Default)]
pub(super) struct Taken(Mutex<BTreeMap<String, PathBuf>>);

impl Taken {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, name: &str, path: &Path) {
        self.lock().insert(name.to_owned(), path.to_owned());
    }

    #[cfg(feature = "cluster")]
    pub(super) fn files(&self) -> BTreeMap<String, PathBuf> {
        self.lock().clone()
    }
}
