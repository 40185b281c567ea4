//! Snapshots of the tree, for tests, maintenance and users alike. Plain data that serialises; filling it in
//! is left to the actors.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::id::{Bytes, Device, ModelId, ModelKey, Tenant, WorkerId};
use crate::memory::{Budget, Budgets, PressureLevel};
use crate::model::Footprint;
use crate::progress::{LoadStage, WorkerPhase};
use crate::wakers::quietly;

/// Changes the status for all who watch it.
pub(crate) fn publish(status: &watch::Sender<SystemStatus>, change: impl FnOnce(&mut SystemStatus)) {
    quietly(|| status.send_modify(change));
}

/// Snapshot of a whole system: its pools, models, workers and memories.
///
/// ```
/// let status = model_actors::SystemStatus::default();
/// assert_eq!(status.workers().count(), 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SystemStatus {
    /// State of the system itself.
    pub state: SystemState,
    /// Pools, in the order in which they were added.
    pub pools: Vec<Arc<PoolStatus>>,
    /// Budgeted memories, the host's first.
    pub memory: Vec<MemoryStatus>,
    /// Shared pools of the other nodes of the cluster that are connected, by node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerStatus>,
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

    /// True while the system takes requests: it is running, with every pool up.
    pub fn is_ready(&self) -> bool {
        self.state == SystemState::Running && self.pools.iter().all(|pool| pool.live)
    }
}

/// State of a system. Whether it is ready is [`SystemStatus::is_ready`]; which models serve is in their own
/// status.
///
/// ```
/// assert_eq!(model_actors::SystemState::default(), model_actors::SystemState::Running);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SystemState {
    /// Takes requests.
    #[default]
    Running,
    /// Finishes the requests that it has, and takes no new ones.
    ShuttingDown,
    /// Ended, by a shutdown, or because it was stopped or killed.
    Stopped,
    /// Failed for good: its pools and maintenance failed, or could not be started again, more often than its
    /// restart budget allows. Its callers get [`Error::SystemFailed`](crate::Error::SystemFailed); those whose requests
    /// it had accepted get [`Error::RecvError`](crate::Error::RecvError), as these may have run.
    Failed,
}

impl SystemState {
    /// True once nothing of it runs any more.
    ///
    /// ```
    /// use model_actors::SystemState;
    /// assert!(SystemState::Failed.has_ended() && !SystemState::ShuttingDown.has_ended());
    /// ```
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// Snapshot of one budgeted memory.
///
/// ```
/// use model_actors::{Bytes, MemoryStatus};
///
/// fn left(memory: &MemoryStatus) -> Bytes {
///     memory.limit.saturating_sub(memory.charged)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStatus {
    /// The memory.
    pub device: Device,
    /// Limit of the budget.
    pub limit: Bytes,
    /// Bytes charged against the budget.
    pub charged: Bytes,
    /// The part of them that caches hold, which they give back when room is needed.
    pub cached: Bytes,
    /// Memory pressure, as of the last maintenance interval.
    pub pressure: PressureLevel,
}

impl MemoryStatus {
    pub(crate) fn of(budget: &Budget) -> Self {
        let ledger = budget.read();
        Self {
            device: budget.device().clone(),
            limit: ledger.limit(),
            charged: ledger.charged(),
            cached: ledger.cached(),
            pressure: PressureLevel::Normal,
        }
    }
}

/// Brings the charges up to date; the pressure is maintenance's to measure, at its interval.
pub(crate) fn refresh_memory(memory: &mut [MemoryStatus], budgets: &Budgets) {
    for status in memory {
        if let Some(budget) = budgets.get(&status.device) {
            let ledger = budget.read();
            (status.charged, status.cached) = (ledger.charged(), ledger.cached());
        }
    }
}

