//! The events of the tree, as subscribers see them. Their log lines are in `log`, their counters in `metrics`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error};
use crate::id::{Bytes, Device, ModelId, ModelKey, RequestId, WorkerId};
use crate::progress::LoadStage;

/// Reason for which a worker was told to go.
///
/// ```
/// assert_eq!(model_actors::EvictionReason::Cooldown.name(), "cooldown");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EvictionReason {
    /// Its model had been idle for the cooldown time.
    Cooldown,
    /// Another model needed the room.
    MakeRoom,
    /// The machine is under memory pressure.
    Pressure,
    /// A caller unloaded its model.
    Unload,
    /// Its model was removed or replaced.
    Removed,
    /// The system shuts down.
    Shutdown,
}

impl EvictionReason {
    /// The name, as in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cooldown => "cooldown",
            Self::MakeRoom => "make_room",
            Self::Pressure => "pressure",
            Self::Unload => "unload",
            Self::Removed => "removed",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Something that happened in the tree. Subscribe with [`crate::System::events`]; the stream is bounded, and
/// a subscriber that lags is told how many events it missed.
///
/// A model is identified by its capability and its key: a model of the same name in another capability, or
/// one that it replaced, has another. [`crate::ModelStatus`] has the same key.
///
/// ```
/// use model_actors::{Event, ModelId, ModelKey, WorkerId};
/// let (capability, key, model) = ("vision", ModelKey(0), ModelId::from("m"));
/// let event = Event::WorkerStarted { capability, key, model, worker: WorkerId(1) };
/// assert_eq!(event.model().map(ModelId::as_str), Some("m"));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named by their types, which are documented")]
pub enum Event {
    /// A load made progress: `done` bytes of `total` of its stage.
    Loading {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        stage: LoadStage,
        done: Bytes,
        total: Option<Bytes>,
    },
    /// A request waits behind `position` others: told when it begins to wait and as it comes nearer, each step of the
    /// last 64 and each halving before.
    Queued { capability: &'static str, key: ModelKey, model: ModelId, request: RequestId, position: usize },
    /// A worker is ready.
    WorkerStarted { capability: &'static str, key: ModelKey, model: ModelId, worker: WorkerId },
    /// A worker could not be started.
    StartFailed { capability: &'static str, key: ModelKey, model: ModelId, worker: WorkerId, error: Error },
    /// A worker was told to go.
    WorkerEvicted {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        worker: WorkerId,
        reason: EvictionReason,
    },
    /// A worker has ended, and its thread with it.
    WorkerEnded { capability: &'static str, key: ModelKey, model: ModelId, worker: WorkerId },
    /// A worker died; its replacement starts after the backoff.
    WorkerCrashed { capability: &'static str, key: ModelKey, model: ModelId, worker: WorkerId, error: Error },
    /// A replacement is started, after `failures` failures within the restart window.
    WorkerRestarted {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        worker: WorkerId,
        failures: u32,
    },
    /// A worker made no progress and was given up.
    WorkerStuck {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        worker: WorkerId,
        stalled: Duration,
    },
    /// A model failed too often, and its breaker refuses requests.
    BreakerOpened {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        retry_after: Duration,
        error: Error,
    },
    /// The breaker lets requests pass again: a probe succeeded, or its time passed while a worker served.
    BreakerClosed { capability: &'static str, key: ModelKey, model: ModelId },
    /// Requests whose run failed, or whose worker was lost, wait to run again.
    RequestsRerun {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        worker: WorkerId,
        requests: Vec<RequestId>,
        cause: Cause,
    },
    /// A request was running at each of so many deaths of workers that it is not run again.
    PoisonFound { capability: &'static str, key: ModelKey, model: ModelId, request: RequestId, error: Error },
    /// A run of so many requests ran out of memory: they run again in smaller batches, and one that ran alone is tried
    /// once more after idle models have made room.
    OutOfMemory {
        capability: &'static str,
        key: ModelKey,
        model: ModelId,
        worker: WorkerId,
        requests: usize,
        cause: Cause,
    },
    /// A batch ran out of memory; from now on a batch has at most `requests` requests.
    BatchShrunk { capability: &'static str, key: ModelKey, model: ModelId, requests: usize },
    /// A pool failed and was started again.
    PoolRestarted { capability: &'static str },
    /// The level of memory pressure changed.
    Pressure { device: Device, level: crate::memory::PressureLevel },
    /// The system takes no new requests.
    ShuttingDown,
    /// The system failed for good and has ended.
    SystemFailed { error: Error },
}

impl Event {
    /// Name of the model concerned, if it is one.
    pub fn model(&self) -> Option<&ModelId> {
        match self {
            Self::Loading { model, .. }
            | Self::Queued { model, .. }
            | Self::WorkerStarted { model, .. }
            | Self::StartFailed { model, .. }
            | Self::WorkerEvicted { model, .. }
            | Self::WorkerEnded { model, .. }
            | Self::WorkerCrashed { model, .. }
            | Self::WorkerRestarted { model, .. }
            | Self::WorkerStuck { model, .. }
            | Self::BreakerOpened { model, .. }
            | Self::BreakerClosed { model, .. }
            | Self::RequestsRerun { model, .. }
            | Self::PoisonFound { model, .. }
            | Self::OutOfMemory { model, .. }
            | Self::BatchShrunk { model, .. } => Some(model),
            Self::PoolRestarted { .. }
            | Self::Pressure { .. }
            | Self::ShuttingDown
            | Self::SystemFailed { .. } => None,
        }
    }
}
