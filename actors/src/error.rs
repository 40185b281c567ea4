//! Everything that can go wrong, as the caller of this crate sees it. Each variant says what happened, where, and
//! what to do about it; a model's own error is kept as the `source`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Bytes, Device, ModelId, WorkerId};

/// The result of everything public in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong underneath, shared by every caller that it concerns. Made from an error or from a sentence.
///
/// ```
/// use model_actors::Cause;
/// assert_eq!(Cause::new("bad header").to_string(), "bad header");
/// let cause = Cause::new(std::io::Error::other("no such file"));
/// assert!(cause.get().downcast_ref::<std::io::Error>().is_some());
/// ```
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    /// Wraps an error or a sentence.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The underlying error, for `downcast_ref`.
    pub fn get(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Where a request was when its time ran out.
///
/// ```
/// use model_actors::RequestPhase;
/// assert_eq!(RequestPhase::Loading { percent: Some(40) }.to_string(), "while its model was loading (40 %)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RequestPhase {
    /// It had no slot of the model's bounded queue yet: the queue was full all that time.
    WaitingForSlot,
    /// It was in the queue, behind other requests.
    Queued,
    /// Its model was loading; the share of the bytes is given where the total is known.
    Loading {
        /// Percent of the bytes loaded, 0 to 100.
        percent: Option<u8>,
    },
    /// A worker was running it.
    Running,
}

impl RequestPhase {
    /// The name, as in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WaitingForSlot => "waiting_for_slot",
            Self::Queued => "queued",
            Self::Loading { .. } => "loading",
            Self::Running => "running",
        }
    }
}

impl fmt::Display for RequestPhase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForSlot => formatter.write_str("while it waited for a slot in the full queue"),
            Self::Queued => formatter.write_str("while it was queued"),
            Self::Loading { percent: Some(percent) } => {
                write!(formatter, "while its model was loading ({percent} %)")
            }
            Self::Loading { percent: None } => formatter.write_str("while its model was loading"),
            Self::Running => formatter.write_str("while a worker was running it"),
        }
    }
}