/// Snapshot of one pool.
///
/// ```
/// let unused = model_actors::PoolStatus::default();
/// assert!(!unused.live && unused.model("english").is_none());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Name of its capability.
    pub capability: &'static str,
    /// True while its actor runs.
    pub live: bool,
    /// Models that have been used; merely registered ones are not listed.
    pub models: Vec<ModelStatus>,
    /// Models that were removed or replaced, until their last requests and threads have ended. A name may
    /// occur here and in `models`; each has a key of its own.
    pub removed: Vec<ModelStatus>,
}

impl PoolStatus {
    /// The model of this name, if it has been used. Never the one that it replaced.
    pub fn model(&self, model: &str) -> Option<&ModelStatus> {
        self.models.iter().find(|status| status.model.as_str() == model)
    }

    /// Moves to `removed` what holds its name no longer: a snapshot may be older than a replacement.
    pub(crate) fn set_apart_removed(&mut self, is_current: impl Fn(&ModelStatus) -> bool) {
        self.removed.extend(self.models.extract_if(.., |model| !is_current(model)));
    }

    /// All models that hold memory or requests, those that were removed or replaced included.
    pub fn all_models(&self) -> impl Iterator<Item = &ModelStatus> {
        self.models.iter().chain(&self.removed)
    }
}

/// Snapshot of a shared pool of another node.
///
/// ```
/// use model_actors::{PeerStatus, SystemStatus};
///
/// fn nodes_with<'a>(status: &'a SystemStatus, model: &'a str) -> impl Iterator<Item = &'a str> {
///     let has = move |peer: &&PeerStatus| peer.models.iter().any(|one| one.model.as_str() == model);
///     status.peers.iter().filter(has).map(|peer| peer.node.as_str())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Name of the node.
    pub node: String,
    /// Name of the pool's capability.
    pub capability: &'static str,
    /// Models that it serves, by name.
    pub models: Vec<PeerModelStatus>,
}

/// Snapshot of a model of another node, as it was told last.
///
/// ```
/// fn can_serve(model: &model_actors::PeerModelStatus) -> bool {
///     model.resident && model.interactive_slots > 0
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerModelStatus {
    /// Name of the model.
    pub model: ModelId,
    /// Digest of its files.
    pub digest: Arc<str>,
    /// True if the model of this name here is made from other files, so that requests for it do not go there.
    pub differs: bool,
    /// True if it is in memory there.
    pub resident: bool,
    /// Number of interactive requests that this node may have there at a time.
    pub interactive_slots: u32,
    /// Number of requests that wait or run there.
    pub requests: u64,
    /// Their cost ([`Capability::cost`](crate::Capability::cost)).
    pub cost: u64,
    /// Time per unit of cost that was measured there; none while nothing is known.
    pub unit: Option<Duration>,
    /// Bytes that it takes there with one worker, as far as they are known.
    pub bytes: Option<Bytes>,
    /// Bytes that are free for it there, or that caches give back, if it is not in memory.
    pub free: Option<Bytes>,
    /// Percent of its latest requests that it has failed there. From 50 on requests go to other nodes where there are any; half a
    /// minute after the last failure it is 0 again.
    pub failed: u8,
}

/// Snapshot of one model that has been used.
///
/// ```
/// use model_actors::{BreakerState, ModelStatus};
///
/// fn refuses_requests(model: &ModelStatus) -> bool {
///     model.breaker == BreakerState::Open
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelStatus {
    /// Name of its capability.
    pub capability: &'static str,
    /// Name of the model.
    pub model: ModelId,
    /// Key of its registration, which tells it from a model of the same name that it replaced.
    pub key: ModelKey,
    /// Memory that it is charged to.
    pub device: Device,
    /// True if neither cooldown nor eviction takes it.
    pub pinned: bool,
    /// Number of requests waiting in the interactive lane.
    pub queued_interactive: usize,
    /// Number of requests waiting in the batch lane.
    pub queued_batch: usize,
    /// Tenants of whom requests wait, by name: at most [`TenantConfig::most`](crate::TenantConfig::most) of each lane.
    pub tenants: Vec<TenantStatus>,
    /// Number of requests being run.
    pub in_flight: usize,
    /// Number of failures within the restart window that count against the model: not the deaths of poisonous requests.
    pub recent_failures: u32,
    /// Number of failures since the pool started.
    pub failures: u64,
    /// State of its circuit breaker.
    pub breaker: BreakerState,
    /// Memory that it takes, once known.
    pub footprint: Option<Footprint>,
    /// Bytes charged for it, weights and workers.
    pub bytes: Bytes,
    /// Maximum number of requests in a batch; smaller than configured after memory ran out.
    pub batch_limit: usize,
    /// The load under way, if any.
    pub loading: Option<LoadStatus>,
    /// Its workers, those whose threads are ending included.
    pub workers: Vec<WorkerStatus>,
}

