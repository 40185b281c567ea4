//! Errors of this crate, as plain data: they compare, serialise and travel to another process. Each variant names the
//! file, tensor or setting at fault; none ever holds an access token or a signed address. The fate of requests and
//! workers is left to [`model_actors::Error`], whose [`Cause`](model_actors::Cause) carries these.

mod lossy_path;
mod shortened;
mod class;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_actors::isolation::ProcessEnd;
use model_actors::{Bytes, Cause};
use serde::{Deserialize, Serialize};

/// The result of everything public in this crate.
///
/// ```
/// fn open(path: &str) -> candle_actors::Result<()> {
///     Err(candle_actors::Error::NoSuchFile { path: path.into() })
/// }
/// assert!(open("missing").is_err());
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Ways in which registering, loading or running a model fails. [`Error::kind`] classes them.
///
/// Its `Debug` form is its sentence, so that a `main` that returns a [`Result`] ends with one.
///
/// An error of queues, workers or memory is a variant of [`model_actors::Error`] instead. A new variant here needs its
/// sentence, and a row in the one list of classes and effects on retries, for which the compiler asks.
///
/// ```
/// use candle_actors::{Error, ErrorKind};
/// let error = Error::MissingTensor { tensor: "embeddings.word_embeddings.weight".into() };
/// assert!(error.to_string().contains("word_embeddings"));
/// assert_eq!(error.kind(), ErrorKind::Internal);
/// ```
#[derive(Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named for what they hold, and the message tells the rest")]
pub enum Error {
    /// The actor system refused or failed the request; a load's own error is found with [`Error::root`].
    #[error(transparent)]
    Actor(model_actors::Error),

