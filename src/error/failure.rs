//! The way of an error through a worker: the kind of [`Failure`] that it is reported as, which decides whether the
//! scheduler tries again.

use model_actors::{Cause, Failure, FailureKind};

use super::Error;

impl Error {
    /// The effect of the error on retries: another input is needed, the next attempt may succeed, or all fail alike.
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Stopped => FailureKind::Stopped,
            Self::OutOfMemory(_) => FailureKind::OutOfMemory,
            Self::InvalidInput(_)
            | Self::PromptTooLong { .. }
            | Self::ImageTooLarge { .. }
            | Self::UnsupportedImage { .. }
            | Self::InvalidImage { .. }
            | Self::AddressRefused { .. } => FailureKind::InvalidInput,
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
            | Self::NotFiniteOutput => FailureKind::Failed,
            Self::Actor(_)
            | Self::NoSuchDirectory { .. }
            | Self::NoSuchFile { .. }
            | Self::MissingFile { .. }
            | Self::PickleOnly { .. }
            | Self::InvalidConfig { .. }
            | Self::UnsupportedArchitecture { .. }
            | Self::UnsupportedSetting { .. }
            | Self::CorruptWeights { .. }
            | Self::InvalidGguf { .. }
            | Self::SeveralGgufFiles { .. }
            | Self::TruncatedWeights { .. }
            | Self::MissingTensor { .. }
            | Self::ShapeMismatch { .. }
            | Self::UnsupportedNumbers { .. }
            | Self::NotFinite { .. }
            | Self::InvalidTokenizer { .. }
            | Self::Device { .. }
            | Self::ImageTooSlow { .. }
            | Self::NoRoomForImages { .. }
            | Self::InvalidSetting { .. }
            | Self::NotCached { .. }
            | Self::RepositoryNotFound { .. }
            | Self::RevisionNotFound { .. }
            | Self::AccessDenied { .. } => FailureKind::Permanent,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.failure_kind() {
            FailureKind::Stopped => Failure::stopped(),
            kind => Failure { kind, cause: Cause::with_data(&error) },
        }
    }
}
