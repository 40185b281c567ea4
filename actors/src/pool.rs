//! The pool supervisor of one capability: it owns its workers' handles, which nobody else stores, and every
//! accepted job until it is answered. It decides nothing: each message becomes an input of the pure
//! scheduler, and the effects that come back are carried out in `pool/effects.rs`; what becomes of workers is
//! taken in by `pool/reports.rs`. Clients send it jobs, workers report to it, maintenance and the system
//! command it. Its mailbox is bounded by the slots of its jobs.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use rustc_hash::FxHashMap;
use tokio::sync::{oneshot, watch};

use crate::alarm::Alarm;
use crate::capability::Capability;
use crate::catalogue::{Catalogue, Registered};
use crate::children::end_children;
use crate::error::{Error, Result};
use crate::id::{ModelKey, RequestId, Time, WorkerId};
use crate::intake::{Arrival, Intake, OpenIntake};
use crate::job::Accepted;
use crate::maintenance::eviction::PoolIndex;
use crate::maintenance::{MaintenanceMessage, PoolCommand, PoolDrained};
use crate::memory::{Budgets, Lease};
use crate::progress::Clock;
use crate::roster::{Listed, Roster};
use crate::scheduler::{CallId, Effect, Input, ModelPolicy, Scheduler, Ticket};
use crate::status::SystemStatus;
use crate::telemetry::Events;
use crate::worker::{Crash, Report, SharedWeights, WorkerHandle};

mod calls;
mod effects;
mod publish;
mod reports;

pub(crate) use calls::{Call, Caller};
use publish::Publisher;

/// Limit on the time in which the actors of the workers end, which have no more to do.
const WORKERS_END: Duration = Duration::from_millis(100);

/// A message to a pool from clients, workers, maintenance, the system or its own timers.
pub(crate) enum PoolMessage<C: Capability> {
    /// Requests have come, or their callers gone: the intake is not empty any more.
    Arrivals,
    /// Models have been removed or replaced.
    Removals,
    /// Start, stop or pin a model, and say when it is done.
    Call { model: Arc<Registered<C>>, id: CallId, call: Call, caller: Caller },
    /// The caller of a call has gone.
    CallerGone { key: ModelKey, call: CallId },
    /// From a worker's thread.
    Report(Report<C>),
    /// From maintenance or the system.
    Command(PoolCommand),
    /// The scheduler's alarm.
    Tick,
    /// The status has waited long enough.
    Publish,
}

crate::impl_message!(PoolMessage<C>);

impl<C: Capability> From<Report<C>> for PoolMessage<C> {
    fn from(report: Report<C>) -> Self {
        Self::Report(report)
    }
}

impl<C: Capability> TryFrom<PoolMessage<C>> for Report<C> {
    type Error = ();
    fn try_from(message: PoolMessage<C>) -> Result<Self, ()> {
        match message {
            PoolMessage::Report(report) => Ok(report),
            _ => Err(()),
        }
    }
}

impl<C: Capability> From<PoolCommand> for PoolMessage<C> {
    fn from(command: PoolCommand) -> Self {
        Self::Command(command)
    }
}

impl<C: Capability> TryFrom<PoolMessage<C>> for PoolCommand {
    type Error = ();
    fn try_from(message: PoolMessage<C>) -> Result<Self, ()> {
        match message {
            PoolMessage::Command(command) => Ok(command),
            _ => Err(()),
        }
    }
}

pub(crate) struct PoolArguments {
    /// Its name in ractor's registry, if it has one.
    pub(crate) name: Option<String>,
    pub(crate) index: PoolIndex,
    pub(crate) clock: Clock,
    pub(crate) cooldown_interval: Duration,
    pub(crate) seed: u64,
    pub(crate) budgets: Budgets,
    pub(crate) maintenance: ActorRef<MaintenanceMessage>,
    pub(crate) status: watch::Sender<SystemStatus>,
    pub(crate) events: Events,
}

/// The lease and weights held for a worker between its request for room and its load.
struct HeldRoom<C: Capability> {
    lease: Option<Lease>,
    /// Kept from the moment of the decision, so that weights to share cannot go in between.
    weights: Option<Arc<SharedWeights<C>>>,
    ask: Option<MaintenanceMessageFactory>,
}

