//! The scheduler's state of one model: its queue, its workers and their phases, its failures, and the callers
//! who wait for its load or unload. Data and questions about it; the decisions are in the neighbouring files.

use std::time::Duration;

use super::batching::Batches;
use super::queue::Queue;
use super::{Breaker, CallId, ModelPolicy, Restarts, Source, Ticket, Urgency};
use crate::error::Cause;
use crate::id::{Bytes, ModelKey, Time, WorkerId};
use crate::model::Footprint;
use crate::progress::WorkerPhase;

/// The phase of a worker. One that was told to go, died or got stuck has none; it is in `leaving`.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    // ## => Sizing => Reserving => Starting => Idle <=> Busy
    /// Its thread finds out what the model takes.
    Sizing,
    /// Room has been asked for.
    Reserving {
        /// Bytes asked for.
        bytes: Bytes,
        /// The source of its weights.
        source: Source,
        /// The effort that may be made to find it.
        urgency: Urgency,
    },
    /// Its thread loads or builds the model.
    Starting {
        /// The source of its weights.
        source: Source,
    },
    /// Ready, with nothing to do.
    Idle {
        /// The moment from which it has been idle.
        since: Time,
        /// The moment of a ping that it has not answered yet.
        pinged_at: Option<Time>,
    },
    /// Running requests.
    Busy {
        /// The requests.
        running: Vec<Ticket>,
    },
}

/// The reason why a worker whose thread still lives is not one of the model's workers any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Told to go.
    Draining,
    /// Died; its thread ends by itself.
    Dead,
    /// Given up without progress, or not ended within the stall limit; its thread may never end.
    Stuck,
}

/// A worker that is none any more, until its thread ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone {
    pub(crate) worker: WorkerId,
    pub(crate) why: Leaving,
    pub(crate) since: Time,
    /// The moment from which it is stuck, unless its thread has ended.
    pub(crate) overdue_at: Time,
    pub(crate) holds: Holds,
}

/// The memory that comes back when a thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// None: the worker had no room yet.
    Nothing,
    /// A worker's own, and a part in the weights.
    Worker,
    /// The weights: it is no worker's thread, but drops weights that were kept for a replacement.
    Weights,
}

impl Leaving {
    /// As the status shows it.
    pub(crate) fn phase(self) -> WorkerPhase {
        match self {
            Self::Draining | Self::Dead => WorkerPhase::Draining,
            Self::Stuck => WorkerPhase::Stuck,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) phase: Phase,
    /// It has an actor and a thread.
    pub(crate) spawned: bool,
    /// The moment at which it became ready, for minimum residency.
    pub(crate) ready_at: Time,
    /// The last progress that is known of.
    pub(crate) progress_at: Time,
}

impl Worker {
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. } | Phase::Busy { .. })
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. })
    }

    /// The moment from which it has been idle.
    pub(crate) fn idle_since(&self) -> Option<Time> {
        match self.phase {
            Phase::Idle { since, .. } => Some(since),
            _ => None,
        }
    }

    pub(crate) fn running(&self) -> &[Ticket] {
        match &self.phase {
            Phase::Busy { running } => running,
            _ => &[],
        }
    }

    pub(crate) fn running_mut(&mut self) -> &mut [Ticket] {
        match &mut self.phase {
            Phase::Busy { running } => running,
            _ => &mut [],
        }
    }

    /// Bytes that are charged for it: asked for and granted.
    pub(crate) fn is_charged(&self) -> bool {
        !matches!(self.phase, Phase::Sizing | Phase::Reserving { .. })
    }
}

/// An unload under way, and who waits for it until when.
#[derive(Debug)]
pub(crate) struct Unload {
    pub(crate) calls: Vec<(CallId, Time)>,
}

/// A death of a worker that counts against the model only once every request that may be its cause has proved not to be.
#[derive(Debug)]
pub(crate) struct Suspicion {
    /// Its number among the failures of the model.
    pub(crate) number: u64,
    /// Number of requests that ran at it: those that are run again, and those that cannot be, which nothing clears.
    pub(crate) suspects: usize,
    /// Number of these that have been answered by a run since.
    pub(crate) cleared: usize,
    pub(crate) cause: Cause,
}

