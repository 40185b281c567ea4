//! The small models that the examples use by default, and the error if they are missing.

use std::path::Path;

/// The folder of the small models in the repository.
pub(crate) const SMALL_MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");

/// Error with the place of the small models if the folder is missing; the package on crates.io does not have
/// them.
pub(crate) fn say_if_missing(folder: &Path) {
    if !folder.is_dir() {
        eprintln!(
            "the small models of the examples are not in {}: they are in models/ of the project's repository, \
             and left out of its package",
            folder.display()
        );
    }
}
