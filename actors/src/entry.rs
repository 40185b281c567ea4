//! The part of a registered model that its requests touch: its name, the slots of its two lanes, its load's
//! progress and its metrics. One small shared value; how the model is loaded is left to the catalogue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;

#[cfg(feature = "cluster")]
use crate::capability::Cost;
use crate::config::{PoolConfig, QueueCapacity};
use crate::id::{Lane, ModelId, ModelKey, Tenant};
use crate::progress::{Clock, LoadProgress};
use crate::telemetry::ModelMetrics;

/// Maximum number of calls of one kind on one model that its pool has at a time: they hold no slot, so this bounds the
/// pool's mailbox.
const CALLS: usize = 16;

mod pace;
mod slots;
#[cfg(feature = "cluster")]
mod work;

use pace::Pace;
pub(crate) use slots::Refusal;
use slots::Slots;
#[cfg(feature = "cluster")]
pub(crate) use work::Served;

pub(crate) struct ModelEntry {
    pub(crate) key: ModelKey,
    pub(crate) id: ModelId,
    pub(crate) load: Arc<LoadProgress>,
    /// Protected from cooldown and eviction. It is here so that it outlives a restart of the pool.
    pub(crate) pinned: AtomicBool,
    /// Removed from the catalogue, or replaced there: it takes no more requests, and ends with those that it
    /// has.
    removed: AtomicBool,
    pub(crate) capability: &'static str,
    interactive: LaneSlots,
    batch: LaneSlots,
    calls: CallPlaces,
    clock: Clock,
    metrics: OnceLock<Box<ModelMetrics>>,
    #[cfg(feature = "cluster")]
    work: work::WorkMeter,
}

impl ModelEntry {
    pub(crate) fn new(
        capability: &'static str,
        key: ModelKey,
        id: ModelId,
        capacity: QueueCapacity,
        config: &Arc<PoolConfig>,
        clock: Clock,
    ) -> Arc<Self> {
        let part = config.tenants.queue.unwrap_or(capacity);
        let lane = |all: usize, part: usize| LaneSlots {
            slots: Slots::new(all, part.min(all), config.clone()),
            capacity: all,
            pace: Pace::default(),
        };
        Arc::new(Self {
            key,
            id,
            load: Arc::default(),
            pinned: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            capability,
            interactive: lane(capacity.interactive, part.interactive),
            batch: lane(capacity.batch, part.batch),
            calls: CallPlaces::new(),
            clock,
            metrics: OnceLock::new(),
            #[cfg(feature = "cluster")]
            work: work::WorkMeter::default(),
        })
    }

    /// Metrics of the model, made with its first request, so that a merely registered model costs none.
    pub(crate) fn metrics(&self) -> &ModelMetrics {
        self.metrics.get_or_init(|| Box::new(ModelMetrics::new(self.capability, &self.id)))
    }

    /// Sets the gauges to what they are without a pool. A model without metrics gets none.
    pub(crate) fn reset_gauges(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.set_gauges([0; 4]);
        }
    }

    pub(crate) fn capacity(&self, lane: Lane) -> usize {
        self.lane(lane).capacity
    }

    /// Maximum number of slots that one tenant has.
    pub(crate) fn part(&self, lane: Lane) -> usize {
        self.lane(lane).slots.part()
    }

    /// Maximum number of tenants that have requests in a lane.
    pub(crate) fn most_tenants(&self) -> usize {
        self.interactive.slots.most_tenants()
    }

    /// Estimated time until a slot of a full lane comes back.
    pub(crate) fn retry_after(&self, lane: Lane) -> Duration {
        self.lane(lane).pace.retry_after(self.clock.now())
    }

    /// Numbers of free and of all slots.
    pub(crate) fn slots(&self) -> (usize, usize) {
        let free = self.interactive.slots.free() + self.batch.slots.free();
        (free, self.interactive.capacity + self.batch.capacity)
    }

    /// Number of slots of a lane that requests hold.
    #[cfg(feature = "cluster")]
    pub(crate) fn used(&self, lane: Lane) -> usize {
        let LaneSlots { slots, capacity, .. } = self.lane(lane);
        capacity.saturating_sub(slots.free())
    }

    /// True while any request holds a slot.
    pub(crate) fn is_in_use(&self) -> bool {
        let (free, all) = self.slots();
        free < all
    }

    /// Looks whether the tenant could take a slot now. Takes none.
    pub(crate) fn vacancy(&self, lane: Lane, tenant: &Option<Tenant>) -> Result<(), Refusal> {
        self.lane(lane).slots.vacancy(tenant)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Marks it as removed first, so that whoever is refused a slot then sees why.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.close_lanes();
    }

    /// Refuses everybody who waits for a slot or the place of a call, or comes for one later.
    pub(crate) fn close(&self) {
        self.close_lanes();
        for calls in &self.calls.0 {
            calls.close();
        }
    }

    fn close_lanes(&self) {
        self.interactive.slots.close();
        self.batch.slots.close();
    }

    /// Waits for the place of a call. `None` once the system is closed.
    pub(crate) async fn call_place(self: &Arc<Self>, kind: CallKind) -> Option<CallPlace> {
        self.calls.of(kind).acquire().await.ok()?.forget();
        Some(CallPlace { entry: self.clone(), kind })
    }

    fn lane(&self, lane: Lane) -> &LaneSlots {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Batch => &self.batch,
        }
    }
}

