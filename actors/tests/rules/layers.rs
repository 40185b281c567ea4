//! The rule of the layers: each list of modules, in `lib.rs` and in the file of every folder, is in reading
//! order, and a module imports only those listed above it.
//!
//! An import is a path that begins with `crate`, `super`, `self` or a module of the file, in a `use` or
//! anywhere else in the code, macros included. It goes from one branch of the module tree to another; the two
//! branches part at some module, and there the target has to be listed above the importing one. So files in a
//! folder are ordered among themselves as the folders are. A name that a module re-exports counts as where it
//! comes from: `super::Ticket` is an import of `queue` if the folder's file says `use queue::Ticket`. What
//! the folder's file defines itself is above all of its modules, and a folder's file may import any of its
//! own modules: a parent and its parts are one thing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

/// Names from the crate's root to a module, or on to an item in it.
type Names = Vec<String>;

/// The module tree of a crate: what each module lists, re-exports and imports.
pub(crate) struct Layers {
    modules: BTreeMap<Names, Module>,
    /// Macros that are exported to the crate's root, and the module that defines each.
    macros: BTreeMap<String, Names>,
}

#[derive(Default)]
struct Module {
    /// Its modules in the order of their list.
    children: Vec<String>,
    /// Names that it imports or re-exports, and where they come from.
    names: BTreeMap<String, Names>,
    /// Modules of which it re-exports everything.
    globs: Vec<Names>,
    /// Names of the items that it defines.
    items: BTreeSet<String>,
    /// Paths to elsewhere in the crate.
    imports: BTreeSet<Names>,
}

impl Layers {
    /// Reads all modules of a crate from its folder.
    pub(crate) fn read(root: &Path) -> Self {
        let source = root.join("src");
        let files = super::rust_files(&source).into_iter().map(|file| {
            let path = file.strip_prefix(&source).unwrap().with_extension("");
            let names = path.iter().map(|name| name.to_str().unwrap().to_owned());
            let names: Names = names.filter(|name| name != "mod" && name != "lib").collect();
            (names, std::fs::read_to_string(&file).unwrap())
        });
        Self::parse(files)
    }

    /// Reads modules from sources. The root's path is empty.
    pub(crate) fn parse(sources: impl IntoIterator<Item = (Names, String)>) -> Self {
        let mut layers = Self { modules: BTreeMap::new(), macros: BTreeMap::new() };
        for (path, source) in sources {
            let file = syn::parse_file(&source).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            Reader { layers: &mut layers, path }.visit_file(&file);
        }
        layers
    }

