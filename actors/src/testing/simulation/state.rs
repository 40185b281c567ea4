//! The data of the simulated world: requests, models, weights, workers, and pools with their books.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::accounts::Accounts;
use super::scenario::ModelPlan;
use crate::capability::BatchKey;
use crate::id::{Bytes, Device, ModelKey, Tenant, Time, WorkerId};
use crate::model::Footprint;
use crate::scheduler::{Holds, Rank, Scheduler};

/// One accepted request, as its caller and its job see it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) pool: usize,
    pub(super) model: usize,
    pub(super) lane: usize,
    pub(super) tenant: Option<Tenant>,
    pub(super) deadline: Time,
    /// The end of the time for all of its output.
    pub(super) ends_at: Time,
    pub(super) streams: bool,
    pub(super) poison: bool,
    pub(super) bad: bool,
    pub(super) hangs: bool,
    pub(super) attempt: u32,
    /// The moment at which its current run sends out part of the answer.
    pub(super) emits_at: Option<Time>,
    pub(super) answers: u32,
    pub(super) cancelled: bool,
    /// The scheduler has let go of it.
    pub(super) gone: bool,
    pub(super) deaths: u32,
    pub(super) running_on: Option<WorkerId>,
    /// Its last run ended for others too.
    pub(super) shared: bool,
    /// Cost and key, as the caller stated them.
    pub(super) cost: u64,
    pub(super) key: BatchKey,
    /// Place in the order of service, once it has arrived.
    pub(super) rank: Option<Rank>,
    /// It has run before.
    pub(super) reran: bool,
    /// Its last run has begun with it.
    pub(super) begun: bool,
    /// Its last run was done with it.
    pub(super) finished: bool,
    /// A run was done with it, whether that was its last one or not.
    pub(super) cleared: bool,
}

impl Request {
    pub(super) fn is_answered(&self) -> bool {
        self.answers > 0 || self.cancelled
    }

    pub(super) fn has_emitted(&self, now: Time) -> bool {
        self.emits_at.is_some_and(|at| at <= now)
    }

    pub(super) fn is_abandoned(&self, now: Time) -> bool {
        self.cancelled || (!self.has_emitted(now) && now >= self.deadline) || now >= self.ends_at
    }

    /// From now on no run that has begun can answer or send anything out.
    pub(super) fn end_attempt(&mut self, now: Time) {
        self.attempt += 1;
        if !self.has_emitted(now) {
            self.emits_at = None;
        }
    }

    /// A run is done with it.
    pub(super) fn finish(&mut self) {
        (self.finished, self.cleared) = (true, true);
    }
}

/// Weights in memory, alive while somebody holds them.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) device: Device,
    pub(super) bytes: Bytes,
    /// Bytes that the model's cache holds.
    pub(super) cached: Bytes,
    pub(super) holders: u32,
}

/// A model as the shell and the checks see it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) device: Device,
    pub(super) weights: Option<usize>,
    pub(super) offered: Option<usize>,
    pub(super) retained: Option<usize>,
    pub(super) pinned: bool,
    pub(super) removed: bool,
    /// The scheduler has forgotten it after its removal.
    pub(super) forgotten: bool,
    /// Requests of it that have not ended, those on their way to the pool included.
    pub(super) held: usize,
    pub(super) slots: [usize; 2],
    pub(super) unanswered: [usize; 2],
    /// Failures that count, for the restart budget.
    pub(super) failures: VecDeque<Time>,
    pub(super) broken: bool,
    pub(super) no_start_before: Time,
    /// Every failure within the window, and the requests that were running at it.
    pub(super) deaths: VecDeque<(Time, Vec<usize>)>,
    /// The moment at which its breaker opened, if it has not closed since.
    pub(super) opened_at: Option<Time>,
    pub(super) last_busy: Time,
    pub(super) last_cooldown: Option<Time>,
    /// The turns of the tenants that wait for it.
    pub(super) accounts: Accounts,
}

impl Model {
    pub(super) fn new(plan: &ModelPlan) -> Self {
        Self {
            device: plan.policy.device.clone(),
            weights: None,
            offered: None,
            retained: None,
            pinned: plan.policy.pinned,
            removed: false,
            forgotten: false,
            held: 0,
            slots: [0; 2],
            unanswered: [0; 2],
            failures: VecDeque::new(),
            broken: false,
            no_start_before: Time::ZERO,
            deaths: VecDeque::new(),
            opened_at: None,
            last_busy: Time::ZERO,
            last_cooldown: None,
            accounts: Accounts::default(),
        }
    }

    /// A pool begins that knows nothing of the model's past.
    pub(super) fn begin_anew(&mut self) {
        (self.broken, self.no_start_before, self.last_cooldown) = (false, Time::ZERO, None);
        self.failures.clear();
        self.deaths.clear();
        self.opened_at = None;
        self.accounts.clear();
    }
}

