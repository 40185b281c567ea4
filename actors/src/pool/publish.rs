//! Publishes the status of a pool: at once when the tree changed, at most forty times a second when only
//! requests came and went, and always once more at the end of a burst. While anything loads or runs, its
//! progress is published ten times a second although no message tells of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::PoolState;
use crate::alarm::Alarm;
use crate::capability::Capability;
use crate::id::Time;
use crate::job::{Accepted, NEAR};
use crate::maintenance::eviction::PoolIndex;
use crate::memory::Budgets;
use crate::progress::Clock;
use crate::scheduler::{ModelState, Phase};
use crate::status::{
    BreakerState, LoadStatus, ModelStatus, PoolStatus, SystemStatus, TenantStatus, WorkerStatus, publish,
    refresh_memory,
};
use crate::telemetry::Event;
use crate::{WorkerId, WorkerPhase};

/// Pause between two publications because of requests that came and went.
const PAUSE: Duration = Duration::from_millis(25);
/// Pause between two publications because of progress alone.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// A walk through whole queues is followed by a pause of so many times its length.
const WALK_PAUSE: u32 = 20;

/// The pace at which whole queues are walked through, so that long ones take a small part of a pool's time.
#[derive(Debug, Default)]
struct Walks {
    from: Time,
}

impl Walks {
    /// Number of requests of a queue that are looked at now: all of them, or those at its head.
    fn most(&self, now: Time) -> usize {
        if now >= self.from { usize::MAX } else { NEAR + 1 }
    }

    fn walked(&mut self, began: Time, now: Time) {
        if began >= self.from {
            self.from = now + now.since(began).saturating_mul(WALK_PAUSE);
        }
    }
}

pub(super) struct Publisher {
    clock: Clock,
    status: watch::Sender<SystemStatus>,
    index: PoolIndex,
    last: Time,
    need: Need,
    timer: Alarm,
    walks: Walks,
    /// The need that the timer is set for.
    armed: Need,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// Something loads or runs.
    Progress,
    /// Requests came or went.
    Soon,
    /// The tree changed.
    Now,
}

impl Publisher {
    pub(super) fn new(clock: Clock, status: watch::Sender<SystemStatus>, index: PoolIndex) -> Self {
        Self {
            clock,
            status,
            index,
            last: Time::ZERO,
            need: Need::Now,
            timer: Alarm::unset(),
            walks: Walks::default(),
            armed: Need::Nothing,
        }
    }

    pub(super) fn touch(&mut self) {
        self.need = self.need.max(Need::Soon);
    }

    pub(super) fn now(&mut self) {
        self.need = Need::Now;
    }

    /// The timer rang.
    pub(super) fn due(&mut self) {
        self.timer.rang();
        self.armed = Need::Nothing;
        self.need = Need::Now;
    }

    pub(super) fn is_due(&self) -> bool {
        self.need == Need::Now
    }

    pub(super) fn wants_timer(&self) -> bool {
        self.need > self.armed
    }

    pub(super) fn set_timer(&mut self, ring: impl FnOnce() + Send + 'static) {
        self.armed = self.need;
        let at = self.last + if self.need == Need::Progress { PROGRESS_PAUSE } else { PAUSE };
        self.timer.set(self.clock, at.max(self.clock.now()), ring);
    }

    fn publish(&mut self, status: PoolStatus, budgets: &Budgets) {
        let active = |worker: &WorkerStatus| matches!(worker.phase, WorkerPhase::Loading | WorkerPhase::Busy);
        let progresses = status.all_models().flat_map(|model| &model.workers).any(active);
        self.last = self.clock.now();
        self.need = if progresses { Need::Progress } else { Need::Nothing };
        let index = self.index.0;
        publish(&self.status, |system| {
            refresh_memory(&mut system.memory, budgets);
            if let Some(place) = system.pools.get_mut(index) {
                *place = Arc::new(status);
            }
        });
    }
}

impl<C: Capability> PoolState<C> {
    pub(super) fn publish(&mut self) {
        self.tell_positions();
        // The catalogue knows first: a request to the new model may come before the note of the old one's removal.
        let is_removed = |model: &ModelState| {
            model.removed || self.models.get(&model.key).is_some_and(|known| known.entry.is_removed())
        };
        let statuses = self.scheduler.models().map(|model| (is_removed(model), self.model_status(model)));
        let (removed, models): (Vec<_>, Vec<_>) = statuses.partition(|(removed, _)| *removed);
        let [models, removed] =
            [models, removed].map(|all| all.into_iter().map(|(_, status)| status).collect());
        let status = PoolStatus { capability: C::NAME, live: true, models, removed };
        self.publisher.publish(status, &self.arguments.budgets);
    }