    /// Returns each import of a module that is not listed above the importing one, a line each.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut found = BTreeSet::new();
        for (path, module) in &self.modules {
            for import in &module.imports {
                // Both count: the module that is named, and the one where the name comes from.
                for target in [self.named(import), self.origin(import)] {
                    if self.is_from_below(path, &target) {
                        found.insert(format!("{} imports {}", path.join("::"), target.join("::")));
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    fn is_from_below(&self, importer: &Names, target: &Names) -> bool {
        let parting = importer.iter().zip(target).take_while(|(one, other)| one == other).count();
        let (Some(own), Some(other)) = (importer.get(parting), target.get(parting)) else {
            // One contains the other.
            return false;
        };
        let children = &self.modules[&importer[..parting]].children;
        let place = |name| children.iter().position(|child| child == name);
        place(other) > place(own)
    }

    /// The module that a path names, without the item at its end.
    fn named(&self, path: &Names) -> Names {
        let length = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]));
        path[..length.unwrap_or_default()].to_vec()
    }

    /// The module that defines what a path names, wherever it is re-exported.
    fn origin(&self, path: &Names) -> Names {
        let mut path = path.clone();
        // Names that import one another in a circle have no origin.
        for _ in 0..16 {
            let named = self.named(&path);
            let Some(item) = path.get(named.len()) else { return named };
            let module = &self.modules[&named];
            let rest = &path[named.len() + 1..];
            path = if module.items.contains(item) {
                return named;
            } else if let Some(origin) = module.names.get(item) {
                [origin, rest].concat()
            } else if let Some(glob) = module.globs.iter().find(|glob| self.defines(glob, item)) {
                [&glob[..], &path[named.len()..]].concat()
            } else if let Some(origin) = self.macros.get(item).filter(|_| named.is_empty()) {
                return origin.clone();
            } else {
                return named;
            };
        }
        self.named(&path)
    }

    fn defines(&self, module: &Names, item: &str) -> bool {
        let Some(module) = self.modules.get(module) else { return false };
        module.items.contains(item)
            || module.names.contains_key(item)
            || module.globs.iter().any(|glob| self.defines(glob, item))
    }
}

/// Reads one file into the tree; `path` is the module at hand.
struct Reader<'a> {
    layers: &'a mut Layers,
    path: Names,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        self.layers.modules.entry(self.path.clone()).or_default()
    }

    /// Makes a path absolute. `None` for one that leads out of the crate, or names something by its bare name.
    fn absolute(&mut self, path: &[String]) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([&self.path[..], rest].concat()),
            "super" => {
                let ups = path.iter().take_while(|name| *name == "super").count();
                let parent = &self.path[..self.path.len().checked_sub(ups)?];
                Some([parent, &path[ups..]].concat())
            }
            name if self.module().children.iter().any(|child| child == name) => {
                Some([&self.path[..], path].concat())
            }
            _ => None,
        }
    }

    fn import(&mut self, path: &[String]) {
        if let Some(path) = self.absolute(path) {
            self.module().imports.insert(path);
        }
    }

    fn read_use(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.read_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.read_use(tree, prefix)),
            syn::UseTree::Glob(_) => {
                self.import(prefix);
                let module = self.absolute(prefix);
                self.module().globs.extend(module);
            }
            syn::UseTree::Name(syn::UseName { ident: name }) if name == "self" => {
                self.bring(prefix, prefix.last().cloned());
            }
            syn::UseTree::Name(name) => self.bring(&with(&name.ident), Some(name.ident.to_string())),
            syn::UseTree::Rename(rename) => {
                self.bring(&with(&rename.ident), Some(rename.rename.to_string()));
            }
        }
    }

    /// Notes a name that a `use` brings into the module.
    fn bring(&mut self, path: &[String], name: Option<String>) {
        self.import(path);
        if let (Some(origin), Some(name)) = (self.absolute(path), name) {
            self.module().names.insert(name, origin);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        // All modules and items first: a path may name what is further down.
        for item in &file.items {
            self.note(item);
        }
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let Some((_, items)) = &module.content else { return };
        self.path.push(module.ident.to_string());
        self.module();
        items.iter().for_each(|item| self.note(item));
        visit::visit_item_mod(self, module);
        self.path.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.read_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.import(&names);
        visit::visit_path(self, path);
    }

    /// The inside of a macro's call has no syntax of its own; its paths are found by their words. `$crate` in
    /// a macro's definition is no import of the file that defines it.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let text = call.tokens.to_string().replace("$ crate", "").replace(" :: ", "::");
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
        for words in text.split(|letter| !is_name(letter)).filter(|words| words.contains("::")) {
            let names: Names = words.split("::").map(str::to_owned).collect();
            self.import(&names);
        }
        visit::visit_macro(self, call);
    }
}

impl Reader<'_> {
    /// Notes what an item defines.
    fn note(&mut self, item: &syn::Item) {
        let name = match item {
            syn::Item::Mod(module) => return self.module().children.push(module.ident.to_string()),
            syn::Item::Macro(definition) => {
                let Some(name) = &definition.ident else { return };
                if definition.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                    self.layers.macros.insert(name.to_string(), self.path.clone());
                }
                name
            }
            syn::Item::Const(item) => &item.ident,
            syn::Item::Enum(item) => &item.ident,
            syn::Item::Fn(item) => &item.sig.ident,
            syn::Item::Static(item) => &item.ident,
            syn::Item::Struct(item) => &item.ident,
            syn::Item::Trait(item) => &item.ident,
            syn::Item::Type(item) => &item.ident,
            _ => return,
        };
        let name = name.to_string();
        self.module().items.insert(name);
    }
}
