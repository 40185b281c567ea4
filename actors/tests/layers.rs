//! The rules that keep the crate readable, enforced: every file says what it is, a module imports only those listed
//! above it in `lib.rs`, and no model library comes near.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Libraries that this crate may never depend on, however indirectly.
const MODEL_LIBRARIES: [&str; 6] = ["candle", "tokenizers", "hf-hub", "image", "safetensors", "ndarray"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
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

#[test]
fn every_file_opens_with_what_it_is() {
    let directories = ["src", "tests", "examples", "benches"].map(|directory| root().join(directory));
    let silent: Vec<PathBuf> = directories
        .iter()
        .filter(|directory| directory.is_dir())
        .flat_map(|directory| rust_files(directory))
        .filter(|file| !std::fs::read_to_string(file).unwrap().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

/// The top-level modules in the order of `lib.rs`, and the module that each re-exported name comes from.
struct Layers {
    order: Vec<String>,
    exports: BTreeMap<String, String>,
}

impl Layers {
    fn read(lib: &str) -> Self {
        let mut order = Vec::new();
        let mut exports = BTreeMap::new();
        for statement in lib.split(';') {
            let words: Vec<&str> =
                statement.split_whitespace().filter(|word| !word.starts_with("//")).collect();
            if let [.., "mod", module] = words[..] {
                order.push(module.to_owned());
            } else if let Some(path) = statement.split("pub use ").nth(1) {
                let (module, names) = path.split_once("::").unwrap();
                for name in identifiers(names) {
                    exports.insert(name.to_owned(), module.trim().to_owned());
                }
            }
        }
        Self { order, exports }
    }

    fn place(&self, module: &str) -> usize {
        let place = self.order.iter().position(|listed| listed == module);
        place.unwrap_or_else(|| panic!("the module {module} is not in lib.rs"))
    }

    /// The module of what follows `crate::`: a module itself, or a name that `lib.rs` re-exports. Capabilities are
    /// re-exported all together, macros are of `message`.
    fn module_of(&self, name: &str) -> String {
        if self.order.iter().any(|module| module == name) {
            return name.to_owned();
        }
        if name == "impl_message" {
            return "message".to_owned();
        }
        self.exports.get(name).cloned().unwrap_or_else(|| "capability".to_owned())
    }

    /// What a file of `module` imports from modules that are not above it.
    fn violations(&self, module: &str, source: &str) -> BTreeSet<String> {
        let own = self.place(module);
        imports(source)
            .map(|name| self.module_of(&name))
            .filter(|imported| imported != module && self.place(imported) > own)
            .collect()
    }
}

fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter(|name| !name.is_empty())
}

/// Every name that follows `crate::` in code (`$crate::` in a macro is no import of the file that defines it); a group of names gives each of its first ones.
fn imports(source: &str) -> impl Iterator<Item = String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let code = code.replace("$crate::", "");
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => names.extend(identifiers(rest).next().map(str::to_owned)),
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                names.extend(group.split(',').filter_map(|item| identifiers(item).next().map(str::to_owned)));
            }
        }
    }
    names.into_iter()
}

#[test]
fn a_module_imports_only_those_listed_above_it() {
    let source = root().join("src");
    let layers = Layers::read(&std::fs::read_to_string(source.join("lib.rs")).unwrap());
    let mut broken = Vec::new();
    for file in rust_files(&source) {
        let path = file.strip_prefix(&source).unwrap();
        let module = path.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        if module == "lib" {
            continue;
        }
        let violations = layers.violations(&module, &std::fs::read_to_string(&file).unwrap());
        if !violations.is_empty() {
            broken.push(format!("{} imports {violations:?}", path.display()));
        }
    }
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
