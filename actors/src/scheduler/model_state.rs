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
    /// Number of requests that are run again because of it.
    pub(crate) suspects: usize,
    /// Number of these that have been answered since.
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
            policy,
            queue: Queue::default(),
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
