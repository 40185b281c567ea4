//! Errors as callers of this crate see them, as plain data. Each variant says what happened, where, and what
//! to do about it; a model's own error is kept as its [`Cause`]. Which error ends which request is left to
//! the scheduler.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Bytes, Device, Lane, ModelId, Tenant, WorkerId};

mod cause;
mod failure;
mod kind;

pub use cause::Cause;
pub use failure::{Failure, FailureKind};
pub use kind::ErrorKind;

/// The result of everything public in this crate.
///
/// ```
/// fn parse(text: &str) -> model_actors::Result<u32> {
///     text.parse().map_err(|_| model_actors::Error::InvalidInput { cause: "no number".into() })
/// }
/// assert!(parse("7").is_ok() && parse("x").is_err());
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The position of a request when its time ran out.
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
    /// The name in snake case, as in metrics.
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

/// Every way in which a request, or a call on the system, can fail. Plain data: it compares, serialises and
/// can be sent to another process. `Debug` prints the same sentence as `Display`, so `fn main() -> Result`
/// ends with a sentence.
///
/// An error of loading or running candle's models is a variant of `candle_actors::Error` instead. A new variant
/// here needs its sentence, its name in [`Error::reason`], its class in [`Error::kind`] and, if it carries a
/// [`Cause`], a place in [`Error::cause`].
///
/// ```
/// use model_actors::{Error, ErrorKind, ModelId};
/// let model = ModelId::from("nobody/knows");
/// let error = Error::UnknownModel { model, capability: "text_embedding".into() };
/// assert_eq!((error.reason(), error.kind()), ("unknown_model", ErrorKind::NotFound));
/// assert_eq!(format!("{error:?}"), error.to_string());
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Error {
    /// The model is not registered for this capability.
    #[error("the model {model} ({capability}) is not registered; register it before the first request")]
    UnknownModel {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// The model is registered for another capability than the one asked for.
    #[error("{model} is registered for {registered}, not for {asked}")]
    OtherCapability {
        /// The model asked for.
        model: ModelId,
        /// The capability that was asked for.
        asked: Cow<'static, str>,
        /// The capability that the model is registered for.
        registered: Cow<'static, str>,
    },
    /// The model is registered already.
    #[error("the model {model} ({capability}) is already registered; replace it to change it")]
    AlreadyRegistered {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// No pool of this capability was started.
    #[error("no pool serves {capability}; add one to the system when it is built")]
    NoPool {
        /// The capability's name.
        capability: Cow<'static, str>,
    },
    /// The input can never be served, whatever the load.
    #[error("the input is invalid: {cause}")]
    InvalidInput {
        /// The reason, with the original error as data where the check or the model gave one.
        cause: Cause,
    },
    /// Occurs while the pool is down: it failed and has not been restarted yet. The request did not run.
    #[error("no worker can serve {model} ({capability}): its pool is down; retry in a moment")]
    NoWorkers {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// Occurs when the pool stops at the moment the request is handed to it. The request did not run.
    #[error(
        "the request for {model} ({capability}) could not be handed to its pool, which has just stopped; it did not run"
    )]
    SendError {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// Occurs when the pool fails after it accepted the request, so the reply is lost. The request may have
    /// run.
    #[error("the reply for {model} ({capability}) was lost with its pool; the request may have run")]
    RecvError {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// The request's time ran out.
    #[error("the request for {model} ({capability}) timed out after {} ms {phase}", after.as_millis())]
    Timeout {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The request's position when the time ran out.
        phase: RequestPhase,
        /// The time that it was given.
        after: Duration,
    },
    /// The model refused or failed this request.
    #[error("the model {model} ({capability}) failed: {cause}")]
    ModelError {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The kind of failure that the model reported.
        failure: FailureKind,
        /// The model's own error.
        cause: Cause,
    },
    /// The system takes no new requests, or ended before this one did.
    #[error("the system is shutting down")]
    ShuttingDown,
    /// The model does not fit, even after everything that may be evicted was, within
    /// [`PoolConfig::room_wait`](crate::PoolConfig::room_wait).
    #[error(
        "no room for {model} ({capability}): it needs {needed} on {device}, where {free} of {limit} are free; {}",
        shortage(*needed, *free, *limit)
    )]
    MemoryExhausted {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The memory that it needs room in.
        device: Device,
        /// The bytes that it needs.
        needed: Bytes,
        /// The bytes that are free.
        free: Bytes,
        /// The limit of that memory.
        limit: Bytes,
    },
    /// A worker of the model could not be started.
    #[error("no worker of {model} ({capability}) could be started: {cause}")]
    SpawnFailed {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The kind of failure that the load reported.
        failure: FailureKind,
        /// The load's own error.
        cause: Cause,
    },
    /// The model's queue, or the tenant's part of it, is full, and the caller chose not to wait.
    #[error(
        "the {lane} queue of {model} ({capability}) is full{} ({capacity} requests); retry in {} ms or wait for a slot",
        for_tenant(tenant.as_ref()),
        retry_after.as_millis()
    )]
    Overloaded {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The lane whose queue is full.
        lane: Lane,
        /// The tenant whose part of the queue is full ([`TenantConfig::queue`](crate::TenantConfig::queue)). `None`:
        /// all of it is full, or the part of the requests without a tenant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<Tenant>,
        /// The capacity, in requests, of the lane or of the tenant's part of it.
        capacity: usize,
        /// Estimated time until a slot is free, from how fast slots of the lane were given back lately: 50 ms
        /// to 60 s, 1 s while nothing is known.
        retry_after: Duration,
    },
    /// As many tenants as may be have requests of the model, and this one has none.
    #[error(
        "{model} ({capability}) has requests of {most} tenants in its {lane} queue, and {tenant} would be one more; \
         retry in {} ms",
        retry_after.as_millis()
    )]
    TooManyTenants {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The lane.
        lane: Lane,
        /// The tenant that was refused.
        tenant: Tenant,
        /// The number of tenants that may have requests in the lane at a time
        /// ([`TenantConfig::most`](crate::TenantConfig::most)).
        most: usize,
        /// Estimated time until a slot of the lane is free, as for [`Error::Overloaded`].
        retry_after: Duration,
    },
    /// The caller cancelled the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model failed too often lately; nothing is tried until the breaker lets a probe through.
    #[error("{model} ({capability}) failed too often; retry in {} ms; last cause: {cause}", retry_after.as_millis())]
    CircuitOpen {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// Time until the next probe.
        retry_after: Duration,
        /// The failure that opened the breaker.
        cause: Cause,
    },
    /// The worker died after it had sent out part of the answer, or after the deadline that a first output
    /// had met, so the request could not be run again.
    #[error("worker {worker} of {model} ({capability}) crashed in the middle of the answer: {cause}")]
    WorkerCrashed {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The worker that died.
        worker: WorkerId,
        /// The reason of its death.
        cause: Cause,
    },
    /// The worker made no progress for the stall limit and was given up.
    #[error("worker {worker} of {model} ({capability}) made no progress for {} ms and was given up", stalled.as_millis())]
    WorkerStuck {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The worker that was quarantined.
        worker: WorkerId,
        /// The stall limit that it passed.
        stalled: Duration,
    },
    /// The request was running at two worker deaths or more, at the last of them alone, and will not be run again.
    #[error(
        "this request was running when {deaths} workers of {model} ({capability}) died; last cause: {cause}"
    )]
    Poison {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// Number of workers that died running it.
        deaths: u32,
        /// The last death.
        cause: Cause,
    },
    /// The reader of a stream did not read for the stall limit.
    #[error("the stream from {model} ({capability}) was ended: its reader took nothing for {} ms", stalled.as_millis())]
    SlowReader {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The time that the reader was given.
        stalled: Duration,
    },
    /// An unload ended with bytes still charged.
    #[error("{model} ({capability}) is not wholly unloaded: {remaining} are still held because {reason}")]
    UnloadIncomplete {
        /// The model.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The bytes still charged.
        remaining: Bytes,
        /// The reason that they are.
        reason: String,
    },
    /// No node of the cluster that is connected serves the model, and this one does not either.
    #[error("no connected node serves {model} ({capability}); start one, or retry in a moment")]
    NoPeer {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
    },
    /// The node that was to run the request is gone, or has lost it, and it could not be run again elsewhere: part of the
    /// answer was out, the capability does not allow it, or several nodes have gone with it. It may have run. Also of a preload,
    /// unload or pin of a model of that node.
    #[error(
        "node {peer} was lost while it had the request for {model} ({capability}), which may have run there"
    )]
    PeerLost {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The node.
        peer: String,
    },
    /// Nodes of the cluster serve models of this name that have different files, so that the name says too little.
    #[error(
        "connected nodes serve {model} ({capability}) with different files ({}); give them names of their own",
        digests.join(", ")
    )]
    DifferentModels {
        /// The model asked for.
        model: ModelId,
        /// The capability that it belongs to.
        capability: Cow<'static, str>,
        /// The digests of the files.
        digests: Vec<String>,
    },
    /// A setting is out of range or contradicts another.
    #[error("invalid configuration: {setting}: {reason}")]
    InvalidConfig {
        /// The setting.
        setting: Cow<'static, str>,
        /// The allowed values, or the contradiction.
        reason: String,
    },
    /// The system failed for good: nobody shut it down, and it does not come back by itself.
    #[error("the system has failed and serves no more, start another: {cause}")]
    SystemFailed {
        /// The failure beyond which it was not restarted.
        cause: Cause,
    },
    /// The supervision tree could not be started.
    #[error("the system could not be started: {cause}")]
    StartFailed {
        /// The reason.
        cause: Cause,
    },
}