impl ModelStatus {
    /// True if at least one worker can run a request.
    pub fn is_serving(&self) -> bool {
        self.workers.iter().any(|worker| matches!(worker.phase, WorkerPhase::Idle | WorkerPhase::Busy))
    }
}

/// Snapshot of one tenant of a model.
///
/// ```
/// use model_actors::{ModelStatus, Tenant};
///
/// fn waiting_of(model: &ModelStatus, tenant: &Tenant) -> usize {
///     model.tenants.iter().find(|status| status.tenant == *tenant).map_or(0, |status| status.queued)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TenantStatus {
    /// The tenant.
    pub tenant: Tenant,
    /// Number of its requests that wait for their first run, in both lanes.
    pub queued: usize,
}

/// State of a circuit breaker.
///
/// ```
/// assert_eq!(serde_json::to_value(model_actors::BreakerState::HalfOpen)?, "half_open");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Requests are refused.
    Open,
    /// One probe passes; its end closes or opens the breaker.
    HalfOpen,
}

impl BreakerState {
    /// The number of the state in metrics.
    pub(crate) const fn level(self) -> usize {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// Progress of a load.
///
/// ```
/// use model_actors::LoadStatus;
///
/// fn bar(load: &LoadStatus) -> String {
///     "#".repeat(usize::from(load.percent.unwrap_or(0)) / 10)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LoadStatus {
    /// Current stage.
    pub stage: LoadStage,
    /// Percent of the stage's bytes, where the total is known.
    pub percent: Option<u8>,
}

/// Snapshot of one worker.
///
/// ```
/// use model_actors::{WorkerPhase, WorkerStatus};
///
/// fn is_slow(worker: &WorkerStatus) -> bool {
///     worker.phase == WorkerPhase::Busy && worker.since_progress.as_secs() > 10
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number in the pool.
    pub worker: WorkerId,
    /// Name of its thread: model, number and capability, as in `english#3 text_embedding`.
    pub name: Arc<str>,
    /// Current phase.
    pub phase: WorkerPhase,
    /// Number of requests that it is running.
    pub running: usize,
    /// Number of progress ticks so far.
    pub ticks: u64,
    /// Time since its last progress.
    pub since_progress: Duration,
}

/// Result of a shutdown.
///
/// ```
/// assert!(model_actors::ShutdownReport::default().is_clean());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Number of requests answered with `ShuttingDown` because the time ran out.
    pub abandoned_requests: usize,
    /// Names of the threads that had not ended when the time ran out, as in [`WorkerStatus::name`]; `destructors` for
    /// requests that were answered and whose destructors had not returned.
    pub unfinished_threads: Vec<String>,
    /// Bytes still charged when the shutdown returned.
    pub remaining: Bytes,
    /// Duration of the shutdown.
    pub took: Duration,
}

impl ShutdownReport {
    /// True if no request was cut off and nothing is left.
    pub fn is_clean(&self) -> bool {
        self.abandoned_requests == 0 && self.unfinished_threads.is_empty() && self.remaining == Bytes::ZERO
    }
}
