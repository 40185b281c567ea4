//! Folders of fixtures, for the tests here and in `src`, so that no test misses a new family.

use std::path::Path;

/// The names of a capability's families: every folder that is there.
pub(crate) fn families_of(capability: &str) -> Vec<String> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(capability);
    let entries = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 2, "{capability}: {names:?}");
    names
}
