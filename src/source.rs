//! Sources of a model's files: a directory, or a repository of the hub. A source is only a name until a load opens it;
//! the transfer itself is left to `hub`.

mod names;
mod gguf_part;
mod placeholder;
mod folder;
mod gguf_files;
mod python_numbers;
mod json;
mod taken;
#[cfg(feature = "cluster")]
mod digest;
mod model_files;
mod adapter_sources;

use std::fmt;
use std::path::{Path, PathBuf};

use model_actors::LoadContext;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::HubFiles;
use crate::hub_settings::HubSettings;
use crate::secrets::{HIDDEN, looks_like_address};
pub(crate) use adapter_sources::{AdapterSources, OpenAdapters};
use folder::{Folder, is_gguf, is_pickle};
pub(crate) use folder::{open, read};
pub(crate) use gguf_part::GgufPart;
pub(crate) use json::{Entries, Values, read_config, read_json};
pub use model_files::ModelFiles;
use names::{is_name, is_plain, is_repository_name};
use taken::Taken;

/// Source of a model's files. Making one does no I/O. An address is no source: it may hold a password or a token, so
/// it is refused, and nothing shows it.
///
/// ```
/// use candle_actors::Source;
/// let source = Source::repository("sentence-transformers/all-MiniLM-L6-v2").revision("main");
/// assert_eq!(source.to_string(), "sentence-transformers/all-MiniLM-L6-v2@main");
/// assert_eq!(Source::directory("models/mine").to_string(), "models/mine");
/// assert_eq!(Source::parse("https://user:hf_secret@huggingface.co/a/b").to_string(), "(an address)");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// A directory with `config.json`, `tokenizer.json` and the weights, or with one GGUF file; or a GGUF file. In a
    /// directory, `tokenizer.json` and the chat template beside the GGUF file go before those in it. A file that is
    /// named itself is taken alone, as llama.cpp does: its own tokenizer and chat template are the model's.
    Directory {
        /// Path of the directory or file.
        path: PathBuf,
        /// The one GGUF file of the directory that is the model, taken alone.
        gguf: Option<String>,
        /// The GGUF file beside it that has its vision tower: see [`Source::projector`].
        projector: Option<String>,
        /// Links in the directory may lead out of it: see [`Source::follow_links`].
        follow_links: bool,
    },
    /// A repository on the Hugging Face hub, or on the server that `HF_ENDPOINT` names; needs the feature `hub`.
    Repository {
        /// Its name, `owner/name`.
        name: String,
        /// A branch, tag or commit; without, `main`.
        revision: Option<String>,
        /// The one GGUF file of it that is the model; without, the model is in safetensors. The repository's
        /// `tokenizer.json` and chat template, where it has them, go before those in the file.
        gguf: Option<String>,
        /// The GGUF file of it that has the vision tower: see [`Source::projector`].
        projector: Option<String>,
    },
}