#[derive(Debug)]
pub(crate) struct ModelState {
    pub(crate) key: ModelKey,
    pub(crate) policy: ModelPolicy,
    pub(crate) pinned: bool,
    /// It was removed or replaced, and ends with what it has.
    pub(crate) removed: bool,
    pub(crate) queue: Queue,
    pub(crate) workers: Vec<Worker>,
    pub(crate) leaving: Vec<Gone>,
    pub(crate) footprint: Option<Footprint>,
    pub(crate) restarts: Restarts,
    /// A death that is looked into: its requests are run again to see which of them is the cause.
    pub(crate) suspicion: Option<Suspicion>,
    pub(crate) breaker: Breaker,
    /// The next start, after a failure.
    pub(crate) restart_at: Time,
    /// Workers that failed and are to be replaced.
    pub(crate) replacements: usize,
    /// The shell keeps the weights although no worker holds them.
    pub(crate) retained: bool,
    /// Workers to start in all after a cold start, where memory allows.
    pub(crate) cold_start_goal: usize,
    /// No further worker is tried before this: the last one found no room.
    pub(crate) scale_up_at: Time,
    /// The last moment at which any of its workers was at work, one that has gone included.
    pub(crate) active_at: Time,
    pub(crate) last_cooldown: Option<Time>,
    pub(crate) batches: Batches,
    /// A load ran out of memory and is being tried a second time.
    pub(crate) load_starved: bool,
    pub(crate) load_began: Time,
    /// Duration of the last load: the price of an eviction.
    pub(crate) load_time: Duration,
    pub(crate) preloads: Vec<CallId>,
    pub(crate) unload: Option<Unload>,
}

impl ModelState {
    pub(crate) fn new(key: ModelKey, policy: ModelPolicy) -> Self {
        Self {
            key,
            pinned: policy.pinned,
            removed: false,
            batches: Batches::new(policy.config.batch),
            queue: Queue::new(policy.config.clone()),
            policy,
            workers: Vec::new(),
            leaving: Vec::new(),
            footprint: None,
            restarts: Restarts::default(),
            suspicion: None,
            breaker: Breaker::Closed,
            restart_at: Time::ZERO,
            replacements: 0,
            retained: false,
            cold_start_goal: 0,
            scale_up_at: Time::ZERO,
            active_at: Time::ZERO,
            last_cooldown: None,
            load_starved: false,
            load_began: Time::ZERO,
            load_time: Duration::from_millis(1),
            preloads: Vec::new(),
            unload: None,
        }
    }

    pub(crate) fn worker(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    pub(crate) fn take_worker(&mut self, id: WorkerId) -> Option<Worker> {
        let index = self.workers.iter().position(|worker| worker.id == id)?;
        Some(self.workers.remove(index))
    }

    /// Somebody needs a worker of it.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.queue.is_empty() || !self.preloads.is_empty() || self.replacements > 0
    }