/// Repeats a question to maintenance after it was started again.
type MaintenanceMessageFactory = Box<dyn Fn() -> MaintenanceMessage + Send>;

/// The pool's references to a model's weights. The workers keep them alive; the pool does so only while a
/// crashed worker's replacement waits for its backoff.
struct WeightsEntry<C: Capability> {
    shared: Weak<SharedWeights<C>>,
    /// The weights of a worker that has just crashed, until the scheduler says whether to keep them.
    offered: Option<Arc<SharedWeights<C>>>,
    retained: Option<Arc<SharedWeights<C>>>,
}

pub(crate) struct PoolState<C: Capability> {
    arguments: PoolArguments,
    intake: OpenIntake<C>,
    roster: Arc<Roster<C>>,
    scheduler: Scheduler,
    models: HashMap<ModelKey, Arc<Registered<C>>>,
    /// Models that were removed or replaced and have not ended.
    removed: Vec<ModelKey>,
    weights: HashMap<ModelKey, WeightsEntry<C>>,
    workers: HashMap<WorkerId, WorkerHandle<C>>,
    /// Names of threads that have not ended.
    threads: HashMap<WorkerId, Arc<str>>,
    jobs: FxHashMap<RequestId, Accepted<C>>,
    rooms: HashMap<WorkerId, HeldRoom<C>>,
    /// The models whose weights are on offer while the inputs at hand are worked off.
    offering: Vec<ModelKey>,
    calls: HashMap<CallId, Caller>,
    drained: Option<oneshot::Sender<PoolDrained>>,
    inputs: VecDeque<Input>,
    alarm: Alarm,
    told_cooldown: Time,
    publisher: Publisher,
}

/// The pool supervisor of one capability.
pub(crate) struct Pool<C: Capability> {
    intake: Arc<Intake<C>>,
    catalogue: Arc<Catalogue<C>>,
    roster: Arc<Roster<C>>,
}

impl<C: Capability> Pool<C> {
    pub(crate) fn new(intake: Arc<Intake<C>>, catalogue: Arc<Catalogue<C>>, roster: Arc<Roster<C>>) -> Self {
        Self { intake, catalogue, roster }
    }
}

impl<C: Capability> Actor for Pool<C> {
    type Msg = PoolMessage<C>;
    type State = PoolState<C>;
    type Arguments = PoolArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        // A predecessor that died with the note unread must not keep this pool from being told of removals.
        self.catalogue.take_removals();
        let (last, left) = self.roster.take_over(move |worker| {
            let _ = myself.send_message(PoolMessage::Report(Report::Ended { worker }));
        });
        let mut state = PoolState::new(arguments, OpenIntake::open(self.intake.clone()), self.roster.clone());
        state.scheduler.number_after(last);
        for (worker, thread) in left {
            state.inherit(worker, thread);
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PoolMessage::Arrivals => state.arrivals(),
            PoolMessage::Removals => {
                self.catalogue.take_removals();
                state.find_removed();
            }
            PoolMessage::Call { model, id, call, caller } => state.call(model, id, call, caller),
            PoolMessage::CallerGone { key, call } => state.caller_gone(key, call),
            PoolMessage::Report(report) => state.report(report),
            PoolMessage::Command(command) => state.command(command),
            PoolMessage::Tick => state.tick(),
            PoolMessage::Publish => state.publisher.due(),
        }
        state.proceed(&myself).await;
        Ok(())
    }

    /// Ends the actors of its workers, so that their names are free before its own end is known.
    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        end_children(&myself, WORKERS_END).await;
        Ok(())
    }

    /// Decides about crashes: a worker whose actor ends while the pool has its handle has crashed, whether
    /// its thread panicked or somebody killed or stopped it.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((actor, crash)) = Crash::of(event) {
            state.crashed(actor, crash);
            state.proceed(&myself).await;
        }
        Ok(())
    }
}

