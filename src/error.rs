//! Everything that can go wrong between a model's source and its vectors. Each variant names the file, tensor or
//! setting at fault; none ever holds an access token or a signed address. What happens to requests and workers is
//! left to [`model_actors::Error`], which carries these as its cause.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_actors::{Bytes, Cause, Failure};
use serde::{Deserialize, Serialize};

/// The result of everything public in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How loading or running a model can end other than well.
///
/// ```
/// use candle_actors::Error;
/// let error = Error::MissingTensor { tensor: "embeddings.word_embeddings.weight".into() };
/// assert!(error.to_string().contains("word_embeddings"));
/// ```
#[derive(Clone, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named for what they hold, and the message tells the rest")]
pub enum Error {
    /// The actor system refused or failed the request; a load's own error is found with [`Error::root`].
    #[error(transparent)]
    Actor(#[from] model_actors::Error),

    /// The model's directory does not exist or is not a directory.
    #[error("there is no directory {}", path.display())]
    NoSuchDirectory { path: PathBuf },
    /// A file that the model needs is not there.
    #[error("{model} has no file {file}, which is needed")]
    MissingFile { model: String, file: String },
    /// A file could not be read.
    #[error("cannot read {}: {reason}", path.display())]
    UnreadableFile { path: PathBuf, reason: String },
    /// The weights are only there as a pickle, which can run code when it is read.
    #[error(
        "{model} has its weights only as {file}, a pickle, which can run any code when it is opened; convert it to \
         safetensors first"
    )]
    PickleOnly { model: String, file: String },
    /// A configuration file is no JSON, or lacks a setting.
    #[error("{}: {reason}", file.display())]
    InvalidConfig { file: PathBuf, reason: String },
    /// The model is of a kind that no family here covers.
    #[error("the architecture {found} is not supported for {capability}; supported are: {}", supported.join(", "))]
    UnsupportedArchitecture {
        found: String,
        capability: Cow<'static, str>,
        supported: Vec<Cow<'static, str>>,
    },
    /// A part of the model is of a kind that is not supported.
    #[error("{}: {what} {found} is not supported; supported are: {supported}", file.display())]
    UnsupportedSetting { file: PathBuf, what: Cow<'static, str>, found: String, supported: Cow<'static, str> },

    /// A weight file's header makes no sense.
    #[error("{} is no valid safetensors file: {reason}", file.display())]
    CorruptWeights { file: PathBuf, reason: String },
    /// A GGUF file makes no sense, or holds what is not supported.
    #[error("{} is no usable GGUF file: {reason}", file.display())]
    InvalidGguf { file: PathBuf, reason: String },
    /// A directory holds several GGUF files, and nothing says which one is meant.
    #[error("{model} holds several GGUF files; name one of them: {}", files.join(", "))]
    SeveralGgufFiles { model: String, files: Vec<String> },
    /// A weight file ends before its header says.
    #[error("{} is truncated: its header speaks of {expected} bytes, it has {actual}", file.display())]
    TruncatedWeights { file: PathBuf, expected: u64, actual: u64 },
    /// The configuration calls for a tensor that the weights do not have.
    #[error("the weights have no tensor {tensor}, which the configuration calls for")]
    MissingTensor { tensor: String },
    /// A tensor has another shape than the configuration calls for.
    #[error("the tensor {tensor} has the shape {found:?}; the configuration calls for {expected:?}")]
    ShapeMismatch { tensor: String, expected: Vec<usize>, found: Vec<usize> },
    /// A tensor's numbers are of a type that cannot be computed with.
    #[error("the tensor {tensor} holds {found} numbers; supported are F32, F16, BF16 and F64")]
    UnsupportedNumbers { tensor: String, found: String },
    /// A tensor holds a number that is not finite.
    #[error("the tensor {tensor} holds {value} at element {index}; the weights are damaged")]
    NotFinite { tensor: String, index: usize, value: String },
    /// The tokenizer's file makes no sense.
    #[error("{} is no valid tokenizer: {reason}", file.display())]
    InvalidTokenizer { file: PathBuf, reason: String },

    /// The device cannot be used.
    #[error("the device {device} cannot be used: {reason}")]
    Device { device: String, reason: String },
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
    /// A prompt, its image included, leaves no room for an answer.
    #[error("the prompt has {prompt} tokens and the answer at least 1; {of} {limit}")]
    PromptTooLong { prompt: usize, limit: usize, of: Cow<'static, str> },
    /// An image is larger than the application allows.
    #[error("the image has {found} {what}; at most {limit} are allowed")]
    ImageTooLarge { what: Cow<'static, str>, found: u64, limit: u64 },
    /// An image is of a format, or uses a feature of one, that is not read.
    #[error("the image is not supported: it is {found}; supported are PNG, JPEG, WebP, GIF, BMP and TIFF")]
    UnsupportedImage { found: String },
    /// An image is damaged.
    #[error("the image cannot be decoded: {reason}")]
    InvalidImage { reason: String },
    /// An image took too long to decode.
    #[error("the image was not decoded within {} ms", after.as_millis())]
    ImageTooSlow { after: Duration },
    /// The images of other requests took all the memory that images may take.
    #[error("no room for images in {} ms: all requests together may hold {limit} of them", after.as_millis())]
    NoRoomForImages { limit: Bytes, after: Duration },
    /// An image's address may not be opened.
    #[error("the address {address} is refused: {reason}")]
    AddressRefused { address: String, reason: String },
    /// An image could not be fetched.
    #[error("the image at {address} could not be fetched: {reason}")]
    DownloadFailed { address: String, reason: String },
    /// A setting of the engine is out of range.
    #[error("the engine's setting {setting} is invalid: {reason}")]
    InvalidSetting { setting: Cow<'static, str>, reason: String },
    /// Nobody waits for it any more.
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
    /// The hub asks for patience.
    #[error("the hub refuses more requests for now")]
    RateLimited { retry_after: Option<Duration> },
    /// The hub failed.
    #[error("the hub failed with status {status} for {file} of {repository}")]
    HubFailed { repository: String, file: String, status: u16 },
    /// The hub's answer makes no sense, or the transfer failed in another way.
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

impl Error {
    /// The error at the bottom: for [`Error::Actor`] the load's or run's own error where there is one.
    ///
    /// ```
    /// use candle_actors::Error;
    /// assert!(matches!(Error::Stopped.root(), Error::Stopped));
    /// ```
    pub fn root(&self) -> Error {
        let Self::Actor(actor) = self else { return self.clone() };
        match actor.cause().and_then(Cause::data::<Error>) {
            Some(own) => own.root(),
            None => self.clone(),
        }
    }

    /// A file that could not be read.
    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self::UnreadableFile { path: path.to_owned(), reason: error.to_string() }
    }

    /// A computation that cannot be carried out.
    pub(crate) fn compute(reason: impl Into<String>) -> Self {
        Self::Compute(reason.into())
    }

    /// True for what only another input can mend.
    fn is_input(&self) -> bool {
        matches!(
            self,
            Self::InvalidInput(_)
                | Self::PromptTooLong { .. }
                | Self::ImageTooLarge { .. }
                | Self::UnsupportedImage { .. }
                | Self::InvalidImage { .. }
                | Self::AddressRefused { .. }
        )
    }

    /// True for what may go better next time.
    fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::HubUnreachable { .. }
                | Self::RateLimited { .. }
                | Self::HubFailed { .. }
                | Self::TransferFailed { .. }
                | Self::TransferStalled { .. }
                | Self::TransferTruncated { .. }
                | Self::ChecksumMismatch { .. }
                | Self::UnreadableFile { .. }
                | Self::DownloadFailed { .. }
                | Self::Compute(_)
                | Self::NotFiniteOutput
        )
    }
}

