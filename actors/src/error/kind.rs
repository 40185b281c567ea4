//! The coarse classes that all errors fall into, for callers who react to a class and not to one error.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, FailureKind};

/// The class of an error: what a caller can do about it. Maps to HTTP statuses without a look at the message.
///
/// | kind | HTTP status | what to do |
/// |---|---|---|
/// | `InvalidInput` | 400 | change the request or the setting |
/// | `NotFound` | 404 | register the model, or ask for another |
/// | `Overloaded` | 429, with `Retry-After` | send it again later |
/// | `Cancelled` | 499 | nothing; the caller has gone |
/// | `Internal` | 500 | look at the logs; the same request may fail again |
/// | `Unavailable` | 503, with `Retry-After` if known | send it again later |
/// | `Timeout` | 504 | send it again with more time, or less to do |
/// | `OutOfMemory` | 507, or 503 | free memory or raise the limit |
///
/// ```
/// use model_actors::{Error, ErrorKind};
///
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::InvalidInput => 400,
///         ErrorKind::NotFound => 404,
///         ErrorKind::Overloaded { .. } => 429,
///         ErrorKind::Cancelled => 499,
///         ErrorKind::Unavailable { .. } => 503,
///         ErrorKind::Timeout => 504,
///         ErrorKind::OutOfMemory => 507,
///         _ => 500,
///     }
/// }
/// assert_eq!(status(&Error::ShuttingDown), 503);
/// assert_eq!(status(&Error::NoPool { capability: "reranking".into() }), 404);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request or a setting is wrong and will be refused again.
    InvalidInput,
    /// There is no such model or capability.
    NotFound,
    /// A queue is full.
    Overloaded {
        /// Estimated time until a slot of the queue is free.
        retry_after: Duration,
    },
    /// The time ran out.
    Timeout,
    /// The model or the system takes no requests at the moment.
    Unavailable {
        /// Time until the next attempt makes sense, where that is known.
        retry_after: Option<Duration>,
    },
    /// The caller cancelled the request.
    Cancelled,
    /// Memory does not suffice.
    OutOfMemory,
    /// The model, a worker or the system failed.
    Internal,
}

impl ErrorKind {
    /// The name in snake case, for logs and metrics.
    ///
    /// ```
    /// assert_eq!(model_actors::ErrorKind::OutOfMemory.name(), "out_of_memory");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::NotFound => "not_found",
            Self::Overloaded { .. } => "overloaded",
            Self::Timeout => "timeout",
            Self::Unavailable { .. } => "unavailable",
            Self::Cancelled => "cancelled",
            Self::OutOfMemory => "out_of_memory",
            Self::Internal => "internal",
        }
    }

    /// Time to wait before the next attempt, where waiting helps and the time is known.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after } => Some(retry_after),
            Self::Unavailable { retry_after } => retry_after,
            _ => None,
        }
    }
}

impl Error {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidInput { .. } | Self::InvalidConfig { .. } | Self::AlreadyRegistered { .. } => {
                ErrorKind::InvalidInput
            }
            Self::UnknownModel { .. }
            | Self::OtherCapability { .. }
            | Self::NoPool { .. }
            | Self::DifferentModels { .. } => ErrorKind::NotFound,
            Self::Overloaded { retry_after, .. } | Self::TooManyTenants { retry_after, .. } => {
                ErrorKind::Overloaded { retry_after: *retry_after }
            }
            Self::Timeout { .. } | Self::SlowReader { .. } | Self::UnloadIncomplete { .. } => {
                ErrorKind::Timeout
            }
            Self::CircuitOpen { retry_after, .. } => {
                ErrorKind::Unavailable { retry_after: Some(*retry_after) }
            }
            Self::NoWorkers { .. }
            | Self::SendError { .. }
            | Self::ShuttingDown
            | Self::NoPeer { .. }
            | Self::PeerLost { .. } => ErrorKind::Unavailable { retry_after: None },
            Self::Cancelled => ErrorKind::Cancelled,
            Self::MemoryExhausted { .. }
            | Self::ModelError { failure: FailureKind::OutOfMemory, .. }
            | Self::SpawnFailed { failure: FailureKind::OutOfMemory, .. } => ErrorKind::OutOfMemory,
            Self::ModelError { .. }
            | Self::SpawnFailed { .. }
            | Self::RecvError { .. }
            | Self::WorkerCrashed { .. }
            | Self::WorkerStuck { .. }
            | Self::Poison { .. }
            | Self::SystemFailed { .. }
            | Self::StartFailed { .. } => ErrorKind::Internal,
        }
    }
}