impl Source {
    /// Creates the source of a directory.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory { path: path.into(), gguf: None, projector: None, follow_links: false }
    }

    /// Allows symbolic links that lead out of the directory. Otherwise they are refused, as a model that somebody
    /// else has made could show any file of this machine; those of the snapshots in the cache of the Hugging Face tools are
    /// followed in any case, but not those that `huggingface-cli download --local-dir` left in folders of its own before
    /// version 0.23. A repository has none, and stays as it is.
    ///
    /// ```
    /// use candle_actors::Source;
    /// let source = Source::directory("models/mine").follow_links();
    /// assert_ne!(source, Source::directory("models/mine"));
    /// ```
    #[must_use]
    pub fn follow_links(mut self) -> Self {
        if let Self::Directory { follow_links, .. } = &mut self {
            *follow_links = true;
        }
        self
    }

    /// Creates the source of a repository at its main branch.
    pub fn repository(name: impl Into<String>) -> Self {
        Self::Repository { name: name.into(), revision: None, gguf: None, projector: None }
    }

    /// Selects a revision of the repository. A directory has none and stays as it is.
    pub fn revision(mut self, name: impl Into<String>) -> Self {
        if let Self::Repository { revision, .. } = &mut self {
            *revision = Some(name.into());
        }
        self
    }

    /// Selects one GGUF file of the repository or directory, which often hold several. Of a directory, the file
    /// is taken alone.
    ///
    /// ```
    /// use candle_actors::Source;
    /// let source = Source::repository("somebody/model-GGUF").gguf("model-Q4_K_M.gguf");
    /// assert_eq!(source.to_string(), "somebody/model-GGUF/model-Q4_K_M.gguf");
    /// ```
    pub fn gguf(mut self, file: impl Into<String>) -> Self {
        let (Self::Directory { gguf, .. } | Self::Repository { gguf, .. }) = &mut self;
        *gguf = Some(file.into());
        self
    }

    /// Selects the GGUF file with the vision tower of a model that looks at images, which llama.cpp calls `mmproj`. Of a
    /// directory with one such file it is that file, without being named; of a repository none is. Other models
    /// leave it alone.
    ///
    /// ```
    /// use candle_actors::Source;
    /// let source = Source::repository("ggml-org/gemma-3-4b-it-GGUF")
    ///     .gguf("gemma-3-4b-it-Q4_K_M.gguf")
    ///     .projector("mmproj-model-f16.gguf");
    /// assert_eq!(source.to_string(), "ggml-org/gemma-3-4b-it-GGUF/gemma-3-4b-it-Q4_K_M.gguf");
    /// ```
    #[must_use]
    pub fn projector(mut self, file: impl Into<String>) -> Self {
        let (Self::Directory { projector, .. } | Self::Repository { projector, .. }) = &mut self;
        *projector = Some(file.into());
        self
    }

    /// Reads a source as a person writes it: a path, or the name of a repository with its revision after an `@`.
    /// `owner/name/file.gguf` is one GGUF file of a repository. Looks at the disk.
    ///
    /// A text is a path if it exists, if it can be no repository's name, or if, without a revision, it begins with a
    /// folder that exists here; so a mistyped path is reported as such, and is not looked for at the hub.
    ///
    /// ```
    /// use candle_actors::Source;
    /// assert_eq!(Source::parse("no-one/nothing@v1"), Source::repository("no-one/nothing").revision("v1"));
    /// assert_eq!(Source::parse("./here"), Source::directory("./here"));
    /// assert_eq!(Source::parse("src/mistyped"), Source::directory("src/mistyped"));
    /// ```
    pub fn parse(text: &str) -> Self {
        let (name, revision) = text.split_once('@').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let (name, gguf) = match name.rsplit_once('/') {
            Some((rest, file)) if is_gguf(Path::new(file)) && is_repository_name(rest) => (rest, Some(file)),
            _ => (name, None),
        };
        let begins_here =
            revision.is_none() && name.split_once('/').is_some_and(|(folder, _)| Path::new(folder).is_dir());
        if Path::new(text).exists() || begins_here || is_gguf(Path::new(name)) || !is_repository_name(name) {
            return Self::directory(text);
        }
        let [revision, gguf] = [revision, gguf].map(|part| part.map(str::to_owned));
        Self::Repository { name: name.to_owned(), revision, gguf, projector: None }
    }

    /// Looks whether a directory or file is there, which costs no wait; of a repository nothing can be told without one.
    ///
    /// # Errors
    /// [`Error::NoSuchDirectory`], [`Error::NoSuchFile`] or [`Error::PickleOnly`]; [`Error::InvalidSetting`] for an
    /// address, for a path as a repository's name, and for a repository in a build without the feature `hub`.
    pub(crate) fn check(&self) -> Result<()> {
        Files::open(self, &HubSettings::default()).map(drop)
    }

    /// True if an address was given in place of a path or a name.
    fn is_address(&self) -> bool {
        match self {
            Self::Directory { path, .. } => looks_like_address(path),
            Self::Repository { name, .. } => looks_like_address(Path::new(name)),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { .. } => write!(formatter, "Directory({self})"),
            Self::Repository { .. } => write!(formatter, "Repository({self})"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            address if address.is_address() => formatter.write_str(HIDDEN),
            Self::Directory { path, gguf: Some(file), .. } => path.join(file).display().fmt(formatter),
            Self::Directory { path, .. } => path.display().fmt(formatter),
            Self::Repository { name, revision, gguf, .. } => {
                formatter.write_str(name)?;
                if let Some(file) = gguf {
                    write!(formatter, "/{file}")?;
                }
                revision.as_ref().map_or(Ok(()), |revision| write!(formatter, "@{revision}"))
            }
        }
    }
}

/// The fate of a model with a setting or a tensor that nothing reads and that is not known to have no effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is refused.
    #[default]
    Refused,
    /// It is loaded without.
    Allowed,
}