/// A call on a model that is no request. Each kind has places of its own, so that preloads which wait for a load
/// keep nobody from an unload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Preload,
    Unload,
    Pin,
}

/// Places of the calls of each kind.
struct CallPlaces([Semaphore; 3]);

impl CallPlaces {
    fn new() -> Self {
        Self([CallKind::Preload, CallKind::Unload, CallKind::Pin].map(|_| Semaphore::new(CALLS)))
    }

    fn of(&self, kind: CallKind) -> &Semaphore {
        let Self([preload, unload, pin]) = self;
        match kind {
            CallKind::Preload => preload,
            CallKind::Unload => unload,
            CallKind::Pin => pin,
        }
    }
}

/// The place of a call, held until its pool has answered it or let go of it. Goes back when it is dropped.
pub(crate) struct CallPlace {
    entry: Arc<ModelEntry>,
    kind: CallKind,
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.entry.calls.of(self.kind).add_permits(1);
    }
}

/// The slots of one lane. Each accepted request holds one until it is answered.
struct LaneSlots {
    slots: Slots,
    capacity: usize,
    pace: Pace,
}

/// A place in a model's queue, held from the acceptance of a request to its answer. Goes back when it is
/// dropped.
pub(crate) struct Slot {
    entry: Arc<ModelEntry>,
    lane: Lane,
    tenant: Option<Tenant>,
    /// Its request's work, while the pool of this node has it.
    #[cfg(feature = "cluster")]
    work: Option<work::Work>,
}

impl Slot {
    fn new(entry: &Arc<ModelEntry>, lane: Lane, tenant: &Option<Tenant>) -> Self {
        Self {
            entry: entry.clone(),
            lane,
            tenant: tenant.clone(),
            #[cfg(feature = "cluster")]
            work: None,
        }
    }

    /// Counts its request, of this cost, as work of the pool of this node from now on.
    #[cfg(feature = "cluster")]
    pub(crate) fn begin_work(&mut self, cost: Cost) {
        self.work.get_or_insert_with(|| work::Work::begin(&self.entry, cost));
    }

    /// Notes that a run is done with its request.
    #[cfg(feature = "cluster")]
    pub(crate) fn serve(&mut self) {
        self.work.iter_mut().for_each(work::Work::serve);
    }

    /// Notes that the model has failed its request.
    #[cfg(feature = "cluster")]
    pub(crate) fn fail(&mut self) {
        self.work.iter_mut().for_each(work::Work::fail);
    }

    pub(crate) fn try_take(
        entry: &Arc<ModelEntry>,
        lane: Lane,
        tenant: &Option<Tenant>,
    ) -> Result<Self, Refusal> {
        let LaneSlots { slots, capacity, pace } = entry.lane(lane);
        if slots.try_take(tenant)? + 1 == *capacity {
            pace.begin(entry.clock.now());
        }
        Ok(Self::new(entry, lane, tenant))
    }

    /// Waits for a slot; of one tenant's who wait the smallest rank is served first.
    pub(crate) async fn take(
        entry: &Arc<ModelEntry>,
        lane: Lane,
        tenant: &Option<Tenant>,
        rank: i128,
    ) -> Result<Self, Refusal> {
        entry.lane(lane).slots.take(tenant, rank).await?;
        Ok(Self::new(entry, lane, tenant))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let lane = self.entry.lane(self.lane);
        lane.pace.returned(self.entry.clock.now());
        lane.slots.give_back(&self.tenant);
    }
}