    /// The model's directory does not exist or is not a directory.
    #[error("there is no directory {}", path.display())]
    NoSuchDirectory {
        #[serde(with = "lossy_path")]
        path: PathBuf,
    },
    /// The model's GGUF file does not exist.
    #[error("there is no file {}", path.display())]
    NoSuchFile {
        #[serde(with = "lossy_path")]
        path: PathBuf,
    },
    /// A file that the model needs is not there.
    #[error("{model} has no file {file}, which is needed")]
    MissingFile { model: String, file: String },
    /// A file could not be read.
    #[error("cannot read {}: {reason}", path.display())]
    UnreadableFile {
        #[serde(with = "lossy_path")]
        path: PathBuf,
        reason: String,
    },
    /// Something else lies in the place of a file: a Git LFS pointer, or a page of a web server.
    #[error("{} is {found}, not the file itself; {advice}", file.display())]
    Placeholder {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        found: Cow<'static, str>,
        advice: Cow<'static, str>,
    },
    /// The weights are only there as a pickle of a name that is not read, and as such can run code when it is opened.
    #[error(
        "{model} has its weights only as {file}, a pickle, which can run any code when it is opened; of pickles only \
         pytorch_model.bin is read, as tensors alone, in the folder with the model's other files; convert others to \
         safetensors first"
    )]
    PickleOnly { model: String, file: String },
    /// A configuration file is not JSON, or a setting in it is missing or out of range.
    #[error("{}: {reason}", file.display())]
    InvalidConfig {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },
    /// The model's architecture is in no family of the capability.
    #[error("the architecture {found} is not supported for {capability}; supported are: {}", supported.join(", "))]
    UnsupportedArchitecture {
        found: String,
        capability: Cow<'static, str>,
        supported: Vec<Cow<'static, str>>,
    },
    /// A setting in the model's configuration has a value that is not supported.
    #[error("{}: {what} {found} is not supported; supported are: {supported}", file.display())]
    UnsupportedSetting {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        what: Cow<'static, str>,
        found: String,
        supported: Cow<'static, str>,
    },
    /// The configuration has a setting that nothing reads and that may change what the model computes.
    #[error(
        "{}: the setting {setting}, {found}, is not supported for this model; `allow_unread` loads it without",
        file.display()
    )]
    UnreadSetting {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        setting: String,
        found: String,
    },

    /// A weight file's header is malformed.
    #[error("{} is no valid safetensors file: {reason}", file.display())]
    CorruptWeights {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },
    /// A file of PyTorch is malformed, or holds something other than tensors. Nothing of it was executed.
    #[error("{} is no usable file of tensors: {reason}; nothing of it was executed", file.display())]
    InvalidPickle {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },
    /// A GGUF file is malformed, or uses a feature that is not supported.
    #[error("{} is no usable GGUF file: {reason}", file.display())]
    InvalidGguf {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },
    /// A directory holds several GGUF files, and the source names none of them.
    #[error("{model} holds several GGUF files; name one of them: {}", files.join(", "))]
    SeveralGgufFiles { model: String, files: Vec<String> },
    /// A weight file ends before its header says.
    #[error("{} is truncated: its header speaks of {expected} bytes, it has {actual}", file.display())]
    TruncatedWeights {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        expected: u64,
        actual: u64,
    },
    /// The configuration calls for a tensor that the weights do not have.
    #[error("the weights have no tensor {tensor}, which the configuration calls for")]
    MissingTensor { tensor: String },
    /// The weights have a tensor that nothing reads and that may change what the model computes.
    #[error(
        "the tensor {tensor}, and {others} more, is not called for; `allow_unread` loads the model without"
    )]
    UnreadTensor { tensor: String, others: usize },
    /// A tensor has another shape than the configuration calls for.
    #[error("the tensor {tensor} has the shape {found:?}; the configuration calls for {expected:?}")]
    ShapeMismatch { tensor: String, expected: Vec<usize>, found: Vec<usize> },
    /// A tensor's numbers are of a type that cannot be computed with.
    #[error(
        "the tensor {tensor} holds {found} numbers; supported are F32, F16, BF16, F64, and F8_E4M3 and F8_E5M2 with scales"
    )]
    UnsupportedNumbers { tensor: String, found: String },
    /// A tensor holds a number that is not finite.
    #[error("the tensor {tensor} holds {value} at element {index}; the weights are damaged")]
    NotFinite { tensor: String, index: usize, value: String },
    /// The request asks for an adapter that its model was not registered with.
    #[error("the model has no adapter {adapter}; it was registered with {}", listed(known))]
    UnknownAdapter { adapter: String, known: Vec<String> },
    /// An adapter cannot be loaded for its model. Requests without it are served.
    #[error("the adapter {adapter} in {} cannot be used until it is mended and its model loaded anew: {error}", place.display())]
    BrokenAdapter {
        adapter: String,
        #[serde(with = "lossy_path")]
        place: PathBuf,
        error: Box<Error>,
    },
    /// The tokenizer's file is malformed.
    #[error("{} is no valid tokenizer: {reason}", file.display())]
    InvalidTokenizer {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },

    /// The device cannot be used.
    #[error("the device {device} cannot be used: {reason}")]
    Device { device: String, reason: String },
    /// There is no memory for an adapter of a model: what is there is in use.
    #[error(
        "the adapter {adapter} takes {needed} of memory, and {free} of {limit} are free; ask again once other requests have \
         ended, or raise the memory limit"
    )]
    NoRoomForAdapter { adapter: String, needed: Bytes, free: Bytes, limit: Bytes },
    /// A computation failed.
    #[error("the computation failed: {0}")]
    Compute(String),
    /// The device has no memory left for a computation.
    #[error("the device ran out of memory: {0}")]
    OutOfMemory(String),
    /// The model made a number that is not finite out of this input.
    #[error("the model made a vector with numbers that are not finite")]
    NotFiniteOutput,
    /// The input can never be served.
    #[error("{0}")]
    InvalidInput(String),
    /// There is no thread to run the model's chat template on at present.
    #[error("the chat template in {} cannot be run for now: {reason}", file.display())]
    TemplateUnavailable {
        #[serde(with = "lossy_path")]
        file: PathBuf,
        reason: String,
    },
    /// A JSON schema, regular expression or grammar is malformed, uses what is not supported, is too large, or no text can
    /// satisfy it. `place` is a JSON pointer into a schema, or a line and column.
    #[error("the {constraint} cannot be kept to{}: {reason}", at(place))]
    InvalidConstraint { constraint: String, place: String, reason: String },
    /// There is no thread to compile a JSON schema, regular expression or grammar on at present.
    #[error("the {constraint} cannot be compiled for now: {reason}")]
    ConstraintUnavailable { constraint: String, reason: String },
    /// A text that keeps to a schema, expression or grammar came to a point where the model has no token to go on with, or
    /// where going on takes more than the limits allow.
    #[error("the text cannot go on as its constraint says after {tokens} tokens: {reason}")]
    ConstraintFailed { tokens: usize, reason: String },
    /// A text that was to become a value was cut off before its end, by `max_tokens`, the context or a stop string.
    #[error(
        "the text was cut off after {tokens} tokens, before its value was whole; max_tokens or the context is too small"
    )]
    IncompleteOutput { tokens: usize },
    /// A text that was to become a value is none of its type.
    #[error("the text is no value of its type: {reason}")]
    UnexpectedOutput { reason: String },
    /// A prompt, its image included, leaves no room for an answer. One that is far too long is not tokenized to its end:
    /// `prompt` is the number of tokens by then, or the fewest that its bytes can have.
    #[error("the prompt has {prompt} tokens and the answer at least 1; {of} {limit}")]
    PromptTooLong { prompt: usize, limit: usize, of: Cow<'static, str> },
    /// A text to embed, or a query and a document, has more tokens than the model takes, and the request refuses to have it
    /// cut.
    #[error("the text {index} has {tokens} tokens; the model takes at most {limit}")]
    TextTooLong { index: usize, tokens: usize, limit: usize },
    /// An image is larger than the application allows.
    #[error("the image has {found} {what}; at most {limit} are allowed")]
    ImageTooLarge { what: Cow<'static, str>, found: u64, limit: u64 },
    /// An image is of a format, or uses a feature of one, that is not read.
    #[error("the image is not supported: it is {found}; supported are PNG, JPEG, WebP, GIF and BMP")]
    UnsupportedImage { found: String },
    /// An image is damaged.
    #[error("the image cannot be decoded: {reason}")]
    InvalidImage { reason: String },
    /// The process that decoded the image died of it, as a fresh one did if that had decoded others before.
    #[error("the image cannot be decoded: {end}")]
    ImageDecoderDied { end: ProcessEnd },
    /// An image took too long to decode.
    #[error("the image was not decoded within {} ms", after.as_millis())]
    ImageTooSlow { after: Duration },
    /// The images of other requests took all the memory that images may take.
    #[error("no room for images in {} ms: all requests together may hold {limit} of them", after.as_millis())]
    NoRoomForImages { limit: Bytes, after: Duration },
    /// An image's address may not be opened. One whose name leads to networks that are not allowed is
    /// [`Self::DownloadFailed`], as one whose name is unknown.
    #[error("the address {address} is refused: {reason}")]
    AddressRefused { address: String, reason: String },
    /// An image could not be fetched.
    #[error("the image at {address} could not be fetched: {reason}")]
    DownloadFailed { address: String, reason: String },
    /// A setting of the engine is out of range.
    #[error("the engine's setting {setting} is invalid: {reason}")]
    InvalidSetting { setting: Cow<'static, str>, reason: String },
    /// The load or run was stopped: nobody waits for it any more.
    #[error("stopped: nobody waits for it any more")]
    Stopped,

    /// The hub cannot be reached, and the file is not in the cache.
    #[error("cannot reach the hub for {repository}, and its {file} is not in the cache: {reason}")]
    HubUnreachable { repository: String, file: String, reason: String },
    /// Offline, and the file is not in the cache.
    #[error(
        "{repository} is not in the cache (its {file} is missing), and the hub may not be asked: offline"
    )]
    NotCached { repository: String, file: String },
    /// The hub knows no such repository, or hides it from this caller.
    #[error("the hub has no repository {repository}")]
    RepositoryNotFound { repository: String },
    /// The repository has no such revision.
    #[error("the repository {repository} has no revision {revision}")]
    RevisionNotFound { repository: String, revision: String },
    /// The hub refuses access.
    #[error(
        "no access to {repository} (status {status}): it may be private or gated, or not exist; set HF_TOKEN to a \
         token that may read it"
    )]
    AccessDenied { repository: String, status: u16 },
    /// The hub refuses further requests for some time.
    #[error("the hub refuses more requests for now")]
    RateLimited { retry_after: Option<Duration> },
    /// The hub answered with a server error.
    #[error("the hub failed with status {status} for {file} of {repository}")]
    HubFailed { repository: String, file: String, status: u16 },
    /// The hub's answer is malformed, or the transfer failed in another way.
    #[error("the transfer of {file} of {repository} failed: {reason}")]
    TransferFailed { repository: String, file: String, reason: String },
    /// A transfer made no progress.
    #[error("the transfer of {file} of {repository} stalled: nothing came for {} ms", after.as_millis())]
    TransferStalled { repository: String, file: String, after: Duration },
    /// A file came shorter or longer than announced.
    #[error(
        "{file} of {repository} was announced with {expected} and came with {actual}; it was thrown away"
    )]
    TransferTruncated { repository: String, file: String, expected: Bytes, actual: Bytes },
    /// A file's content is not what its checksum says.
    #[error("{file} of {repository} does not match its checksum; it was thrown away")]
    ChecksumMismatch { repository: String, file: String },
}

