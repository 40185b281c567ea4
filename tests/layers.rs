//! The rules of `actors/tests/layers.rs` for this crate: every file says what it is, and a module imports only those
//! listed above it in `lib.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../actors/tests/rules/mod.rs"]
mod rules;

use std::path::Path;

use rules::{imports_from_below, silent_files};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent = silent_files(root());
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

#[test]
fn a_module_imports_only_those_listed_above_it() {
    let broken = imports_from_below(root());
    assert!(broken.is_empty(), "against the order of lib.rs:\n{}", broken.join("\n"));
}
