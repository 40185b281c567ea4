//! The rules that keep both crates readable, as functions of a crate's folder: each crate has a test that
//! calls them.
#![allow(dead_code, reason = "each crate uses a part of it")]

mod layers;

use std::path::{Path, PathBuf};

pub(crate) use layers::Layers;

pub(crate) fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
    files
}

/// The files of a crate that do not open with a paragraph on what they are.
pub(crate) fn silent_files(root: &Path) -> Vec<PathBuf> {
    let directories = ["src", "tests", "examples", "benches"].map(|directory| root.join(directory));
    directories
        .iter()
        .filter(|directory| directory.is_dir())
        .flat_map(|directory| rust_files(directory))
        .filter(|file| !std::fs::read_to_string(file).unwrap().starts_with("//!"))
        .collect()
}