    /// It was removed, and no caller waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.removed && self.queue.is_empty() && self.preloads.is_empty()
    }

    /// Nothing is left of it but its record.
    pub(crate) fn is_at_rest(&self) -> bool {
        let empty = self.workers.is_empty() && self.leaving.is_empty();
        empty && !self.is_wanted() && !self.retained && self.unload.is_none()
    }

    pub(crate) fn has_ready_worker(&self) -> bool {
        self.workers.iter().any(Worker::is_ready)
    }

    /// The weights are in memory and will stay there.
    pub(crate) fn has_weights(&self) -> bool {
        self.retained || self.has_ready_worker()
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.workers.iter().any(|worker| !worker.is_ready())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.running().len()).sum()
    }

    /// The one request that a half-open breaker lets through is running.
    pub(crate) fn is_probing(&self) -> bool {
        self.breaker.is_half_open() && self.in_flight() > 0
    }

    /// Ends the suspicion once none of its requests waits to be run again or runs. Returns it if it counts.
    pub(crate) fn settle_suspicion(&mut self) -> Option<Suspicion> {
        let number = self.suspicion.as_ref()?.number;
        let running = self.workers.iter().flat_map(Worker::running);
        let mut suspects = self.queue.reruns().chain(running);
        if suspects.any(|ticket| ticket.suspect_of == Some(number)) {
            return None;
        }
        self.suspicion.take().filter(|suspicion| suspicion.cleared == suspicion.suspects)
    }

    /// A request was answered by a worker that lived on.
    pub(crate) fn clear(&mut self, ticket: &Ticket) {
        if let Some(suspicion) = self.suspicion.as_mut()
            && ticket.suspect_of == Some(suspicion.number)
        {
            suspicion.cleared += 1;
        }
    }

    /// Number of workers that have nothing to do.
    pub(crate) fn idle(&self) -> usize {
        self.workers.iter().filter(|worker| worker.is_idle()).count()
    }

    /// The moment from which all its workers have been idle; `None` while anything is to do.
    pub(crate) fn idle_since(&self) -> Option<Time> {
        if self.workers.is_empty() || self.is_wanted() {
            return None;
        }
        self.workers
            .iter()
            .map(Worker::idle_since)
            .try_fold(self.active_at, |latest, since| Some(latest.max(since?)))
    }

    /// Its idle workers may be evicted: nobody waits for it, and nothing that is starting needs its weights.
    pub(crate) fn may_shrink(&self) -> bool {
        !self.pinned && !self.is_wanted() && !self.is_starting()
    }

    /// The least recently used of its idle workers.
    pub(crate) fn least_recently_used(&self) -> Option<WorkerId> {
        let idle = self.workers.iter().filter_map(|worker| Some((worker.idle_since()?, worker.id)));
        idle.min().map(|(_, id)| id)
    }

    /// Bytes charged for it by the latest footprint: the weights once, and each worker that has its room.
    pub(crate) fn bytes(&self) -> Bytes {
        match (self.footprint, self.holders()) {
            (Some(footprint), holders) if holders > 0 => footprint.with_workers(holders),
            (Some(footprint), _) if self.retained || self.frees_weights() => footprint.shared,
            _ => Bytes::ZERO,
        }
    }

    /// Workers that hold bytes, on their way out or not.
    pub(crate) fn holders(&self) -> usize {
        let charged = self.workers.iter().filter(|worker| worker.is_charged()).count();
        charged + self.leaving.iter().filter(|gone| gone.holds == Holds::Worker).count()
    }

    /// Weights that no worker holds are being dropped.
    fn frees_weights(&self) -> bool {
        self.leaving.iter().any(|gone| gone.holds == Holds::Weights)
    }

    /// Threads of its workers.
    pub(crate) fn threads(&self) -> usize {
        self.workers.iter().filter(|worker| worker.spawned).count()
    }

    /// Threads that were given up and have not ended.
    pub(crate) fn stuck(&self) -> usize {
        self.leaving.iter().filter(|gone| gone.why == Leaving::Stuck).count()
    }

    /// The earliest later moment at which something is due by itself.
    pub(crate) fn next_alarm(&self, now: Time) -> Time {
        let start = self.is_wanted().then_some(self.restart_at);
        let scale_up = (!self.queue.is_empty()).then_some(self.scale_up_at);
        let unload = self.unload.as_ref();
        let unload = unload.and_then(|unload| unload.calls.iter().map(|(_, deadline)| *deadline).min());
        // A gauge that is due now is being read, and the reading says when it is due next.
        let health = self.workers.iter().map(|worker| self.health_due(worker)).filter(|at| *at > now).min();
        let running = self.workers.iter().flat_map(Worker::running);
        let running = running.filter_map(Ticket::next_limit).min();
        let rerun = self.queue.next_rerun(now);
        let ending = self.leaving.iter().filter(|gone| gone.why != Leaving::Stuck);
        let overdue = ending.map(|gone| gone.overdue_at).min();
        let breaker = self.breaker.until().filter(|_| !self.queue.is_empty());
        let queue = self.queue.next_deadline();
        let due = [queue, rerun, running, start, scale_up, unload, health, overdue, breaker];
        due.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
impl ModelState {
    /// A model of a test: nothing runs and nothing waits.
    pub(super) fn of_a_test() -> Self {
        let policy = ModelPolicy {
            model: "m".into(),
            device: crate::id::Device::host(),
            config: crate::config::PoolConfig::default().into(),
            batching: super::Batching::PerRun,
            pinned: false,
        };
        let footprint = Some(Footprint::new(Bytes(10), Bytes(3)));
        Self { footprint, ..Self::new(ModelKey(0), policy) }
    }

    pub(super) fn with_thread(mut self, why: Leaving, holds: Holds) -> Self {
        let worker = WorkerId(100 + self.leaving.len() as u64);
        let (since, overdue_at) = (Time::ZERO, Time::after_start(Duration::from_secs(9)));
        self.leaving.push(Gone { worker, why, since, overdue_at, holds });
        self
    }

    pub(super) fn with_worker(mut self, phase: Phase, spawned: bool) -> Self {
        let id = WorkerId(1 + self.workers.len() as u64);
        self.workers.push(Worker { id, phase, spawned, ready_at: Time::ZERO, progress_at: Time::ZERO });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RequestId;

    const IDLE: Phase = Phase::Idle { since: Time::ZERO, pinged_at: None };
    const LOADING: Phase = Phase::Starting { source: Source::Load };

    fn model() -> ModelState {
        ModelState::of_a_test()
    }

    fn waits(mut model: ModelState) -> ModelState {
        model.queue.push(Ticket::new(RequestId(1), Time::NEVER), Time::ZERO, Duration::from_secs(1));
        model
    }

    fn keeps_weights(model: ModelState) -> ModelState {
        ModelState { retained: true, ..model }
    }

    #[test]
    fn bytes_are_those_of_workers_with_room_of_threads_that_hold_some_and_of_weights_by_themselves() {
        use Leaving::{Dead, Draining, Stuck};
        let table = [
            (model(), 0, 0),
            (ModelState { footprint: None, ..model().with_worker(IDLE, true) }, 0, 1),
            (model().with_worker(Phase::Sizing, true), 0, 0),
            (model().with_worker(LOADING, true), 13, 1),
            (model().with_worker(IDLE, true).with_worker(IDLE, true), 16, 2),
            (model().with_worker(IDLE, true).with_thread(Stuck, Holds::Worker), 16, 2),
            (model().with_thread(Dead, Holds::Nothing), 0, 0),
            (model().with_thread(Draining, Holds::Weights), 10, 0),
            (keeps_weights(model()), 10, 0),
            (keeps_weights(model().with_thread(Dead, Holds::Worker)), 13, 1),
        ];
        for (model, bytes, holders) in table {
            assert_eq!((model.bytes(), model.holders()), (Bytes(bytes), holders), "{model:?}");
        }
    }

    #[test]
    fn a_model_is_at_rest_once_nothing_of_it_is_left() {
        assert!(model().is_at_rest());
        let unload = Some(Unload { calls: Vec::new() });
        let busy = [
            waits(model()),
            keeps_weights(model()),
            model().with_worker(IDLE, true),
            model().with_thread(Leaving::Stuck, Holds::Nothing),
            ModelState { replacements: 1, ..model() },
            ModelState { preloads: vec![CallId(1)], ..model() },
            ModelState { unload, ..model() },
        ];
        for model in busy {
            assert!(!model.is_at_rest(), "{model:?}");
        }
    }

    #[test]
    fn workers_without_a_thread_are_none_of_its_threads() {
        let model = model().with_worker(IDLE, true).with_worker(IDLE, true).with_worker(LOADING, false);
        assert_eq!((model.threads(), self::model().threads()), (2, 0));
    }

    #[test]
    fn an_alarm_is_set_for_what_somebody_waits_for() {
        let at = |second| Time::after_start(Duration::from_secs(second));
        let paused = || ModelState { scale_up_at: at(5), ..model() };
        let open = || {
            let mut breaker = Breaker::Closed;
            breaker.open(at(7), Cause::new("crashed"));
            ModelState { breaker, ..model() }
        };
        let table = [
            (model(), Time::NEVER),
            (paused(), Time::NEVER),
            (waits(paused()), at(5)),
            (open(), Time::NEVER),
            (waits(open()), at(7)),
            (ModelState { restart_at: at(3), ..model() }, Time::NEVER),
            (waits(ModelState { restart_at: at(3), ..model() }), at(3)),
            (model().with_thread(Leaving::Dead, Holds::Nothing), at(9)),
            (model().with_thread(Leaving::Stuck, Holds::Nothing), Time::NEVER),
        ];
        for (model, alarm) in table {
            assert_eq!(model.next_alarm(Time::ZERO), alarm, "{model:?}");
        }
    }
}
