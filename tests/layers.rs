//! The rules of `actors/tests/layers.rs` for this crate: every file says what it is, and a module imports
//! only those listed above it, in `lib.rs` and in each folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../actors/tests/rules/mod.rs"]
mod rules;

use std::path::Path;

use rules::{Layers, rust_files, silent_files};

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
    let broken = Layers::read(root()).violations();
    assert!(broken.is_empty(), "against the order of the lists of modules:\n{}", broken.join("\n"));
}

/// True for a line with a limit that the search below would miss: a constant with another name, or a number
/// in the text of an error.
fn is_hidden_limit(line: &str) -> bool {
    if line.trim_start().starts_with("//") {
        return false;
    }
    let name = line.split_once("const ").and_then(|(_, rest)| rest.split(':').next()).unwrap_or_default();
    let misnamed = name.split('_').any(|word| ["BUDGET", "LARGEST", "LONGEST", "MOST"].contains(&word));
    let is_number = |rest: &str| rest.starts_with(|letter: char| letter.is_ascii_digit());
    let numbers = [" to ", "at most "].iter().any(|words| line.split(words).skip(1).any(is_number));
    misnamed || numbers && line.contains("allowed")
}

/// Limits of one file stay in that file, and are listed in `limits.rs` all the same.
#[test]
fn every_limit_is_in_the_table() {
    let source = root().join("src");
    let table = std::fs::read_to_string(source.join("limits.rs")).unwrap();
    let told = |name: &str, path: &str| {
        let row = |line: &str| line.contains(&format!("`{name}`")) && line.contains(&format!("`{path}`"));
        table.lines().filter(|line| line.starts_with("//! |")).any(row)
    };
    // The control: the search finds what is there, and only that.
    assert!(told("MAX_LOOKUPS", "image_input/fetch.rs") && !told("MAX_LOOKUPS", "weights.rs"));
    for hidden in ["const LONGEST_PIECE: usize = 256;", "format!(\"{n} heads; 1 to 65,536 are allowed\")"] {
        assert!(is_hidden_limit(hidden), "{hidden}");
    }
    assert!(!is_hidden_limit("format!(\"{n} heads; 1 to {MAX_HEADS} are allowed\")"));
    let (mut missing, mut found) = (Vec::new(), 0);
    for file in rust_files(&source) {
        let path = file.strip_prefix(&source).unwrap().to_string_lossy().replace('\\', "/");
        for line in std::fs::read_to_string(&file).unwrap().lines().filter(|_| path != "limits.rs") {
            if is_hidden_limit(line) {
                missing.push(format!("{} of {path}, which is to be called MAX_", line.trim()));
            }
            let Some((_, rest)) = line.split_once("const MAX_") else { continue };
            let name = format!("MAX_{}", rest.split(':').next().unwrap());
            found += 1;
            if !told(&name, &path) {
                missing.push(format!("{name} of {path}"));
            }
        }
    }
    assert!(found > 20, "{found}");
    assert!(missing.is_empty(), "limits.rs does not tell of {missing:#?}");
    for line in table.lines().filter(|line| line.starts_with("pub const")) {
        let name = line.split([' ', ':']).nth(2).unwrap();
        assert!(table.contains(&format!("[`{name}`]")), "the table does not tell of {name}");
    }
    for line in std::fs::read_to_string(root().join("actors/src/limits.rs")).unwrap().lines() {
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        let name = rest.split(':').next().unwrap();
        assert!(table.contains(&format!("[`{name}`]")), "the table does not tell of {name}");
    }
}
