//! Names of metrics, spans and events, all in one file, and the event stream itself. Deciding when to record
//! something is left to the actors.

use std::time::Duration;

use metrics::Label;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::error::Error;
use crate::id::{Bytes, Device, ModelId, ModelKey, RequestId, WorkerId};
use crate::progress::LoadStage;

/// Names of metrics, as the `metrics` facade sees them. All but [`metric::BYTES`] are labelled
/// `capability` and `model`. Counters and histograms are by name, so they go on when a model is replaced; the gauge of
/// waiting requests is of the current model alone.
pub mod metric {
    /// Counter: requests that were accepted or refused.
    pub const REQUESTS: &str = "model_actors_requests_total";
    /// Counter: requests that succeeded.
    pub const SUCCEEDED: &str = "model_actors_requests_succeeded_total";
    /// Counter, by `reason`: requests that ended with an error.
    pub const ERRORS: &str = "model_actors_errors_total";
    /// Counter: requests that their caller gave up.
    pub const CANCELLED: &str = "model_actors_requests_cancelled_total";
    /// Counter, by `phase`: requests that ran out of time.
    pub const TIMEOUTS: &str = "model_actors_timeouts_total";
    /// Counter, by `lane`: requests refused because the queue was full.
    pub const QUEUE_FULL: &str = "model_actors_queue_full_total";
    /// Gauge: requests waiting in the pool.
    pub const QUEUE_DEPTH: &str = "model_actors_queue_depth";
    /// Histogram, seconds: wait for a slot of a full queue.
    pub const BACKPRESSURE_WAIT: &str = "model_actors_backpressure_wait_seconds";
    /// Histogram, seconds: one run of a batch.
    pub const RUN_TIME: &str = "model_actors_run_seconds";
    /// Histogram, requests: size of a batch.
    pub const BATCH_SIZE: &str = "model_actors_batch_size";
    /// Counter: workers started.
    pub const WORKERS_SPAWNED: &str = "model_actors_workers_spawned_total";
    /// Counter, by `reason`: workers that were told to go.
    pub const WORKERS_EVICTED: &str = "model_actors_workers_evicted_total";
    /// Gauge, by `device`: bytes charged.
    pub const BYTES: &str = "model_actors_bytes";
}

/// Names of spans. Each has the fields `capability` and `model`.
pub mod span {
    /// A request from its check to its reply, in the caller's task.
    pub const REQUEST: &str = "model_request";
    /// A load, on the worker's thread.
    pub const LOAD: &str = "model_load";
    /// A run of a batch, on the worker's thread.
    pub const RUN: &str = "model_run";
}

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
    /// A request has to wait behind `position` others.
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
    /// A probe succeeded, and the breaker lets requests pass again.
    BreakerClosed { capability: &'static str, key: ModelKey, model: ModelId },
    /// A batch ran out of memory; from now on a batch has at most `requests` requests.
    BatchShrunk { capability: &'static str, key: ModelKey, model: ModelId, requests: usize },
    /// A pool failed and was started again.
    PoolRestarted { capability: &'static str },
    /// The level of memory pressure changed.
    Pressure { device: Device, level: crate::memory::PressureLevel },
    /// The system takes no new requests.
    ShuttingDown,
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
            | Self::BatchShrunk { model, .. } => Some(model),
            Self::PoolRestarted { .. } | Self::Pressure { .. } | Self::ShuttingDown => None,
        }
    }
}

/// Sender of events. Sending costs nothing while nobody listens.
#[derive(Debug, Clone)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(broadcast::Sender::new(capacity))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub(crate) fn send(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // An error says that the last listener left just now.
            let _ = self.0.send(event());
        }
    }
}

/// Metrics of one model that every request touches, looked up once.
pub(crate) struct ModelMetrics {
    capability: &'static str,
    model: metrics::SharedString,
    pub(crate) requests: metrics::Counter,
    pub(crate) succeeded: metrics::Counter,
    pub(crate) cancelled: metrics::Counter,
    pub(crate) run_time: metrics::Histogram,
    pub(crate) batch_size: metrics::Histogram,
    pub(crate) backpressure_wait: metrics::Histogram,
    pub(crate) queue_depth: metrics::Gauge,
    pub(crate) spawned: metrics::Counter,
}

impl ModelMetrics {
    pub(crate) fn new(capability: &'static str, model: &ModelId) -> Self {
        let model = metrics::SharedString::from_shared(model.shared());
        let labels = [Label::from_static_parts("capability", capability), Label::new("model", model.clone())];
        Self {
            requests: metrics::counter!(metric::REQUESTS, labels.iter()),
            succeeded: metrics::counter!(metric::SUCCEEDED, labels.iter()),
            cancelled: metrics::counter!(metric::CANCELLED, labels.iter()),
            run_time: metrics::histogram!(metric::RUN_TIME, labels.iter()),
            batch_size: metrics::histogram!(metric::BATCH_SIZE, labels.iter()),
            backpressure_wait: metrics::histogram!(metric::BACKPRESSURE_WAIT, labels.iter()),
            queue_depth: metrics::gauge!(metric::QUEUE_DEPTH, labels.iter()),
            spawned: metrics::counter!(metric::WORKERS_SPAWNED, labels.iter()),
            capability,
            model,
        }
    }

    pub(crate) fn failed(&self, error: &Error) {
        self.count(metric::ERRORS, "reason", error.reason());
        match error {
            Error::Timeout { phase, .. } => self.count(metric::TIMEOUTS, "phase", phase.name()),
            Error::Overloaded { lane, .. } => self.count(metric::QUEUE_FULL, "lane", lane.name()),
            _ => {}
        }
    }

    pub(crate) fn evicted(&self, reason: EvictionReason) {
        self.count(metric::WORKERS_EVICTED, "reason", reason.name());
    }

    fn count(&self, name: &'static str, label: &'static str, value: &'static str) {
        let model = self.model.clone();
        metrics::counter!(name, "capability" => self.capability, "model" => model, label => value)
            .increment(1);
    }
}
