//! Folders of fixtures, for the tests here and in `src`, so that no test misses a new family.
#![allow(dead_code, reason = "each program uses a part of it")]

use std::path::Path;

use tempfile::TempDir;

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

/// A copy of a folder of files and folders of files, to be changed.
pub(crate) fn copied(from: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_into(from, copy.path());
    copy
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_into(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}
