//! The pure core of a pool, which makes all its decisions: which worker, what batch, when to start, cool
//! down, evict, restart, give up and answer. All of it is [`Scheduler::handle`], a function of the state, one
//! input and a given moment that returns effects. It has no actor, no clock, no lock, and no randomness but a
//! seeded generator; the pool's shell turns messages into inputs and effects into sends, and the simulation
//! does the same in virtual time.
//!
//! One file for each policy: `ticket` (rank), `shares` (whose turn it is among tenants), `batching` (who shares a batch),
//! `queue` (who waits),
//! `requests` (accept, run, rerun, answer), `workers` (start, room), `failures` (crash), `restart` and
//! `breaker` (how often), `health` (stuck), `cooldown` (cooldown, eviction, unload), `offers` (what may go to
//! make room), `shutdown`.

mod breaker;
mod restart;
mod ticket;
mod shares;
mod batching;
mod queue;
mod model_state;
mod offers;
mod workers;
mod failures;
mod health;
mod requests;
mod cooldown;
mod shutdown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use crate::capability::Batching;
pub use breaker::{Breaker, Passage};
#[cfg(feature = "testing")]
pub(crate) use failures::is_permanent;
pub use model_state::Phase;
pub(crate) use model_state::{Holds, Leaving, ModelState, Worker};
pub use restart::{Restarts, Verdict};
pub use ticket::Ticket;
#[cfg(feature = "testing")]
pub(crate) use ticket::{Rank, rank};

use crate::config::PoolConfig;
use crate::error::{Cause, Error, Failure};
use crate::id::{Bytes, Device, ModelId, ModelKey, RequestId, Time, WorkerId};
use crate::memory::PressureLevel;
use crate::model::Footprint;
use crate::telemetry::{Event, EvictionReason};

/// The policy of a model, from its registration.
///
/// ```
/// use model_actors::scheduler::{Batching, ModelPolicy};
/// use model_actors::{Device, ModelId, PoolConfig};
/// let policy = ModelPolicy {
///     model: ModelId::from("m"),
///     device: Device::host(),
///     config: PoolConfig::default().into(),
///     batching: Batching::PerRun,
///     pinned: false,
/// };
/// assert_eq!(policy.config.max_workers, 4);
/// ```
#[derive(Debug, Clone)]
pub struct ModelPolicy {
    /// The model.
    pub model: ModelId,
    /// The memory that it is charged to.
    pub device: Device,
    /// Its settings, shared with other models that have the same.
    pub config: Arc<PoolConfig>,
    /// The way its requests share runs.
    pub batching: Batching,
    /// Keep it in memory from the start.
    pub pinned: bool,
}

/// The source of a new worker's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From disk: the first worker of a model.
    Load,
    /// From the weights that are in memory.
    Shared,
}

/// The effort that may be made to find room for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Evict idle workers of other models, and wait until this moment for room.
    MakeRoom {
        /// The moment to give up.
        until: Time,
    },
    /// Take what is free at once, or do without.
    IfFree,
}

/// The outcome of a request when its batch ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The thread has answered it.
    Answered,
    /// Nobody waited for it any more, so that it ran in part or not at all.
    GivenUp,
    /// Nothing was sent out; it may be run again.
    Failed(Failure),
    /// Part of the answer is out, or only a first output kept it alive past its deadline; it can only fail.
    FailedAfterOutput(Failure),
}

/// The state of a request when its worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its run was done with it before the death.
    Answered,
    /// Out of time, or its caller had gone, while it ran on.
    GivenUp,
    /// Part of the answer was out, or a first output alone kept it alive past its deadline.
    Emitted,
    /// Nothing was sent out; it may be run again.
    Untouched,
    /// The model had not had it yet, so that it is not the cause; it is given to another worker as if it had waited.
    Unbegun,
    /// As `Unbegun`, but nobody waits for it any more.
    Unwanted,
}

impl Fate {
    /// True if the request may be the cause of the death.
    fn is_suspect(self) -> bool {
        !matches!(self, Self::Answered | Self::Unbegun | Self::Unwanted)
    }

    /// True if the model had the request.
    fn has_run(self) -> bool {
        !matches!(self, Self::Unbegun | Self::Unwanted)
    }
}