/// Names in words, also of none.
fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// A place in words, where one is known.
fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(", at {place}") }
}

impl Error {
    /// The error at the bottom: for [`Error::Actor`] the load's or run's own error where there is one.
    ///
    /// ```
    /// use candle_actors::Error;
    /// assert_eq!(Error::Stopped.root(), Error::Stopped);
    /// ```
    pub fn root(&self) -> Self {
        let cause = if let Self::Actor(actor) = self { actor.cause() } else { None };
        cause.and_then(Cause::data::<Self>).map_or_else(|| self.clone(), |own| own.root())
    }

    /// A file that could not be read, or the error of this type that the system's error carries.
    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        if let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return own.clone();
        }
        Self::UnreadableFile { path: path.to_owned(), reason: error.to_string() }
    }

    /// The same of a portion of texts, of which the first has this index.
    pub(crate) fn of_portion(self, first: usize) -> Self {
        match self {
            Self::TextTooLong { index, tokens, limit } => {
                Self::TextTooLong { index: first + index, tokens, limit }
            }
            other => other,
        }
    }

    /// A computation that cannot be carried out.
    pub(crate) fn compute(reason: impl Into<String>) -> Self {
        Self::Compute(reason.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The refusal of an input, which keeps its type where it has one.
impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        cause.data().unwrap_or_else(|| Self::InvalidInput(cause.message().to_owned()))
    }
}

/// An input error keeps its type on its way through a pool.
impl From<model_actors::Error> for Error {
    fn from(error: model_actors::Error) -> Self {
        match error {
            model_actors::Error::InvalidInput { cause } => cause.into(),
            error => Self::Actor(error),
        }
    }
}

/// Candle reports exhausted device memory only in words.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let words = error.to_string();
        let lower = words.to_lowercase();
        match lower.contains("out of memory") || lower.contains("out_of_memory") {
            true => Self::OutOfMemory(words),
            false => Self::Compute(words),
        }
    }
}

#[cfg(test)]
mod tests;
