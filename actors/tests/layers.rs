//! The rules that keep the crate readable, enforced: every file says what it is, a module imports only those
//! listed above it, in `lib.rs` and in each folder, and no model library comes near.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod rules;

use std::collections::BTreeSet;
use std::path::PathBuf;

use rules::{Layers, silent_files};

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
    let broken = Layers::read(&root()).violations();
    assert!(broken.is_empty(), "against the order of the lists of modules:\n{}", broken.join("\n"));
}

/// A small crate that keeps the rule, with one source replaced.
fn crate_with(module: &str, source: &str) -> Vec<String> {
    let modules = [
        ("", "#[macro_use]\nmod words;\nmod low;\nmod high;\npub use high::{Tower, Spire};\npub use low::*;"),
        ("words", "#[macro_export]\nmacro_rules! say { () => { $crate::high::Tower } }"),
        ("low", "pub struct Cellar;"),
        (
            "high",
            "mod stone;\nmod wall;\nmod roof;\nuse roof::Tile;\npub struct Tower(roof::Tile);\npub struct Spire;",
        ),
        ("high::stone", "use super::Tower;\nuse crate::Cellar;"),
        (
            "high::wall",
            "use super::stone;\n#[cfg(test)]\nmod tests {\n    use super::super::stone;\n    use super::*;\n}",
        ),
        (
            "high::roof",
            "use super::{Tower, wall};\npub struct Tile;\nfn f() { crate::say!(); super::wall::lift() }",
        ),
    ];
    let sources = modules.map(|(path, kept)| {
        let names = path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        (names, if path == module { source } else { kept }.to_owned())
    });
    Layers::parse(sources).violations()
}

#[test]
fn a_planted_import_from_below_is_caught() {
    assert_eq!(crate_with("none", ""), Vec::<String>::new(), "the control keeps the rule");
    for planted in [
        "use crate::high::Tower;",
        "use crate::Tower;",
        "use crate::{Spire, words};",
        "fn f() { crate::high::g() }",
        "fn f() { assert!(crate::high::g()) }",
        "use super::high;",
        "mod tests { use super::super::high::Tower; }",
    ] {
        let found = crate_with("low", planted);
        let from_below = |line: &String| line.starts_with("low") && line.ends_with("imports high");
        assert!(found.len() == 1 && found.iter().all(from_below), "{planted}: {found:?}");
    }
    assert!(crate_with("low", "//! See crate::high::Tower.").is_empty(), "words are no imports");
}

#[test]
fn a_planted_import_from_below_is_caught_inside_a_folder_too() {
    for planted in [
        "use super::roof::Tile;",
        "use super::Tile;",
        "use super::{Tower, roof};",
        "use crate::high::roof;",
        "fn f() { super::roof::g() }",
        "fn f() { let _ = vec![super::roof::Tile]; }",
        "#[cfg(test)]\nmod tests { use super::super::roof::Tile; }",
    ] {
        let found = crate_with("high::wall", planted);
        let from_below =
            |line: &String| line.starts_with("high::wall") && line.ends_with("imports high::roof");
        assert!(found.len() == 1 && found.iter().all(from_below), "{planted}: {found:?}");
    }
    let turned = "mod roof;\nmod wall;\nmod stone;\nuse roof::Tile;\npub struct Tower;\npub struct Spire;";
    assert_eq!(
        crate_with("high", turned),
        [
            "high::roof imports high::wall",
            "high::wall imports high::stone",
            "high::wall::tests imports high::stone"
        ]
    );
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