/// A caller of `preload` or `unload` who waits for the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// An input of the scheduler.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are named by their types, which are documented")]
pub enum Input {
    /// A model that will be used; must come before any input that names its key.
    Declare { key: ModelKey, policy: ModelPolicy },
    /// Requests that came together.
    Submit { tickets: Vec<(ModelKey, Ticket)> },
    /// A caller has gone.
    Cancel { key: ModelKey, request: RequestId },
    /// The moment that [`Scheduler::alarm`] named has come.
    Tick,
    /// The moment that [`Scheduler::cooldown_alarm`] named has come, says maintenance.
    Cooldown,
    /// Maintenance wants this worker's room.
    Evict { worker: WorkerId, reason: EvictionReason },
    /// Start the model now.
    Preload { key: ModelKey, call: CallId },
    /// Stop all workers of the model, by the deadline.
    Unload { key: ModelKey, call: CallId, deadline: Time },
    /// The caller of a preload or an unload has gone.
    CallerGone { key: ModelKey, call: CallId },
    /// Keep the model in memory, or no longer.
    Pin { key: ModelKey, pinned: bool },
    /// The model was removed or replaced: its workers go once nobody waits for it.
    Remove { key: ModelKey },
    /// The room asked for is reserved.
    RoomGranted { worker: WorkerId },
    /// There is no room.
    RoomDenied { worker: WorkerId, needed: Bytes, free: Bytes, limit: Bytes },
    /// A worker knows what its model will take.
    Sized { worker: WorkerId, footprint: Footprint },
    /// A worker is ready.
    Started { worker: WorkerId, footprint: Footprint },
    /// A worker could not size, load or build its model.
    StartFailed { worker: WorkerId, failure: Failure },
    /// Some or all of a worker's requests are done with.
    Finished { worker: WorkerId, outcomes: Vec<(RequestId, Outcome)> },
    /// A worker crashed: it panicked, or its actor was killed or stopped. Comes before its `Ended`.
    Died { worker: WorkerId, cause: Cause, fates: Vec<(RequestId, Fate)> },
    /// A worker's gauge, as [`Effect::ReadProgress`] asked for it.
    Progress { worker: WorkerId, last_progress: Time, fates: Vec<(RequestId, Fate)> },
    /// A worker's thread has ended, and its bytes are back.
    Ended { worker: WorkerId },
    /// Ping the idle workers.
    HealthCheck,
    /// The level of memory pressure on a device.
    Pressure { device: Device, level: PressureLevel },
    /// Finish by the deadline, take nothing new.
    Shutdown { deadline: Time },
}

/// An effect that the scheduler asks for.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are named by their types, which are documented")]
pub enum Effect {
    /// Start a worker's actor and thread.
    Spawn { worker: WorkerId, key: ModelKey },
    /// Have the worker find out what its model takes.
    Size { worker: WorkerId },
    /// Reserve room for a worker; answered with `RoomGranted` or `RoomDenied`.
    Reserve { worker: WorkerId, key: ModelKey, bytes: Bytes, source: Source, urgency: Urgency },
    /// The room is not wanted any more, granted or not.
    CancelReserve { worker: WorkerId },
    /// Have the worker load or build its model in the room that was granted.
    Load { worker: WorkerId, source: Source },
    /// Run these requests.
    Run { worker: WorkerId, requests: Vec<RequestId> },
    /// Answer with this error.
    Fail { request: RequestId, error: Error },
    /// Answer that the time ran out; the request has left the scheduler.
    Expire { request: RequestId },
    /// Answer that the time ran out, unless a first output met the deadline; the request is still running.
    ExpireRunning { request: RequestId },
    /// Answer that the time for all of the output ran out; the request is still running.
    EndRunning { request: RequestId },
    /// The request has left the scheduler: answered by its thread, or given up by its caller.
    Forget { request: RequestId },
    /// Have an idle worker's thread tick its gauge.
    Ping { worker: WorkerId },
    /// Read a worker's gauge; answered at once with `Progress`.
    ReadProgress { worker: WorkerId },
    /// Let a worker go: drop its handle.
    Stop { worker: WorkerId, reason: EvictionReason },
    /// Give a worker up: drop its handle, never mind its thread.
    Quarantine { worker: WorkerId },
    /// Keep the model's weights although no worker holds them, for the replacement.
    RetainWeights { key: ModelKey },
    /// The weights need no keeping any more. If nobody else holds them, they are dropped by this thread, whose end
    /// is told with `Ended`; without one a worker holds them.
    ReleaseWeights { key: ModelKey, thread: Option<WorkerId> },
    /// Have idle workers of another model evicted: memory ran out in spite of the budget.
    Relieve { device: Device },
    /// Answer a caller of `preload` or `unload`.
    Return { call: CallId, result: Result<(), Error> },
    /// Send an event to the subscribers.
    Emit(Event),
    /// Shut down: nothing runs and nothing waits.
    Drained { abandoned: usize },
}