/// Prints the sentence, so that a `main` that returns a [`Result`] ends with one.
impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
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

impl From<Error> for Cause {
    fn from(error: Error) -> Self {
        Self::with_data(&error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Stopped => Failure::stopped(),
            error @ Error::OutOfMemory(_) => Failure::out_of_memory(error),
            error if error.is_input() => Failure::invalid_input(error),
            error if error.is_transient() => Failure::failed(error),
            error => Failure::permanent(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_actors::FailureKind;

    #[test]
    fn what_may_mend_itself_is_retried_and_the_rest_is_not() {
        let stalled = Error::TransferStalled {
            repository: "a/b".into(),
            file: "config.json".into(),
            after: Duration::from_secs(1),
        };
        assert_eq!(Failure::from(stalled).kind, FailureKind::Failed);
        let missing = Error::MissingTensor { tensor: "x".into() };
        assert_eq!(Failure::from(missing).kind, FailureKind::Permanent);
        assert_eq!(Failure::from(Error::InvalidInput("no".into())).kind, FailureKind::InvalidInput);
        let memory = candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into());
        assert_eq!(Failure::from(Error::from(memory)).kind, FailureKind::OutOfMemory);
    }

    #[test]
    fn the_root_of_an_actor_error_is_the_loads_own() {
        let cause = Cause::from(Error::RepositoryNotFound { repository: "a/b".into() });
        let failure = FailureKind::Permanent;
        let actor = model_actors::Error::SpawnFailed { model: "a/b".into(), failure, cause };
        assert!(matches!(Error::from(actor).root(), Error::RepositoryNotFound { .. }));
    }

    #[test]
    fn the_debug_form_of_an_error_is_its_sentence() {
        let error = Error::NoSuchDirectory { path: "/no/such".into() };
        assert_eq!(format!("{error:?}"), "there is no directory /no/such");
    }
}