impl<C: Capability> PoolState<C> {
    fn new(arguments: PoolArguments, intake: OpenIntake<C>, roster: Arc<Roster<C>>) -> Self {
        Self {
            scheduler: Scheduler::new(C::NAME, arguments.cooldown_interval, arguments.seed),
            publisher: Publisher::new(arguments.clock, arguments.status.clone(), arguments.index),
            arguments,
            intake,
            roster,
            models: HashMap::new(),
            removed: Vec::new(),
            weights: HashMap::new(),
            workers: HashMap::new(),
            threads: HashMap::new(),
            jobs: FxHashMap::default(),
            rooms: HashMap::new(),
            offering: Vec::new(),
            calls: HashMap::new(),
            drained: None,
            inputs: VecDeque::new(),
            alarm: Alarm::unset(),
            told_cooldown: Time::NEVER,
        }
    }

    /// Feeds the inputs that have gathered to the scheduler and carries out what follows, until nothing more
    /// does.
    async fn proceed(&mut self, myself: &ActorRef<PoolMessage<C>>) {
        let mut effects = Vec::new();
        while let Some(input) = self.inputs.pop_front() {
            self.scheduler.handle(self.arguments.clock.now(), input, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Spawn { worker, key } => {
                        self.publisher.now();
                        self.spawn(myself, worker, key).await;
                    }
                    Effect::ReleaseWeights { key, thread } => {
                        self.publisher.now();
                        self.release_weights(key, thread);
                    }
                    effect => self.carry_out(effect),
                }
            }
        }
        // Weights that the scheduler did not want kept must not be kept alive by the offer.
        for key in self.offering.drain(..) {
            if let Some(entry) = self.weights.get_mut(&key) {
                entry.offered = None;
            }
        }
        self.forget_removed();
        self.set_alarms(myself);
        if self.publisher.is_due() {
            self.publish();
        }
        if self.publisher.wants_timer() {
            let pool = myself.clone();
            self.publisher.set_timer(move || {
                let _ = pool.send_message(PoolMessage::Publish);
            });
        }
    }

    fn set_alarms(&mut self, myself: &ActorRef<PoolMessage<C>>) {
        let (pool, at) = (myself, self.scheduler.alarm());
        if at < Time::NEVER {
            let pool = pool.clone();
            self.alarm.set(self.arguments.clock, at, move || {
                let _ = pool.send_message(PoolMessage::Tick);
            });
        }
        let at = self.scheduler.cooldown_alarm();
        if at < self.told_cooldown {
            self.told_cooldown = at;
            self.ask_maintenance(MaintenanceMessage::CooldownAt { pool: self.arguments.index, at });
        }
    }

    fn tick(&mut self) {
        self.alarm.rang();
        self.inputs.push_back(Input::Tick);
    }

    fn ask_maintenance(&self, message: MaintenanceMessage) {
        // If it has just died, the system starts it again and has this pool repeat its questions.
        let _ = self.arguments.maintenance.send_message(message);
    }

    fn declare(&mut self, model: &Arc<Registered<C>>) {
        if let Entry::Vacant(place) = self.models.entry(model.key()) {
            place.insert(model.clone());
            self.inputs.push_back(Input::Declare { key: model.key(), policy: policy_of(model) });
            if model.entry.is_removed() {
                self.remove(model);
            }
        }
    }

    /// Takes over a thread that an earlier pool left, with what it holds.
    fn inherit(&mut self, worker: WorkerId, thread: Listed<C>) {
        let (now, model) = (self.arguments.clock.now(), &thread.model);
        let left = (thread.why, thread.holds, thread.footprint);
        self.scheduler.inherit(now, (model.key(), policy_of(model)), worker, left);
        self.threads.insert(worker, thread.name);
        self.declare(&thread.model);
    }

    /// Has the model's workers go once nobody waits for them.
    fn remove(&mut self, model: &Registered<C>) {
        model.metrics().set_gauges([0; 4]);
        self.removed.push(model.key());
        self.inputs.push_back(Input::Remove { key: model.key() });
        self.publisher.now();
    }

    fn find_removed(&mut self) {
        let is_new =
            |model: &&Arc<Registered<C>>| model.entry.is_removed() && !self.removed.contains(&model.key());
        let found: Vec<Arc<Registered<C>>> = self.models.values().filter(is_new).cloned().collect();
        for model in found {
            self.remove(&model);
        }
    }

    /// Forgets the removed models of which nothing is left, so that models that come and go do not add up. One whose
    /// slot a caller holds, on the way to the pool, is still needed.
    fn forget_removed(&mut self) {
        let (scheduler, models, weights) = (&mut self.scheduler, &mut self.models, &mut self.weights);
        let before = self.removed.len();
        self.removed.retain(|key| {
            let is_free = models.get(key).is_none_or(|model| !model.entry.is_in_use());
            let is_over = is_free && scheduler.forget(*key);
            if is_over {
                models.remove(key);
                weights.remove(key);
            }
            !is_over
        });
        if self.removed.len() < before {
            self.publisher.now();
        }
    }

    /// Hands everything that has come to the scheduler at one moment, so that whole batches form.
    fn arrivals(&mut self) {
        let arrivals = self.intake.take();
        let mut tickets = Vec::with_capacity(arrivals.len());
        let mut cancelled = Vec::new();
        for arrival in arrivals {
            match arrival {
                Arrival::Submitted { model, accepted } => tickets.push(self.accept(&model, accepted)),
                Arrival::Cancelled { key, request } => cancelled.push(Input::Cancel { key, request }),
            }
        }
        self.inputs.push_back(Input::Submit { tickets });
        self.inputs.extend(cancelled);
        self.publisher.touch();
    }

    /// Keeps the job and returns how the scheduler knows it.
    fn accept(&mut self, model: &Arc<Registered<C>>, accepted: Accepted<C>) -> (ModelKey, Ticket) {
        self.declare(model);
        let job = accepted.job();
        let ticket = Ticket {
            lane: job.parts.lane,
            tenant: job.parts.tenant.clone(),
            priority: job.parts.priority,
            cost: job.cost,
            key: job.key,
            ends_at: job.ends_at(),
            ..Ticket::new(job.id, job.parts.deadline)
        };
        self.jobs.insert(job.id, accepted);
        (model.key(), ticket)
    }

    fn command(&mut self, command: PoolCommand) {
        let index = self.arguments.index;
        match command {
            PoolCommand::Cooldown => {
                self.told_cooldown = Time::NEVER;
                self.inputs.push_back(Input::Cooldown);
            }
            PoolCommand::Evict { worker, reason } => self.inputs.push_back(Input::Evict { worker, reason }),
            PoolCommand::Room { worker, result: Ok(lease) } => self.room_found(worker, lease),
            PoolCommand::Room { worker, result: Err(no_room) } => self.inputs.push_back(Input::RoomDenied {
                worker,
                needed: no_room.needed,
                free: no_room.free,
                limit: no_room.limit,
            }),
            PoolCommand::Offer => {
                let offers = self.scheduler.offers(self.arguments.clock.now(), index);
                self.ask_maintenance(MaintenanceMessage::Offers { pool: index, offers });
            }
            PoolCommand::CheckHealth => self.inputs.push_back(Input::HealthCheck),
            PoolCommand::Pressure { device, level } => {
                self.inputs.push_back(Input::Pressure { device, level });
            }
            PoolCommand::MaintenanceRestarted(maintenance) => self.repeat_questions(maintenance),
            PoolCommand::Shutdown { deadline, done } => {
                self.drained = Some(done);
                self.publisher.now();
                self.inputs.push_back(Input::Shutdown { deadline });
            }
        }
    }

    fn repeat_questions(&mut self, maintenance: ActorRef<MaintenanceMessage>) {
        self.arguments.maintenance = maintenance;
        self.told_cooldown = Time::NEVER;
        for room in self.rooms.values() {
            if let Some(ask) = &room.ask {
                self.ask_maintenance(ask());
            }
        }
    }

    fn room_found(&mut self, worker: WorkerId, lease: Lease) {
        // A lease for a worker that wants it no longer goes back as it is dropped here.
        if let Some(room) = self.rooms.get_mut(&worker) {
            room.lease = Some(lease);
            room.ask = None;
            self.inputs.push_back(Input::RoomGranted { worker });
        }
    }

    fn answer(&mut self, request: RequestId, error: Error) {
        if let Some(accepted) = self.jobs.remove(&request) {
            accepted.job().answer(Err(error));
        }
    }
}

/// The policy of a model as it is now: a pin outlives the pool that was told of it.
fn policy_of<C: Capability>(model: &Registered<C>) -> ModelPolicy {
    ModelPolicy { pinned: model.entry.pinned.load(Ordering::Relaxed), ..model.policy.clone() }
}