/// An opened source: gives the path of a file by its name in the model, and fetches it first if necessary.
pub(crate) struct Files {
    place: Place,
    /// The GGUF file with the model's vision tower, where one was given: its path, or its name in a repository.
    projector: Option<PathBuf>,
    pub(crate) unread: Unread,
    /// Matrices of safetensors files are quantised at load.
    pub(crate) eight_bit: bool,
    /// The adapters of the model.
    pub(crate) adapters: OpenAdapters,
    taken: Taken,
}

enum Place {
    Directory(Folder),
    /// With the name of the GGUF file that is the model, where one is.
    #[cfg(feature = "hub")]
    Hub(Box<HubFiles>, Option<String>),
}

impl From<Place> for Files {
    fn from(place: Place) -> Self {
        let (adapters, taken) = (OpenAdapters::default(), Taken::default());
        Self { place, projector: None, unread: Unread::default(), eight_bit: false, adapters, taken }
    }
}

/// The folder of a file; of a bare name this one.
fn parent_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Files {
    /// Opens a source. Only the files of a directory are looked at; nothing is fetched yet.
    #[cfg_attr(not(feature = "hub"), allow(unused_variables, reason = "only the hub has settings"))]
    pub(crate) fn open(source: &Source, hub: &HubSettings) -> Result<Self> {
        match source {
            Source::Directory { path, gguf, projector, follow_links } => {
                let model = gguf.as_ref().map_or(path.clone(), |file| path.join(file));
                // An address is not looked at.
                let opened = Self::open_directory(&model, *follow_links)?;
                if let Some(file) = gguf {
                    Folder::new(path, *follow_links).find(file)?;
                }
                let folder = if gguf.is_none() && path.is_file() { parent_of(path) } else { path };
                let find = |file: &String| {
                    let found = Folder::new(folder, *follow_links).find(file)?;
                    found.ok_or_else(|| Error::NoSuchFile { path: path.join(file) })
                };
                Ok(Self { projector: projector.as_ref().map(find).transpose()?, ..opened })
            }
            address if address.is_address() => Err(refused_address()),
            Source::Repository { name, .. } if !is_name(name) && !is_repository_name(name) => {
                let reason =
                    format!("{name:?} is no name of a repository, owner/name; a path is a directory");
                Err(Error::InvalidSetting { setting: "source".into(), reason })
            }
            Source::Repository { revision: Some(name), .. }
            | Source::Repository { gguf: Some(name), .. }
            | Source::Repository { projector: Some(name), .. }
                if !is_plain(name) =>
            {
                let reason = format!("{name:?} is no name of a revision or of a file");
                Err(Error::InvalidSetting { setting: "source".into(), reason })
            }
            #[cfg(feature = "hub")]
            Source::Repository { name, revision, gguf, projector } => {
                let place =
                    Place::Hub(Box::new(HubFiles::open(hub, name, revision.as_deref())), gguf.clone());
                Ok(Self { projector: projector.as_ref().map(PathBuf::from), ..place.into() })
            }
            #[cfg(not(feature = "hub"))]
            Source::Repository { .. } => Err(without_hub(source)),
        }
    }

    /// The same files with this fate of unread parts.
    pub(crate) fn with_unread(self, unread: Unread) -> Self {
        Self { unread, ..self }
    }

    /// The same files, whose matrices are quantised at load or not.
    pub(crate) fn with_eight_bit(self, eight_bit: bool) -> Self {
        Self { eight_bit, ..self }
    }

    /// The same files of a model with these adapters.
    pub(crate) fn with_adapters(self, sources: AdapterSources, hub: HubSettings) -> Self {
        let adapters = OpenAdapters { sources, hub, unread: self.unread };
        Self { adapters, ..self }
    }

    /// The files of a directory, whatever is in it.
    #[cfg(any(test, feature = "fuzzing", feature = "benchmarks"))]
    pub(crate) fn directory(path: &Path) -> Self {
        Place::Directory(Folder::new(path, false)).into()
    }

    fn open_directory(path: &Path, follow_links: bool) -> Result<Self> {
        match path {
            _ if path.is_dir() || is_gguf(path) && path.is_file() => {
                Ok(Place::Directory(Folder::new(path, follow_links)).into())
            }
            _ if looks_like_address(path) => Err(refused_address()),
            _ if is_pickle(path) && path.is_file() => {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(Error::PickleOnly { model: path.display().to_string(), file })
            }
            _ if is_gguf(path) => Err(Error::NoSuchFile { path: path.to_owned() }),
            _ => Err(Error::NoSuchDirectory { path: path.to_owned() }),
        }
    }

    /// The file's path.
    ///
    /// # Errors
    /// [`Error::MissingFile`] if the model has none; those of opening it, so that a file that cannot be read is told of
    /// before others are read for minutes.
    pub(crate) fn required(&self, file: &str, context: &LoadContext) -> Result<PathBuf> {
        self.readable(file, context).inspect(|path| self.taken.note(file, path))
    }

    fn readable(&self, file: &str, context: &LoadContext) -> Result<PathBuf> {
        match self.look(file, context)? {
            Some(path) => {
                open(&path).map(|_| ()).map_err(|error| Error::unreadable(&path, &error)).map(|()| path)
            }
            None => Err(self.missing(file, context)),
        }
    }

    /// The error for a needed file that is not there.
    #[cfg_attr(not(feature = "hub"), allow(unused_variables, reason = "only the hub takes its time"))]
    pub(crate) fn missing(&self, file: &str, context: &LoadContext) -> Error {
        match &self.place {
            Place::Directory(_) => Error::MissingFile { model: self.name(), file: file.to_owned() },
            #[cfg(feature = "hub")]
            Place::Hub(files, _) => files.missing(file, context),
        }
    }

    /// Closes the connection of a transfer, as nothing more is needed for now.
    pub(crate) fn rest(&self) {
        #[cfg(feature = "hub")]
        if let Place::Hub(files, _) = &self.place {
            files.rest();
        }
    }

    /// Digest of the files that have been asked for so far, and of these settings.
    ///
    /// # Errors
    /// [`Error::UnreadableFile`]; [`Error::Stopped`].
    #[cfg(feature = "cluster")]
    pub(crate) fn digest(&self, settings: &str, context: &LoadContext) -> Result<String> {
        digest::of(&self.taken.files(), settings, context)
    }

    /// The file's path, or nothing if the model has none.
    pub(crate) fn optional(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        let found = self.look(file, context)?;
        found.iter().for_each(|path| self.taken.note(file, path));
        Ok(found)
    }

    fn look(&self, file: &str, context: &LoadContext) -> Result<Option<PathBuf>> {
        if context.should_stop() {
            return Err(Error::Stopped);
        }
        self.check_name(file)?;
        match &self.place {
            Place::Directory(folder) => folder.find(file),
            #[cfg(feature = "hub")]
            Place::Hub(files, _) => files.fetch(file, context),
        }
    }

    /// The directory or file that was named, where one was.
    pub(crate) fn root(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory(folder) => Some(folder.path()),
            #[cfg(feature = "hub")]
            Place::Hub(..) => None,
        }
    }

    /// A pickle in a folder of a directory, which is named with a slash at its end or empty, if no safetensors are there.
    pub(crate) fn pickle(&self, folder: &str) -> Option<String> {
        match &self.place {
            Place::Directory(root) => root.pickle(folder),
            #[cfg(feature = "hub")]
            Place::Hub(..) => None,
        }
    }

    /// True if the model has the file; does not fetch it.
    pub(crate) fn exists(&self, file: &str, context: &LoadContext) -> Result<bool> {
        self.check_name(file)?;
        match &self.place {
            Place::Directory(_) => Ok(self.look(file, context)?.is_some()),
            #[cfg(feature = "hub")]
            Place::Hub(files, _) => files.exists(file, context),
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
        match &self.place {
            Place::Directory(folder) => folder.path().display().to_string(),
            #[cfg(feature = "hub")]
            Place::Hub(files, _) => files.name().to_owned(),
        }
    }

    /// Names come from the model's own files, which may lie: none may lead out of the model.
    fn check_name(&self, file: &str) -> Result<()> {
        if is_plain(file) {
            return Ok(());
        }
        let reason = format!(
            "the file name {file:?} leads out of the model, or has characters that names do not have"
        );
        Err(Error::InvalidConfig { file: PathBuf::from(self.name()), reason })
    }
}

#[cfg(not(feature = "hub"))]
fn without_hub(source: &Source) -> Error {
    let reason = format!("{source} is a repository, and this build is without the feature `hub`");
    Error::InvalidSetting { setting: "source".into(), reason }
}

fn refused_address() -> Error {
    let reason = "it is an address; a directory is needed, or a repository by its name, owner/name";
    Error::InvalidSetting { setting: "source".into(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
