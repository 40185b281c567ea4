//! The small models that the examples use unless told otherwise: whether they are here.

use std::path::Path;

/// The folder of the small models in the repository.
pub(crate) const SMALL_MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");

/// Says where the small models are to be had, if this folder is not there: the package on crates.io is without them.
pub(crate) fn say_if_missing(folder: &Path) {
    if !folder.is_dir() {
        eprintln!(
            "the small models of the examples are not in {}: they are in models/ of the project's repository, \
             and left out of its package",
            folder.display()
        );
    }
}
