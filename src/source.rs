//! Where a model's files come from: a directory, or a repository of the hub. A source is only a name until a load
//! opens it; the transfer itself is left to `hub`.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use model_actors::LoadContext;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::{HubFiles, HubSettings};
use crate::limits::MAX_CONFIG_BYTES;

/// Where a model is. Making one does no I/O.
///
/// ```
/// use candle_actors::Source;
/// let source = Source::repository("sentence-transformers/all-MiniLM-L6-v2").revision("main");
/// assert_eq!(source.to_string(), "sentence-transformers/all-MiniLM-L6-v2@main");
/// assert_eq!(Source::directory("models/mine").to_string(), "models/mine");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A directory with `config.json`, `tokenizer.json` and the weights.
    Directory(PathBuf),
    /// A repository on the Hugging Face hub, or on the server that `HF_ENDPOINT` names; needs the feature `hub`.
    Repository {
        /// Its name, `owner/name`.
        name: String,
        /// A branch, tag or commit; without, `main`.
        revision: Option<String>,
    },
}

impl Source {
    /// A directory.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }

    /// A repository at its main branch.
    pub fn repository(name: impl Into<String>) -> Self {
        Self::Repository { name: name.into(), revision: None }
    }

    /// The same repository at another revision. A directory has none and stays as it is.
    pub fn revision(self, revision: impl Into<String>) -> Self {
        match self {
            Self::Repository { name, .. } => Self::Repository { name, revision: Some(revision.into()) },
            directory => directory,
        }
    }

    /// A directory if one of that name exists or the text can be no repository's name, else a repository, with its
    /// revision after an `@`. Looks at the disk.
    ///
    /// ```
    /// use candle_actors::Source;
    /// assert_eq!(Source::parse("no-one/nothing@v1"), Source::repository("no-one/nothing").revision("v1"));
    /// assert_eq!(Source::parse("./here"), Source::directory("./here"));
    /// ```
    pub fn parse(text: &str) -> Self {
        let (name, revision) = text.split_once('@').map_or((text, None), |(name, rest)| (name, Some(rest)));
        if Path::new(text).is_dir() || !is_repository_name(name) {
            return Self::directory(text);
        }
        Self::Repository { name: name.to_owned(), revision: revision.map(str::to_owned) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(formatter),
            Self::Repository { name, revision: Some(revision) } => write!(formatter, "{name}@{revision}"),
            Self::Repository { name, revision: None } => formatter.write_str(name),
        }
    }
}

/// `owner/name`, each of letters, digits, `-`, `_` and `.`, and not a path.
fn is_repository_name(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// An opened source: gives the path of a file by its name in the model, fetching it first where it must.
pub(crate) enum Files {
    Directory(PathBuf),
    #[cfg(feature = "hub")]
    Hub(Box<HubFiles>),
}

impl Files {
    #[cfg(feature = "hub")]
    pub(crate) fn open(source: &Source, hub: &HubSettings) -> Result<Self> {
        match source {
            Source::Directory(path) => Self::open_directory(path),
            Source::Repository { name, revision } => {
                Ok(Self::Hub(Box::new(HubFiles::open(hub, name, revision.as_deref()))))
            }
        }
    }

    #[cfg(not(feature = "hub"))]
    pub(crate) fn open(source: &Source) -> Result<Self> {
        match source {
            Source::Directory(path) => Self::open_directory(path),
            Source::Repository { .. } => Err(Error::InvalidSetting {
                setting: "source",
                reason: format!("{source} is a repository, and this build is without the feature `hub`"),
            }),
        }
    }

    fn open_directory(path: &Path) -> Result<Self> {
        if path.is_dir() {
            Ok(Self::Directory(path.to_owned()))
        } else {
            Err(Error::NoSuchDirectory { path: path.to_owned() })
        }
    }

    /// The file's path.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the model has none.
    pub(crate) fn required(&self, file: &str, context: &LoadContext) -> Result<PathBuf> {
        match self.optional(file, context)? {
            Some(path) => Ok(path),
            None => Err(self.missing(file, context)),
        }
    }

    /// Why a needed file is not there.
    pub(crate) fn missing(&self, file: &str, context: &LoadContext) -> Error {
        match self {
            Self::Directory(_) => Error::MissingFile { model: self.name(), file: file.to_owned() },
            #[cfg(feature = "hub")]
            Self::Hub(files) => files.missing(file, context),
        }
    }

    /// Nothing more is needed for now: lets go of what a transfer holds.
    pub(crate) fn rest(&self) {
        #[cfg(feature = "hub")]
        if let Self::Hub(files) = self {
            files.rest();
        }
    }

    /// The file's path, or nothing if the model has none.
    pub(crate) fn optional(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        if context.should_stop() {
            return Err(Error::Stopped);
        }
        self.check_name(file)?;
        match self {
            Self::Directory(root) => Ok(Some(root.join(file)).filter(|path| path.is_file())),
            #[cfg(feature = "hub")]
            Self::Hub(files) => files.fetch(file, context),
        }
    }

    /// Whether the model has the file, without fetching it.
    pub(crate) fn exists(&self, file: &str, context: &LoadContext) -> Result<bool> {
        self.check_name(file)?;
        match self {
            Self::Directory(_) => Ok(self.optional(file, context)?.is_some()),
            #[cfg(feature = "hub")]
            Self::Hub(files) => files.exists(file, context),
        }
    }

    /// The file, read as JSON.
    pub(crate) fn required_json<T: DeserializeOwned>(&self, file: &str, context: &LoadContext) -> Result<T> {
        read_json(&self.required(file, context)?)
    }

    /// The file, read as JSON, or nothing if the model has none.
    pub(crate) fn optional_json<T: DeserializeOwned>(
        &self,
        file: &str,
        context: &LoadContext,
    ) -> Result<Option<T>> {
        self.optional(file, context)?.map(|path| read_json(&path)).transpose()
    }

    /// The model, as errors name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Directory(root) => root.display().to_string(),
            #[cfg(feature = "hub")]
            Self::Hub(files) => files.name().to_owned(),
        }
    }

    /// Names come from the model's own files, which may lie: none may lead out of the model.
    fn check_name(&self, file: &str) -> Result<()> {
        let stays = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        if stays && !file.is_empty() {
            return Ok(());
        }
        let reason = format!("the file name {file:?} leads out of the model");
        Err(Error::InvalidConfig { file: PathBuf::from(self.name()), reason })
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let unreadable = |source| Error::UnreadableFile { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    let invalid = |reason| Error::InvalidConfig { file: path.to_owned(), reason };
    if bytes > MAX_CONFIG_BYTES {
        return Err(invalid(format!("it has {bytes} bytes; at most {MAX_CONFIG_BYTES} are allowed")));
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_lead_out_of_the_model() {
        let files = Files::Directory(PathBuf::from("/models/mine"));
        assert!(files.check_name("1_Pooling/config.json").is_ok());
        for name in ["../secret", "/etc/passwd", "a/../../b", ""] {
            assert!(matches!(files.check_name(name), Err(Error::InvalidConfig { .. })), "{name}");
        }
    }

    #[test]
    fn a_text_is_a_directory_unless_it_can_be_a_repository() {
        assert_eq!(Source::parse("."), Source::directory("."));
        assert_eq!(Source::parse("/no/such"), Source::directory("/no/such"));
        assert_eq!(Source::parse("a/b/c"), Source::directory("a/b/c"));
        assert_eq!(Source::parse("a/b"), Source::repository("a/b"));
    }
}
