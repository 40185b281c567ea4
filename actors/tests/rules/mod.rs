//! The rules that keep both crates readable, as functions of a crate's folder: each crate has a test that calls them.
#![allow(dead_code, reason = "each crate uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

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

/// What a crate's files import from modules that `lib.rs` does not list above their own, one line each.
pub(crate) fn imports_from_below(root: &Path) -> Vec<String> {
    let source = root.join("src");
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
    broken
}

/// The top-level modules in the order of `lib.rs`, and the module that each re-exported name comes from.
pub(crate) struct Layers {
    pub(crate) order: Vec<String>,
    exports: BTreeMap<String, String>,
}

impl Layers {
    pub(crate) fn read(lib: &str) -> Self {
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
    pub(crate) fn violations(&self, module: &str, source: &str) -> BTreeSet<String> {
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
