//! Detection of a model's architecture from its own `config.json`: the first entry of a list of families whose names
//! match reads the rest of the file. The lists are with each capability's module in `models`, and `models/decoder.rs`
//! has that of the language models; the computation of a family is left to its file.

mod no_effect;
mod unread;

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::source::Unread;
pub(crate) use unread::{refuse as refuse_unread, refuse_listed, refuse_unlisted};

/// An entry of a capability's list of families. `A` is the type that a family's configuration is read into.
pub(crate) struct Family<A> {
    /// `model_type` in `config.json`, and the name that errors list.
    pub(crate) model_type: &'static str,
    /// `architectures` in `config.json`. They decide where the file has no `model_type`, and where several families
    /// share one.
    pub(crate) architectures: &'static [&'static str],
    pub(crate) read: fn(&Path, &serde_json::Value) -> Result<A>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Names {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    /// Name of the class in the repositories of diffusers.
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
}

impl Names {
    /// The name that errors show.
    fn shown(self) -> String {
        let first = self.architectures.unwrap_or_default().into_iter().next();
        self.model_type.or(first).or(self.class_name).unwrap_or("(none named)".into())
    }
}

/// The architecture of the model whose `config.json` this is. A setting that its family does not read, and that may have
/// an effect, is refused unless `unread` allows it.
///
/// # Errors
/// [`Error::UnreadSetting`]; those of [`find`].
pub(crate) fn find_whole<A>(
    families: &[Family<A>],
    capability: &'static str,
    file: &Path,
    config: &serde_json::Value,
    unread: Unread,
) -> Result<A> {
    read_whole(family_of(families, capability, file, config)?, file, config, unread)
}

/// The same of a file whose family is known.
///
/// # Errors
/// As [`find_whole`], but for an unknown family.
pub(crate) fn read_whole<A>(
    family: &Family<A>,
    file: &Path,
    config: &serde_json::Value,
    unread: Unread,
) -> Result<A> {
    let found = (family.read)(file, config)?;
    if unread == Unread::Refused {
        refuse_unread(file, config, |changed| (family.read)(file, changed).is_ok())?;
    }
    Ok(found)
}

/// The same for models whose last layers are of the task: a file that names architectures has to name one of a family's,
/// since others have no such layers.
///
/// # Errors
/// As [`find_whole`].
pub(crate) fn find_named<A>(
    families: &[Family<A>],
    capability: &'static str,
    file: &Path,
    config: &serde_json::Value,
    unread: Unread,
) -> Result<A> {
    let names: Names = parse(file, config)?;
    let known = || families.iter().flat_map(|family| family.architectures);
    let named = names.architectures.unwrap_or_default();
    match named.first() {
        Some(first) if !named.iter().any(|name| known().any(|known| known == name)) => {
            let supported = known().map(|name| Cow::from(*name)).collect();
            let found = first.clone();
            Err(Error::UnsupportedArchitecture { found, capability: capability.into(), supported })
        }
        _ => find_whole(families, capability, file, config, unread),
    }
}

/// The architecture in a part of a model's `config.json`.
///
/// # Errors
/// [`Error::UnsupportedArchitecture`], which lists what is supported; what the family finds wrong in the file.
pub(crate) fn find<A>(
    families: &[Family<A>],
    capability: &'static str,
    file: &Path,
    config: &serde_json::Value,
) -> Result<A> {
    (family_of(families, capability, file, config)?.read)(file, config)
}

fn family_of<'a, A>(
    families: &'a [Family<A>],
    capability: &'static str,
    file: &Path,
    config: &serde_json::Value,
) -> Result<&'a Family<A>> {
    let names: Names = parse(file, config)?;
    let architectures = names.architectures.as_deref().unwrap_or_default();
    let by_type = |family: &&Family<A>| names.model_type.as_deref() == Some(family.model_type);
    let by_name =
        |family: &&Family<A>| architectures.iter().any(|name| family.architectures.contains(&name.as_str()));
    let found = families
        .iter()
        .find(|family| by_type(family) && by_name(family))
        .or_else(|| families.iter().find(by_type))
        .or_else(|| families.iter().filter(|_| names.model_type.is_none()).find(by_name));
    found.ok_or_else(|| unsupported(families, capability, names.shown()))
}

/// The error for a model whose architecture is in no entry of the list.
pub(crate) fn unsupported<A>(families: &[Family<A>], capability: &'static str, found: String) -> Error {
    Error::UnsupportedArchitecture { found, capability: capability.into(), supported: names_of(families) }
}

/// The architecture in a configuration, if it is one with a head of another task than to write.
pub(crate) fn with_other_head(config: &serde_json::Value) -> Option<String> {
    const HEADS: [&str; 5] = [
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "ForMultipleChoice",
        "RewardModel",
    ];
    let names = Names::deserialize(config).unwrap_or_default().architectures.unwrap_or_default();
    names.into_iter().find(|name| HEADS.iter().any(|head| name.ends_with(head)))
}

/// Name of the architecture in a configuration, whatever the kind of model.
pub(crate) fn name_in(config: &serde_json::Value) -> String {
    Names::deserialize(config).unwrap_or_default().shown()
}

/// The families' names, for an error; where several share one `model_type`, the later ones by their architecture.
pub(crate) fn names_of<A>(families: &[Family<A>]) -> Vec<Cow<'static, str>> {
    let mut names: Vec<Cow<'static, str>> = Vec::with_capacity(families.len());
    for family in families {
        let own = family.architectures.first().copied().unwrap_or(family.model_type);
        let taken = names.iter().any(|name| name == family.model_type);
        names.push(if taken { own } else { family.model_type }.into());
    }
    names
}

/// Reads a family's part of `config.json`.
///
/// # Errors
/// [`Error::InvalidConfig`].
pub(crate) fn parse<T: DeserializeOwned>(file: &Path, config: &serde_json::Value) -> Result<T> {
    T::deserialize(config)
        .map_err(|error| Error::InvalidConfig { file: file.to_owned(), reason: error.to_string() })
}
