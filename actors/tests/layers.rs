//! The rules that keep the crate readable, enforced: every file says what it is, a module imports only those listed
//! above it in `lib.rs`, and no model library comes near.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod rules;

use std::collections::BTreeSet;
use std::path::PathBuf;

use rules::{Layers, imports_from_below, silent_files};

/// Libraries that this crate may never depend on, however indirectly.
const MODEL_LIBRARIES: [&str; 6] = ["candle", "tokenizers", "hf-hub", "image", "safetensors", "ndarray"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent = silent_files(&root());
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

#[test]
fn a_module_imports_only_those_listed_above_it() {
    let broken = imports_from_below(&root());
    assert!(broken.is_empty(), "against the order of lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn a_planted_import_from_below_is_caught() {
    let layers =
        Layers::read("mod low;\n#[cfg(test)]\npub mod high;\npub use high::{Tower, Spire};\npub use low::*;");
    assert_eq!(layers.order, ["low", "high"]);
    assert!(layers.violations("high", "use crate::low::Cellar;\nuse crate::high::Tower;").is_empty());
    assert!(layers.violations("low", "//! See crate::high::Tower.").is_empty(), "words are no imports");
    for planted in ["use crate::high::Tower;", "fn f() { crate::high::g() }", "use crate::{Spire, low};"] {
        assert_eq!(layers.violations("low", planted), BTreeSet::from(["high".to_owned()]), "{planted}");
    }
}

#[test]
fn no_model_library_is_in_the_dependency_tree() {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--manifest-path"]);
    let output = cargo.arg(root().join("Cargo.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(
        names.contains("ractor") && !names.contains("clap"),
        "the tree was read, without tests: {names:?}"
    );
    let models: Vec<&&str> = names.iter().filter(|name| is_model_library(name)).collect();
    assert!(models.is_empty(), "model libraries in the tree of model-actors: {models:?}");
    assert!(
        ["candle-core", "tokenizers", "hf-hub"].into_iter().all(is_model_library),
        "the check does see them"
    );
}

fn is_model_library(name: &str) -> bool {
    MODEL_LIBRARIES.iter().any(|library| name == *library || name.starts_with(&format!("{library}-")))
}