/// A pool's policies and everything that they have decided so far.
pub struct Scheduler {
    capability: &'static str,
    /// Time between two cooldown evictions of one model.
    cooldown_interval: Duration,
    pub(crate) models: BTreeMap<ModelKey, ModelState>,
    /// The model of each worker whose thread lives.
    owners: BTreeMap<WorkerId, ModelKey>,
    next_worker: u64,
    random: fastrand::Rng,
    /// The pressure on each memory; normal where nothing was said.
    pressure: BTreeMap<Device, PressureLevel>,
    shutdown: Option<shutdown::Shutdown>,
    alarm: Time,
    cooldown_alarm: Time,
}

impl Scheduler {
    /// A scheduler with no models. The seed is for the jitter of restarts.
    pub fn new(capability: &'static str, cooldown_interval: Duration, seed: u64) -> Self {
        Self {
            capability,
            cooldown_interval,
            models: BTreeMap::new(),
            owners: BTreeMap::new(),
            next_worker: 0,
            random: fastrand::Rng::with_seed(seed),
            pressure: BTreeMap::new(),
            shutdown: None,
            alarm: Time::NEVER,
            cooldown_alarm: Time::NEVER,
        }
    }

    /// Takes one input at a moment and appends what follows from it. Inputs about workers that are gone are
    /// ignored.
    pub fn handle(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Declare { key, policy } => self.declare(key, policy),
            Input::Submit { tickets } => self.submit(now, tickets, effects),
            Input::Cancel { key, request } => self.cancel(now, key, request, effects),
            Input::Tick => self.tick(now, effects),
            Input::Cooldown => self.cool_down(now, effects),
            Input::Evict { worker, reason } => self.evict(now, worker, reason, effects),
            Input::Preload { key, call } => self.preload(now, key, call, effects),
            Input::Unload { key, call, deadline } => self.unload(now, key, call, deadline, effects),
            Input::CallerGone { key, call } => self.caller_gone(now, key, call, effects),
            Input::Pin { key, pinned } => self.pin(now, key, pinned, effects),
            Input::Remove { key } => self.remove(now, key, effects),
            Input::RoomGranted { worker } => self.room_granted(now, worker, effects),
            Input::RoomDenied { worker, needed, free, limit } => {
                self.room_denied(now, worker, [needed, free, limit], effects);
            }
            Input::Sized { worker, footprint } => self.sized(now, worker, footprint, effects),
            Input::Started { worker, footprint } => self.started(now, worker, footprint, effects),
            Input::StartFailed { worker, failure } => self.start_failed(now, worker, failure, effects),
            Input::Finished { worker, outcomes } => self.finished(now, worker, outcomes, effects),
            Input::Died { worker, cause, fates } => self.died(now, worker, cause, &fates, effects),
            Input::Progress { worker, last_progress, fates } => {
                self.progress_read(now, worker, last_progress, &fates, effects);
            }
            Input::Ended { worker } => self.ended(now, worker, effects),
            Input::HealthCheck => self.health_check(now, effects),
            Input::Pressure { device, level } => drop(self.pressure.insert(device, level)),
            Input::Shutdown { deadline } => self.shut_down(now, deadline, effects),
        }
        self.check_drained(effects);
    }

    /// The moment at which [`Input::Tick`] is wanted at the latest. It may come early; it must not be missed.
    pub fn alarm(&self) -> Time {
        self.alarm
    }

    /// The moment at which [`Input::Cooldown`] is wanted.
    pub fn cooldown_alarm(&self) -> Time {
        self.cooldown_alarm
    }

    /// True if the model was declared.
    pub fn knows(&self, key: ModelKey) -> bool {
        self.models.contains_key(&key)
    }

    /// The model that a worker belongs to, for as long as its thread lives.
    pub(crate) fn model_of(&self, worker: WorkerId) -> Option<ModelKey> {
        self.owners.get(&worker).copied()
    }

    /// The requests that a worker is running.
    pub(crate) fn running(&self, worker: WorkerId) -> &[Ticket] {
        let model = self.model_of(worker).and_then(|key| self.models.get(&key));
        let entry = model.and_then(|model| model.workers.iter().find(|entry| entry.id == worker));
        entry.map_or(&[], Worker::running)
    }

    /// A model that was declared.
    pub(crate) fn model(&self, key: ModelKey) -> Option<&ModelState> {
        self.models.get(&key)
    }

    /// Every model that was declared.
    pub(crate) fn models(&self) -> impl Iterator<Item = &ModelState> {
        self.models.values()
    }

    /// Forgets a model of which nothing is left: no request, no worker, no thread that has yet to end. False if
    /// something is.
    pub(crate) fn forget(&mut self, key: ModelKey) -> bool {
        let at_rest = self.models.get(&key).is_none_or(ModelState::is_at_rest);
        if at_rest {
            self.models.remove(&key);
        }
        at_rest
    }

    fn declare(&mut self, key: ModelKey, policy: ModelPolicy) {
        self.models.entry(key).or_insert_with(|| ModelState::new(key, policy));
    }

    fn wake_at(&mut self, moment: Time) {
        self.alarm = self.alarm.min(moment);
    }

    /// The model that a worker belongs to, if the worker's thread still lives.
    fn owner(&mut self, worker: WorkerId) -> Option<(ModelKey, &mut ModelState)> {
        let key = *self.owners.get(&worker)?;
        self.models.get_mut(&key).map(|model| (key, model))
    }

    /// Does everything that is due: deadlines, restarts, stalls, unloads, the end of a shutdown. Sets the
    /// alarm exactly.
    fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.alarm = Time::NEVER;
        let keys: Vec<ModelKey> = self.models.keys().copied().collect();
        for key in keys {
            self.expire(now, key, effects);
            self.check_health(now, key, effects);
            self.check_leaving(now, key, effects);
            self.check_unload(now, key, effects);
            self.advance(now, key, effects);
            if let Some(model) = self.models.get(&key) {
                let next = model.next_alarm(now);
                self.wake_at(next);
            }
        }
        self.check_shutdown(now, effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_from_its_declaration_until_it_is_forgotten() {
        let (key, other) = (ModelKey(0), ModelKey(1));
        let mut scheduler = Scheduler::new("test", Duration::from_secs(60), 7);
        let policy = ModelState::of_a_test().policy;
        let mut effects = Vec::new();
        scheduler.handle(Time::ZERO, Input::Declare { key, policy }, &mut effects);
        assert!(scheduler.knows(key) && !scheduler.knows(other));
        assert_eq!(scheduler.model(key).map(|model| model.key), Some(key));
        let ticket = Ticket::new(RequestId(1), Time::NEVER);
        scheduler.handle(Time::ZERO, Input::Submit { tickets: vec![(key, ticket)] }, &mut effects);
        assert!(!scheduler.forget(key) && scheduler.knows(key), "a request waits");
        let (worker, footprint) = (WorkerId(1), Footprint::default());
        for input in [
            Input::Sized { worker, footprint },
            Input::RoomGranted { worker },
            Input::Started { worker, footprint },
        ] {
            scheduler.handle(Time::ZERO, input, &mut effects);
        }
        let running = |scheduler: &Scheduler, worker| scheduler.running(worker).len();
        assert_eq!((running(&scheduler, worker), running(&scheduler, WorkerId(2))), (1, 0));
        assert_eq!(scheduler.model_of(worker), Some(key));
        let outcomes = vec![(RequestId(1), Outcome::Answered)];
        scheduler.handle(Time::ZERO, Input::Finished { worker, outcomes }, &mut effects);
        scheduler.handle(Time::ZERO, Input::Remove { key }, &mut effects);
        assert!(!scheduler.forget(key), "its thread has not ended");
        scheduler.handle(Time::ZERO, Input::Ended { worker }, &mut effects);
        assert!(scheduler.forget(key) && !scheduler.knows(key) && scheduler.forget(other));
    }
}