/// The lease and weights held for a worker between its wish for room and its load.
#[derive(Debug)]
pub(super) struct HeldRoom {
    pub(super) lease: Option<(Device, Bytes)>,
    pub(super) weights: Option<usize>,
    /// The model, the room and the moment of an ask that maintenance has not answered.
    pub(super) asked: Option<(ModelKey, (Device, Bytes), Time)>,
}

/// A call of `preload` or `unload` that has not returned.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) pool: usize,
    /// The model and the deadline of an unload.
    pub(super) unload: Option<(usize, Time)>,
}

pub(super) struct Pool {
    pub(super) name: &'static str,
    pub(super) scheduler: Scheduler,
    /// By key.
    pub(super) models: Vec<Model>,
    /// The model that each name stands for: the last one that was registered.
    pub(super) names: Vec<usize>,
    pub(super) workers: Vec<SimWorker>,
    /// The roster: threads that have not ended, whichever pool started them.
    pub(super) live: Vec<WorkerId>,
    /// Its actor has died, and the next one has not begun.
    pub(super) down: bool,
    pub(super) rooms: BTreeMap<WorkerId, HeldRoom>,
    /// Requests in the scheduler's queues, by deadline.
    pub(super) queued: BTreeSet<(Time, usize)>,
    /// Asks that maintenance has not answered yet, or whose answer is on its way.
    pub(super) asks: BTreeSet<WorkerId>,
    pub(super) tick_at: Time,
    pub(super) cooldown_at: Time,
    pub(super) ticks: (Time, u32),
    pub(super) shut_by: Option<Time>,
    pub(super) drained: bool,
    pub(super) from_maintenance: Time,
    pub(super) to_maintenance: Time,
}

impl Pool {
    pub(super) fn new(name: &'static str, interval: Duration, seed: u64, plans: &[ModelPlan]) -> Self {
        Self {
            name,
            scheduler: Scheduler::new(name, interval, seed),
            models: plans.iter().map(Model::new).collect(),
            names: (0..plans.len()).collect(),
            workers: Vec::new(),
            live: Vec::new(),
            down: false,
            rooms: BTreeMap::new(),
            queued: BTreeSet::new(),
            asks: BTreeSet::new(),
            tick_at: Time::NEVER,
            cooldown_at: Time::NEVER,
            ticks: (Time::ZERO, 0),
            shut_by: None,
            drained: false,
            from_maintenance: Time::ZERO,
            to_maintenance: Time::ZERO,
        }
    }
}

/// An order to a worker's thread.
#[derive(Debug)]
pub(super) enum Order {
    Size,
    Load { lease: Option<(Device, Bytes)>, weights: Option<usize> },
    Run(Vec<(usize, u32)>),
    Ping,
}

/// Reason for which the pool has dropped a worker's handle, if it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Told {
    #[default]
    Nothing,
    Stopped,
    Quarantined,
    Dead,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Doing {
    #[default]
    Nothing,
    Sizing,
    Loading,
    Running(RunEnd),
    /// It hangs outside of a load or a run.
    Hanging,
    Ending,
    Ended,
}

/// The end that a run will come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    Well,
    Fails,
    BadInput,
    OutOfMemory,
    Panics,
    VanishesSilently,
    Hangs,
}

#[derive(Debug, Default)]
pub(super) struct SimWorker {
    pub(super) model: usize,
    /// The scheduler has begun to start it.
    pub(super) known: bool,
    pub(super) spawned: bool,
    /// The actor is alive.
    pub(super) actor: bool,
    /// The thread has ended while the pool had the handle; the crash of the actor is on its way.
    pub(super) thread_ended: bool,
    pub(super) told: Told,
    pub(super) told_at: Time,
    /// The pool that started it has died: nobody hears of it but of its end.
    pub(super) orphan: bool,
    /// The last progress that its gauge showed when it was read.
    pub(super) shown: Time,
    /// It was found stuck.
    pub(super) given_up: bool,
    /// The bytes that the roster has it hold, by which footprint.
    pub(super) holds: Option<(Holds, Option<Footprint>)>,
    pub(super) doing: Doing,
    /// Counts up whenever what was planned for the thread is void.
    pub(super) generation: u32,
    /// The moment from which the thread hangs.
    pub(super) stalled_at: Option<Time>,
    /// The moment at which the thread last answered a ping.
    pub(super) answered_at: Time,
    pub(super) inbox: VecDeque<Order>,
    pub(super) batch: Vec<(usize, u32)>,
    pub(super) lease: Option<(Device, Bytes)>,
    pub(super) weights: Option<usize>,
    /// The scheduler was told that it is ready.
    pub(super) ready: bool,
    pub(super) ready_at: Time,
    /// The moment from which it has had nothing to do.
    pub(super) idle_since: Time,
    /// Requests that the scheduler has running here.
    pub(super) assigned: Vec<usize>,
    /// Messages on their way to its thread, or from it or its actor to the pool.
    pub(super) in_flight: u32,
    pub(super) to_thread: Time,
    pub(super) from_actor: Time,
    pub(super) from_thread: Time,
}
