//! Failures as a model reports them. The kind decides what the scheduler does next: retry, split the batch,
//! give up.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Cause, Error};
use crate::id::ModelId;

/// Kinds of failure that a model can report. The scheduler's reaction depends on the kind.
///
/// ```
/// use model_actors::{Failure, FailureKind};
/// assert_eq!(Failure::out_of_memory("no page left").kind, FailureKind::OutOfMemory);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// May succeed next time: a load is retried within the restart budget, a batch of many is split and
    /// rerun.
    Failed,
    /// Will fail the same way again: a load is not retried (a missing file, a wrong checksum, no access).
    Permanent,
    /// The request is at fault. It is answered with [`Error::InvalidInput`].
    InvalidInput,
    /// Memory ran out: the batch is halved, idle models make room, and the load or run is tried once more.
    OutOfMemory,
    /// The model saw its cancel mark or deadline and stopped.
    Stopped,
}

/// A failure reported by a model: its kind and its cause.
///
/// ```
/// use model_actors::{Failure, FailureKind};
/// let failure = Failure::permanent("config.json is missing");
/// assert_eq!(failure.kind, FailureKind::Permanent);
/// assert_eq!(failure.to_string(), "config.json is missing");
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{cause}")]
#[non_exhaustive]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The reason, in words and possibly as data.
    pub cause: Cause,
}

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Failure {
    /// Creates a failure of any kind.
    pub fn new(kind: FailureKind, cause: impl Into<Cause>) -> Self {
        Self { kind, cause: cause.into() }
    }

    /// A failure that may not happen again.
    pub fn failed(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::Failed, cause)
    }

    /// A failure that would happen again.
    pub fn permanent(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::Permanent, cause)
    }

    /// A failure that is the request's own fault.
    pub fn invalid_input(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::InvalidInput, cause)
    }

    /// A failure for lack of memory.
    pub fn out_of_memory(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::OutOfMemory, cause)
    }

    /// The end of a run whose callers have gone.
    pub fn stopped() -> Self {
        Self::new(FailureKind::Stopped, "stopped: nobody waits for the answer")
    }

    /// The failure of a request whose caller is still waiting: a run that was stopped for the sake of another
    /// request has not been cancelled by this one.
    pub(crate) fn of_one_that_is_waited_for(self) -> Self {
        let kind = if self.kind == FailureKind::Stopped { FailureKind::Failed } else { self.kind };
        Self { kind, ..self }
    }

    /// The error that a caller gets when this failure ends its request.
    pub(crate) fn into_error(self, capability: &'static str, model: &ModelId) -> Error {
        match self.kind {
            FailureKind::InvalidInput => Error::InvalidInput { cause: self.cause },
            FailureKind::Stopped => Error::Cancelled,
            failure => {
                let (model, capability) = (model.clone(), capability.into());
                Error::ModelError { model, capability, failure, cause: self.cause }
            }
        }
    }
}