/// How a request, or a call on the system, can end other than well.
///
/// ```
/// use model_actors::{Error, ModelId};
/// let error = Error::UnknownModel { model: ModelId::from("nobody/knows") };
/// assert_eq!(error.reason(), "unknown_model");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model was never registered with this pool.
    #[error("the model {model} is not registered; register it before the first request")]
    UnknownModel {
        /// The model asked for.
        model: ModelId,
    },
    /// The model is registered already.
    #[error("the model {model} is already registered; unregister it first to change it")]
    AlreadyRegistered {
        /// The model.
        model: ModelId,
    },
    /// No pool of this capability was started.
    #[error("no pool serves {capability}; add one to the system when it is built")]
    NoPool {
        /// The capability's name.
        capability: &'static str,
    },
    /// The input can never be served, whatever the load.
    #[error("the input is invalid: {reason}")]
    InvalidInput {
        /// What is wrong with it.
        reason: String,
    },
    /// The pool is not running at the moment: it failed and is not back yet.
    #[error("no worker can serve {model}: its pool is down; retry in a moment")]
    NoWorkers {
        /// The model asked for.
        model: ModelId,
    },
    /// The request could not be handed to its pool, which stopped at that very moment. It did not run.
    #[error(
        "the request for {model} could not be handed to its pool, which has just stopped; it did not run"
    )]
    SendError {
        /// The model asked for.
        model: ModelId,
    },
    /// The pool died with the request in its hands. It may have run.
    #[error("the reply for {model} was lost with its pool; the request may have run")]
    RecvError {
        /// The model asked for.
        model: ModelId,
    },
    /// The time ran out.
    #[error("the request for {model} timed out after {} ms {phase}", after.as_millis())]
    Timeout {
        /// The model asked for.
        model: ModelId,
        /// Where the request was.
        phase: RequestPhase,
        /// The time that it was given.
        after: Duration,
    },
    /// The model refused or failed this request.
    #[error("the model {model} failed: {cause}")]
    ModelError {
        /// The model.
        model: ModelId,
        /// The model's own error.
        #[source]
        cause: Cause,
    },
    /// The system takes no new requests, or ended before this one did.
    #[error("the system is shutting down")]
    ShuttingDown,
    /// The model does not fit, even after everything that may be evicted was.
    #[error(
        "no room for {model}: it needs {needed} on {device}, where {free} of {limit} are free and what is in use \
         or pinned cannot be evicted"
    )]
    MemoryExhausted {
        /// The model asked for.
        model: ModelId,
        /// The memory it needs room in.
        device: Device,
        /// What it needs.
        needed: Bytes,
        /// What is free.
        free: Bytes,
        /// The limit of that memory.
        limit: Bytes,
    },
    /// A worker of the model could not be started.
    #[error("no worker of {model} could be started: {cause}")]
    SpawnFailed {
        /// The model.
        model: ModelId,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// The model's queue is full, and the caller chose not to wait.
    #[error("the {lane} queue of {model} is full ({capacity} requests); retry later or wait for a slot")]
    Overloaded {
        /// The model.
        model: ModelId,
        /// The lane, `interactive` or `batch`.
        lane: &'static str,
        /// The lane's capacity in requests.
        capacity: usize,
    },
    /// The caller cancelled the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model failed too often lately; nothing is tried until the breaker lets a probe through.
    #[error("{model} failed too often; retry in {} ms; last cause: {cause}", retry_after.as_millis())]
    CircuitOpen {
        /// The model.
        model: ModelId,
        /// Time until the next probe.
        retry_after: Duration,
        /// The failure that opened the breaker.
        #[source]
        cause: Cause,
    },
    /// The worker died after it had sent out part of the answer, or after the deadline that a first output had met, so
    /// the request could not be run again.
    #[error("worker {worker} of {model} crashed in the middle of the answer: {cause}")]
    WorkerCrashed {
        /// The model.
        model: ModelId,
        /// The worker that died.
        worker: WorkerId,
        /// Why it died.
        #[source]
        cause: Cause,
    },
    /// The worker made no progress for the stall limit and was given up.
    #[error("worker {worker} of {model} made no progress for {} ms and was given up", stalled.as_millis())]
    WorkerStuck {
        /// The model.
        model: ModelId,
        /// The worker that was quarantined.
        worker: WorkerId,
        /// The stall limit that it passed.
        stalled: Duration,
    },
    /// The request was running at two worker deaths and will not be run again.
    #[error("this request was running when {deaths} workers of {model} died; last cause: {cause}")]
    Poison {
        /// The model.
        model: ModelId,
        /// How many workers died running it.
        deaths: u32,
        /// The last death.
        #[source]
        cause: Cause,
    },
    /// The reader of a stream did not read for the stall limit.
    #[error("the stream from {model} was ended: its reader took nothing for {} ms", stalled.as_millis())]
    SlowReader {
        /// The model.
        model: ModelId,
        /// The time that the reader was given.
        stalled: Duration,
    },
    /// An unload ended with bytes still charged.
    #[error("{model} is not wholly unloaded: {remaining} are still held because {reason}")]
    UnloadIncomplete {
        /// The model.
        model: ModelId,
        /// The bytes still charged.
        remaining: Bytes,
        /// Why they are.
        reason: String,
    },
    /// A setting is out of range or contradicts another.
    #[error("invalid configuration: {setting}: {reason}")]
    InvalidConfig {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The supervision tree could not be started.
    #[error("the system could not be started: {cause}")]
    StartFailed {
        /// Why.
        #[source]
        cause: Cause,
    },
}

impl Error {
    /// The reason as a short label, for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "unknown_model",
            Self::AlreadyRegistered { .. } => "already_registered",
            Self::NoPool { .. } => "no_pool",
            Self::InvalidInput { .. } => "invalid_input",
            Self::NoWorkers { .. } => "no_workers",
            Self::SendError { .. } => "send_error",
            Self::RecvError { .. } => "recv_error",
            Self::Timeout { .. } => "timeout",
            Self::ModelError { .. } => "model_error",
            Self::ShuttingDown => "shutting_down",
            Self::MemoryExhausted { .. } => "memory_exhausted",
            Self::SpawnFailed { .. } => "spawn_failed",
            Self::Overloaded { .. } => "overloaded",
            Self::Cancelled => "cancelled",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::WorkerCrashed { .. } => "worker_crashed",
            Self::WorkerStuck { .. } => "worker_stuck",
            Self::Poison { .. } => "poison",
            Self::SlowReader { .. } => "slow_reader",
            Self::UnloadIncomplete { .. } => "unload_incomplete",
            Self::InvalidConfig { .. } => "invalid_config",
            Self::StartFailed { .. } => "start_failed",
        }
    }
}

/// What kind of failure a model reports. The scheduler's answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// May go better next time: a load is retried within the restart budget, a batch of many is split and rerun.
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

/// A failure as a model reports it: what kind, and why.
///
/// ```
/// use model_actors::{Failure, FailureKind};
/// let failure = Failure::permanent(std::io::Error::other("config.json is missing"));
/// assert_eq!(failure.kind, FailureKind::Permanent);
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{cause}")]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What happened.
    #[source]
    pub cause: Cause,
}

impl Failure {
    fn new(kind: FailureKind, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind, cause: Cause::new(cause) }
    }

    /// A failure that may go better next time.
    pub fn failed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Failed, cause)
    }

    /// A failure that would happen again.
    pub fn permanent(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Permanent, cause)
    }

    /// The request is at fault.
    pub fn invalid_input(reason: impl Into<String>) -> Self {
        Self::new(FailureKind::InvalidInput, reason.into())
    }

    /// Memory ran out.
    pub fn out_of_memory(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::OutOfMemory, cause)
    }

    /// The model stopped because nobody waits for the answer any more.
    pub fn stopped() -> Self {
        Self::new(FailureKind::Stopped, "stopped: nobody waits for the answer")
    }

    /// The failure of a request whose caller has not gone: that its run stopped, for another's sake, is not its doing.
    pub(crate) fn of_one_that_is_waited_for(self) -> Self {
        let kind = if self.kind == FailureKind::Stopped { FailureKind::Failed } else { self.kind };
        Self { kind, ..self }
    }

    /// The error that a caller gets when this failure ends its request.
    pub(crate) fn into_error(self, model: &ModelId) -> Error {
        match self.kind {
            FailureKind::InvalidInput => Error::InvalidInput { reason: self.cause.to_string() },
            FailureKind::Stopped => Error::Cancelled,
            _ => Error::ModelError { model: model.clone(), cause: self.cause },
        }
    }
}
