//! What the tree looks like at one moment, for tests, maintenance and users alike. Plain data that serialises; the
//! actors fill it in.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::id::{Bytes, Device, ModelId, ModelKey, WorkerId};
use crate::memory::{Budget, Budgets, PressureLevel};
use crate::model::Footprint;
use crate::progress::{LoadStage, WorkerPhase};

/// The whole tree.
///
/// ```
/// let status = model_actors::SystemStatus::default();
/// assert_eq!(status.workers().count(), 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SystemStatus {
    /// The system's own state.
    pub state: SystemState,
    /// The pools, in the order in which they were added.
    pub pools: Vec<Arc<PoolStatus>>,
    /// The memories, the host first.
    pub memory: Vec<MemoryStatus>,
}

impl SystemStatus {
    /// The pool of this capability.
    pub fn pool(&self, capability: &str) -> Option<&PoolStatus> {
        self.pools.iter().map(|pool| &**pool).find(|pool| pool.capability == capability)
    }

    /// The model of this name in the pool of this capability, if it has been used.
    ///
    /// ```
    /// let status = model_actors::SystemStatus::default();
    /// assert!(status.model("text_embedding", "english").is_none());
    /// ```
    pub fn model(&self, capability: &str, model: &str) -> Option<&ModelStatus> {
        self.pool(capability)?.model(model)
    }

    /// All workers of all pools.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.pools.iter().flat_map(|pool| pool.all_models()).flat_map(|model| &model.workers)
    }

    /// Ready to take requests: running, with every pool up.
    pub fn is_ready(&self) -> bool {
        self.state == SystemState::Running && self.pools.iter().all(|pool| pool.live)
    }
}

/// Live, ready and serving told apart: live while the tree stands, ready while it takes requests; which models serve
/// is in their status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemState {
    /// Takes requests.
    #[default]
    Running,
    /// Finishes what it has.
    ShuttingDown,
    /// Gone.
    Stopped,
}

/// One memory and what is charged against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStatus {
    /// Which memory.
    pub device: Device,
    /// Its limit.
    pub limit: Bytes,
    /// What is charged.
    pub charged: Bytes,
    /// How short it is.
    pub pressure: PressureLevel,
}

impl MemoryStatus {
    pub(crate) fn of(budget: &Budget) -> Self {
        let ledger = budget.read();
        Self {
            device: budget.device().clone(),
            limit: ledger.limit(),
            charged: ledger.charged(),
            pressure: PressureLevel::Normal,
        }
    }
}

/// Brings the charges up to date; how short a memory is, maintenance says at its interval.
pub(crate) fn refresh_memory(memory: &mut [MemoryStatus], budgets: &Budgets) {
    for status in memory {
        if let Some(budget) = budgets.get(&status.device) {
            status.charged = budget.read().charged();
        }
    }
}

/// One pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Its capability's name.
    pub capability: &'static str,
    /// Its actor is running.
    pub live: bool,
    /// Models that have been used; merely registered ones are not listed.
    pub models: Vec<ModelStatus>,
    /// Models that were removed or replaced, until their last requests and threads have ended. A name may occur here
    /// and in `models`; each has a key of its own.
    pub removed: Vec<ModelStatus>,
}

impl PoolStatus {
    /// The model of this name, if it has been used. Never the one that it replaced.
    pub fn model(&self, model: &str) -> Option<&ModelStatus> {
        self.models.iter().find(|status| status.model.as_str() == model)
    }

    /// All models that hold memory or requests, those that were removed or replaced included.
    pub fn all_models(&self) -> impl Iterator<Item = &ModelStatus> {
        self.models.iter().chain(&self.removed)
    }
}

/// One model that has been used.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelStatus {
    /// Name of its capability.
    pub capability: &'static str,
    /// Name of the model.
    pub model: ModelId,
    /// Key of its registration, which tells it from a model of the same name that it replaced.
    pub key: ModelKey,
    /// The memory it runs in.
    pub device: Device,
    /// Kept in memory come what may.
    pub pinned: bool,
    /// Requests waiting in the interactive lane.
    pub queued_interactive: usize,
    /// Requests waiting in the batch lane.
    pub queued_batch: usize,
    /// Requests being run.
    pub in_flight: usize,
    /// Failures within the restart window.
    pub recent_failures: u32,
    /// Failures ever.
    pub failures: u64,
    /// What the breaker does.
    pub breaker: BreakerState,
    /// What the model takes, once known.
    pub footprint: Option<Footprint>,
    /// Bytes charged for it, weights and workers.
    pub bytes: Bytes,
    /// Most requests that share a batch, after any shrinking.
    pub batch_limit: usize,
    /// The load under way, if any.
    pub loading: Option<LoadStatus>,
    /// Its workers, those that are on their way out included.
    pub workers: Vec<WorkerStatus>,
}

impl ModelStatus {
    /// At least one worker can run a request.
    pub fn is_serving(&self) -> bool {
        self.workers.iter().any(|worker| matches!(worker.phase, WorkerPhase::Idle | WorkerPhase::Busy))
    }
}

/// What a breaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Lets requests through.
    Closed,
    /// Refuses them.
    Open,
    /// Waits for its probe.
    HalfOpen,
}

/// A load under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LoadStatus {
    /// What it is doing.
    pub stage: LoadStage,
    /// Percent of the stage's bytes, where the total is known.
    pub percent: Option<u8>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number in the pool.
    pub worker: WorkerId,
    /// Name of its thread: model, number and capability, as in `english#3 text_embedding`.
    pub name: Arc<str>,
    /// What it is doing.
    pub phase: WorkerPhase,
    /// Requests it is running.
    pub running: usize,
    /// Progress ticks so far.
    pub ticks: u64,
    /// Time since its last progress.
    pub since_progress: Duration,
}

/// How a shutdown went.
///
/// ```
/// assert!(model_actors::ShutdownReport::default().is_clean());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Requests that were answered with `ShuttingDown` because the time ran out.
    pub abandoned_requests: usize,
    /// Threads that had not ended when the time ran out.
    pub unfinished_threads: Vec<String>,
    /// Bytes that were still charged when it returned.
    pub remaining: Bytes,
    /// How long it took.
    pub took: Duration,
}

impl ShutdownReport {
    /// Nothing was cut off and nothing is left.
    pub fn is_clean(&self) -> bool {
        self.abandoned_requests == 0 && self.unfinished_threads.is_empty() && self.remaining == Bytes::ZERO
    }
}