/// Names the tenant whose part of a queue is full.
fn for_tenant(tenant: Option<&Tenant>) -> String {
    tenant.map(|tenant| format!(" for {tenant}")).unwrap_or_default()
}

/// Says why a load has no room.
fn shortage(needed: Bytes, free: Bytes, limit: Bytes) -> &'static str {
    if needed > limit {
        "raise the limit"
    } else if needed <= free {
        "a load that came first waits for them"
    } else {
        "the rest is in use, pinned, too young to be evicted, or not back yet"
    }
}

impl Error {
    /// The variant's name in snake case, for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "unknown_model",
            Self::OtherCapability { .. } => "other_capability",
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
            Self::TooManyTenants { .. } => "too_many_tenants",
            Self::Cancelled => "cancelled",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::WorkerCrashed { .. } => "worker_crashed",
            Self::WorkerStuck { .. } => "worker_stuck",
            Self::Poison { .. } => "poison",
            Self::SlowReader { .. } => "slow_reader",
            Self::UnloadIncomplete { .. } => "unload_incomplete",
            Self::NoPeer { .. } => "no_peer",
            Self::PeerLost { .. } => "peer_lost",
            Self::DifferentModels { .. } => "different_models",
            Self::InvalidConfig { .. } => "invalid_config",
            Self::SystemFailed { .. } => "system_failed",
            Self::StartFailed { .. } => "start_failed",
        }
    }

    /// The underlying error, for the variants that have one.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::InvalidInput { cause }
            | Self::ModelError { cause, .. }
            | Self::SpawnFailed { cause, .. }
            | Self::CircuitOpen { cause, .. }
            | Self::WorkerCrashed { cause, .. }
            | Self::Poison { cause, .. }
            | Self::SystemFailed { cause }
            | Self::StartFailed { cause } => Some(cause),
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
