//! `adapter_config.json` of PEFT: which modules an adapter changes, the rank of each and the factor on what is added to it,
//! by the rules of its `check_target_module_exists` and `get_pattern_key`. Patterns are Python's regular expressions; one
//! that cannot be read, or takes too long, is refused.

use std::fmt;
use std::path::{Path, PathBuf};

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::architecture::refuse_unlisted;
use crate::error::Result;
use crate::models::config_file::{invalid, unsupported};
use crate::models::transformer::check_side;
use crate::source::{Unread, read_json};

/// Maximum number of modules' names in a list, and of patterns in a table.
const MAX_MODULES: usize = 4096;
const MAX_PATTERNS: usize = 256;
/// Maximum number of bytes of a regular expression, of its compiled form, and of steps back in it.
const MAX_EXPRESSION: usize = 16 << 10;
const MAX_COMPILED: usize = 64 << 10;
const MAX_STEPS_BACK: usize = 10_000;

/// Settings that are read.
const READ: [&str; 10] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
];

/// Settings that are not read, with the values at which they have no effect on what is computed; `*` for any.
const NO_EFFECT: [(&str, &str); 19] = [
    // What made the file, and for whom.
    ("peft_version", "*"),
    ("auto_mapping", "*"),
    ("base_model_name_or_path", "*"),
    ("revision", "*"),
    ("task_type", "*"),
    ("inference_mode", "*"),
    ("unsloth_*", "*"),
    // Of training, and of the first numbers of matrices that the file has; other initialisations change the base.
    ("lora_dropout", "*"),
    ("eva_config", "*"),
    ("init_lora_weights", "true"),
    ("init_lora_weights", "\"gaussian\""),
    ("init_lora_weights", "\"eva\""),
    ("init_lora_weights", "\"orthogonal\""),
    // Where devices and kinds of layers that are not here would take them.
    ("megatron_core", "*"),
    ("runtime_config", "*"),
    ("qalora_group_size", "*"),
    // PEFT ignores it for linear layers, and all layers here are.
    ("fan_in_fan_out", "*"),
    ("bias", "\"none\""),
    ("ensure_weight_tying", "*"),
];

/// The settings of an adapter.
pub(super) struct Settings {
    file: PathBuf,
    rank: usize,
    alpha: f64,
    /// Divides by the root of the rank, and not by the rank (Kalajdzievski, 2023).
    by_root: bool,
    targets: Modules,
    excluded: Option<Modules>,
    layers: Option<Layers>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

/// Modules by their names.
enum Modules {
    /// All linear layers but that of the logits, which is asked for nowhere.
    AllLinear,
    /// Whole names, or what names end with after a dot.
    Names(Vec<String>),
    /// All of the name.
    Expression(Regex),
}

/// The blocks that are changed.
struct Layers {
    numbers: Vec<usize>,
    /// Each finds the number in a module's name.
    patterns: Vec<Regex>,
}

#[derive(Deserialize)]
struct File {
    peft_type: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    target_modules: Option<OneOrMore<String>>,
    exclude_modules: Option<OneOrMore<String>>,
    layers_to_transform: Option<OneOrMore<usize>>,
    layers_pattern: Option<OneOrMore<String>>,
    rank_pattern: Option<InOrder<usize>>,
    alpha_pattern: Option<InOrder<f64>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

/// A table in the order of the file, in which the first pattern that matches counts.
struct InOrder<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Table<T> {
            type Value = InOrder<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Table(std::marker::PhantomData))
    }
}

impl Settings {
    /// Reads the file. Settings that it leaves out have PEFT's defaults.
    pub(super) fn read(file: &Path, unread: Unread) -> Result<Self> {
        let all: Value = read_json(file)?;
        let own: File = read_json(file)?;
        let kind = own.peft_type.as_deref().unwrap_or("(none named)");
        if kind != "LORA" {
            return Err(unsupported(file, "peft_type", kind, "LORA"));
        }
        if unread == Unread::Refused {
            refuse_unlisted(file, &all, &READ, &NO_EFFECT)?;
        }
        let modules = |modules: OneOrMore<String>| match modules {
            OneOrMore::One(expression) => whole(file, &expression).map(Modules::Expression),
            OneOrMore::More(names) if names.len() <= MAX_MODULES => Ok(Modules::Names(names)),
            OneOrMore::More(names) => Err(too_many(file, "names of modules", names.len(), MAX_MODULES)),
        };
        let Some(targets) = own.target_modules else {
            return Err(invalid(file, "it has no target_modules"));
        };
        let layers = own.layers_to_transform.map(OneOrMore::into_vec).filter(|numbers| !numbers.is_empty());
        let mut patterns = own.layers_pattern.map(OneOrMore::into_vec).unwrap_or_default();
        patterns.retain(|pattern| !pattern.is_empty());
        let patterns = match patterns.as_slice() {
            [] => vec![r"^.*?\.[^.]*\.(\d+)\.".to_owned()],
            patterns => patterns.iter().map(|path| format!(r"^(?:.*?\.)?(?:{path})\.(\d+)\.")).collect(),
        };
        let rank = own.r.unwrap_or(8);
        check_side(file, "r", rank)?;
        let ranks = table(file, own.rank_pattern)?;
        ranks.iter().try_for_each(|(_, rank)| check_side(file, "rank_pattern", *rank))?;
        let settings = Self {
            file: file.to_owned(),
            rank,
            alpha: own.lora_alpha.unwrap_or(8.0),
            by_root: own.use_rslora.unwrap_or(false),
            layers: match (layers, &targets) {
                // With an expression, PEFT takes it to say which layers.
                (Some(_), OneOrMore::One(_)) => {
                    let supported = "none beside a target_modules that is no list";
                    return Err(unsupported(file, "layers_to_transform", "a list", supported));
                }
                (Some(numbers), OneOrMore::More(_)) => {
                    if patterns.len() > MAX_PATTERNS {
                        return Err(too_many(file, "layers_pattern", patterns.len(), MAX_PATTERNS));
                    }
                    let patterns = patterns.iter().map(|pattern| compiled(file, pattern));
                    Some(Layers { numbers, patterns: patterns.collect::<Result<_>>()? })
                }
                (None, _) => None,
            },
            targets: match targets {
                OneOrMore::One(all) if all == "all-linear" => Modules::AllLinear,
                targets => modules(targets)?,
            },
            excluded: own.exclude_modules.map(modules).transpose()?,
            ranks,
            alphas: table(file, own.alpha_pattern)?,
        };
        let alphas = settings.alphas.iter().map(|(_, alpha)| *alpha);
        match alphas.chain([settings.alpha]).find(|alpha| !alpha.is_finite()) {
            Some(alpha) => Err(invalid(file, format!("lora_alpha or alpha_pattern has {alpha}"))),
            None => Ok(settings),
        }
    }