    /// Tells subscribers how many requests are before each waiting one, where that has changed.
    fn tell_positions(&mut self) {
        let events = &self.arguments.events;
        if !events.is_heard() {
            return;
        }
        let began = self.arguments.clock.now();
        let most = self.publisher.walks.most(began);
        for model in self.scheduler.models() {
            for (position, request) in model.queue.order().take(most).enumerate() {
                let job = self.jobs.get(&request).map(Accepted::job);
                if job.is_some_and(|job| job.position_is_news(position)) {
                    let (key, model) = (model.key, model.policy.model.clone());
                    events.send(|| Event::Queued { capability: C::NAME, key, model, request, position });
                }
            }
        }
        self.publisher.walks.walked(began, self.arguments.clock.now());
    }

    fn model_status(&self, model: &ModelState) -> ModelStatus {
        let [queued_interactive, queued_batch] = model.queue.depths();
        let registered = self.models.get(&model.key);
        // A load that was given up, or a thread that goes on after its load, may still count.
        let load = registered.filter(|_| model.is_starting()).map(|registered| &registered.entry.load);
        let loading =
            load.and_then(|load| Some(LoadStatus { stage: load.stage(), percent: load.percent()? }));
        let breaker = match (model.breaker.is_open(), model.breaker.is_half_open()) {
            (true, _) => BreakerState::Open,
            (_, true) => BreakerState::HalfOpen,
            _ => BreakerState::Closed,
        };
        if let Some(registered) = registered.filter(|_| !model.removed) {
            let loaded = model.workers.iter().filter(|worker| worker.is_ready()).count();
            let waiting = queued_interactive + queued_batch;
            registered.metrics().set_gauges([waiting, loaded, model.stuck(), breaker.level()]);
        }
        let active =
            model.workers.iter().map(|worker| (worker.id, phase_of(&worker.phase), worker.running().len()));
        let leaving = model.leaving.iter().map(|gone| (gone.worker, gone.why.phase(), 0));
        ModelStatus {
            capability: C::NAME,
            model: model.policy.model.clone(),
            key: model.key,
            device: model.policy.device.clone(),
            pinned: model.pinned,
            queued_interactive,
            queued_batch,
            tenants: tenants_of(model),
            in_flight: model.in_flight(),
            recent_failures: model.restarts.recent(),
            failures: model.restarts.total(),
            breaker,
            footprint: model.footprint,
            bytes: model.bytes(),
            batch_limit: model.batches.requests(),
            loading,
            workers: active
                .chain(leaving)
                .map(|(worker, phase, running)| self.worker_status(worker, phase, running))
                .collect(),
        }
    }

    fn worker_status(&self, worker: WorkerId, phase: WorkerPhase, running: usize) -> WorkerStatus {
        let handle = self.workers.get(&worker);
        let since = |handle: &crate::worker::WorkerHandle<C>| {
            self.arguments.clock.now().since(handle.last_progress())
        };
        WorkerStatus {
            worker,
            name: self.threads.get(&worker).cloned().unwrap_or_default(),
            phase,
            running,
            ticks: handle.map_or(0, |handle| handle.gauge.ticks()),
            since_progress: handle.map_or(Duration::ZERO, since),
        }
    }
}

fn tenants_of(model: &ModelState) -> Vec<TenantStatus> {
    let named = model.queue.by_tenant();
    let named = named.filter_map(|(tenant, queued)| Some(TenantStatus { tenant: tenant?.clone(), queued }));
    let mut tenants: Vec<TenantStatus> = named.collect();
    tenants.sort_by(|one, other| one.tenant.cmp(&other.tenant));
    tenants
}

fn phase_of(phase: &Phase) -> WorkerPhase {
    match phase {
        Phase::Sizing | Phase::Reserving { .. } | Phase::Starting { .. } => WorkerPhase::Loading,
        Phase::Idle { .. } => WorkerPhase::Idle,
        Phase::Busy { .. } => WorkerPhase::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_queues_are_walked_through_in_a_small_part_of_the_time_and_their_heads_always() {
        let at = |micros: u64| Time::after_start(Duration::from_micros(micros));
        let (mut walks, mut walked) = (Walks::default(), 0);
        // Published every 100 microseconds, with a queue through which a walk takes as long.
        for publication in 0..10_000 {
            let began = at(publication * 100);
            let most = walks.most(began);
            assert!(most > NEAR);
            walked += usize::from(most == usize::MAX);
            walks.walked(began, began + Duration::from_micros(if most == usize::MAX { 100 } else { 0 }));
        }
        assert!((400..500).contains(&walked), "{walked}");
        // A short one takes no time, and is walked through each time.
        walks.walked(at(2_000_000), at(2_000_000));
        assert_eq!(walks.most(at(2_000_000)), usize::MAX);
    }
}
