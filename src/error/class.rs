//! The class of each error for callers, and its effect on retries: one list, for which the compiler asks a row of each
//! variant. Sentences and fields are left to the variants themselves.

use std::time::Duration;

use model_actors::{Cause, ErrorKind, Failure, FailureKind};

use super::Error;

/// Shortest time after which images that found no room are worth another attempt.
const RETRY_IMAGES_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// The class of the error, which says what a caller can do about it and maps to an HTTP status. An error of a load
    /// or run is classed by its own variant.
    ///
    /// ```
    /// use candle_actors::{Error, ErrorKind};
    /// let error = Error::PromptTooLong { prompt: 900, limit: 512, of: "the model's context has".into() };
    /// assert_eq!(error.kind(), ErrorKind::InvalidInput);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.class().0
    }

    /// The class for callers, and the effect on retries: another input is needed, the next attempt may succeed, or
    /// all fail alike.
    fn class(&self) -> (ErrorKind, FailureKind) {
        let unavailable = ErrorKind::Unavailable { retry_after: None };
        match self {
            Self::Actor(actor) => {
                let kind = match self.root() {
                    Self::Actor(_) => actor.kind(),
                    // The breaker knows when the next attempt makes sense.
                    _ if matches!(actor, model_actors::Error::CircuitOpen { .. }) => actor.kind(),
                    own => own.kind(),
                };
                (kind, FailureKind::Permanent)
            }
            Self::UnknownAdapter { .. } => (ErrorKind::NotFound, FailureKind::InvalidInput),
            // The next request for it tries to load it anew.
            Self::BrokenAdapter { error, .. } => error.class(),
            Self::NoSuchDirectory { .. }
            | Self::NoSuchFile { .. }
            | Self::RepositoryNotFound { .. }
            | Self::RevisionNotFound { .. } => (ErrorKind::NotFound, FailureKind::Permanent),
            Self::InvalidInput(_)
            | Self::PromptTooLong { .. }
            | Self::TextTooLong { .. }
            | Self::InvalidConstraint { .. }
            | Self::ConstraintFailed { .. }
            | Self::IncompleteOutput { .. }
            | Self::ImageTooLarge { .. }
            | Self::UnsupportedImage { .. }
            | Self::InvalidImage { .. }
            | Self::AddressRefused { .. } => (ErrorKind::InvalidInput, FailureKind::InvalidInput),
            Self::InvalidSetting { .. } => (ErrorKind::InvalidInput, FailureKind::Permanent),
            Self::NoRoomForImages { after, .. } => {
                let retry_after = (*after).max(RETRY_IMAGES_AFTER);
                (ErrorKind::Overloaded { retry_after }, FailureKind::Permanent)
            }
            Self::ImageTooSlow { .. } => (ErrorKind::Timeout, FailureKind::Permanent),
            Self::RateLimited { retry_after } => {
                (ErrorKind::Unavailable { retry_after: *retry_after }, FailureKind::Failed)
            }
            Self::HubUnreachable { .. }
            | Self::HubFailed { .. }
            | Self::TransferFailed { .. }
            | Self::TransferStalled { .. }
            | Self::TransferTruncated { .. }
            | Self::ChecksumMismatch { .. }
            | Self::TemplateUnavailable { .. }
            | Self::ConstraintUnavailable { .. }
            | Self::DownloadFailed { .. } => (unavailable, FailureKind::Failed),
            Self::NotCached { .. } => (unavailable, FailureKind::Permanent),
            Self::Stopped => (ErrorKind::Cancelled, FailureKind::Stopped),
            Self::OutOfMemory(_) | Self::NoRoomForAdapter { .. } => {
                (ErrorKind::OutOfMemory, FailureKind::OutOfMemory)
            }
            // It may be the image, and it may be that the machine had no memory left.
            Self::ImageDecoderDied { .. }
            | Self::UnreadableFile { .. }
            | Self::Compute(_)
            | Self::UnexpectedOutput { .. }
            | Self::NotFiniteOutput => (ErrorKind::Internal, FailureKind::Failed),
            Self::MissingFile { .. }
            | Self::Placeholder { .. }
            | Self::PickleOnly { .. }
            | Self::InvalidConfig { .. }
            | Self::UnsupportedArchitecture { .. }
            | Self::UnsupportedSetting { .. }
            | Self::UnreadSetting { .. }
            | Self::UnreadTensor { .. }
            | Self::CorruptWeights { .. }
            | Self::InvalidPickle { .. }
            | Self::InvalidGguf { .. }
            | Self::SeveralGgufFiles { .. }
            | Self::TruncatedWeights { .. }
            | Self::MissingTensor { .. }
            | Self::ShapeMismatch { .. }
            | Self::UnsupportedNumbers { .. }
            | Self::NotFinite { .. }
            | Self::InvalidTokenizer { .. }
            | Self::Device { .. }
            | Self::AccessDenied { .. } => (ErrorKind::Internal, FailureKind::Permanent),
        }
    }
}

/// A failure goes to all callers, to the log and to every subscriber of events, so texts that it has from a file are cut.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.class().1 {
            FailureKind::Stopped => Failure::stopped(),
            kind => Failure::new(kind, Cause::with_data(&error.shortened())),
        }
    }
}