    /// The rank of the matrices of a module, and the factor on what they add; nothing for a module that is not changed.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for an expression that takes too long.
    pub(super) fn of_module(&self, module: &str) -> Result<Option<(usize, f64)>> {
        let is_excluded = match &self.excluded {
            Some(excluded) => self.is_in(excluded, module)?,
            None => false,
        };
        if is_excluded || !self.is_in(&self.targets, module)? || !self.is_in_layers(module)? {
            return Ok(None);
        }
        let rank = self.first(&self.ranks, module)?.unwrap_or(self.rank);
        let alpha = self.first(&self.alphas, module)?.unwrap_or(self.alpha);
        let divisor = if self.by_root { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Some((rank, alpha / divisor)))
    }

    fn is_in(&self, modules: &Modules, module: &str) -> Result<bool> {
        match modules {
            Modules::AllLinear => Ok(true),
            Modules::Names(names) => Ok(names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Modules::Expression(expression) => self.matches(expression, module),
        }
    }

    fn is_in_layers(&self, module: &str) -> Result<bool> {
        let Some(Layers { numbers, patterns }) = &self.layers else { return Ok(true) };
        // A module that is named with its path is meant in any case.
        if matches!(&self.targets, Modules::Names(names) if names.iter().any(|name| name == module)) {
            return Ok(true);
        }
        for pattern in patterns {
            let found = pattern.captures(module).map_err(|error| self.too_slow(&error))?;
            if let Some(number) = found.and_then(|found| found.get(1)?.as_str().parse().ok()) {
                return Ok(numbers.contains(&number));
            }
        }
        Ok(false)
    }

    fn first<T: Copy>(&self, table: &[(Regex, T)], module: &str) -> Result<Option<T>> {
        for (pattern, value) in table {
            if self.matches(pattern, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    fn matches(&self, expression: &Regex, module: &str) -> Result<bool> {
        expression.is_match(module).map_err(|error| self.too_slow(&error))
    }

    fn too_slow(&self, error: &fancy_regex::Error) -> crate::Error {
        invalid(&self.file, format!("a pattern cannot be matched: {error}"))
    }
}

fn table<T>(file: &Path, entries: Option<InOrder<T>>) -> Result<Vec<(Regex, T)>> {
    let InOrder(entries) = entries.unwrap_or(InOrder(Vec::new()));
    if entries.len() > MAX_PATTERNS {
        return Err(too_many(file, "patterns", entries.len(), MAX_PATTERNS));
    }
    let compile = |(pattern, value): (String, T)| {
        compiled(file, &format!(r"^(?:.*\.)?(?:{pattern})$")).map(|pattern| (pattern, value))
    };
    entries.into_iter().map(compile).collect()
}

fn whole(file: &Path, expression: &str) -> Result<Regex> {
    compiled(file, &format!("^(?:{expression})$"))
}

fn compiled(file: &Path, expression: &str) -> Result<Regex> {
    if expression.len() > MAX_EXPRESSION {
        let reason =
            format!("a pattern has {} bytes; at most {MAX_EXPRESSION} are allowed", expression.len());
        return Err(invalid(file, reason));
    }
    let mut builder = RegexBuilder::new(expression);
    builder.backtrack_limit(MAX_STEPS_BACK).delegate_size_limit(MAX_COMPILED);
    builder.build().map_err(|error| invalid(file, format!("the pattern {expression:?}: {error}")))
}

fn too_many(file: &Path, what: &str, count: usize, most: usize) -> crate::Error {
    invalid(file, format!("it has {count} {what}; at most {most} are allowed"))
}
