//! The simulated world: virtual time, the events to come, and what the pools' shell does with each effect.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fastrand::Rng;

use super::coverage::{Coverage, Fault};
use super::scenario::{ModelPlan, Scenario};
use super::workers::{Order, SimWorker, Told};
use super::{Plant, Report};
use crate::id::{Bytes, Device, ModelKey, RequestId, Time, WorkerId};
use crate::maintenance::room::{RoomDesk, RoomInput};
use crate::memory::Ledger;
use crate::scheduler::{CallId, Effect, Fate, Input, Scheduler, Source, Urgency};
use crate::telemetry::{Event as Telemetry, EvictionReason};

/// More events than any history of this size can need.
const MOST_EVENTS: u64 = 100_000;

/// What a thread or an actor tells its pool; the pool makes an input of it when it arrives.
#[derive(Debug)]
pub(super) enum Word {
    Input(Input),
    /// Model code panicked; the weights come along.
    Panicked {
        weights: Option<usize>,
    },
    ActorEnded,
}

#[derive(Debug)]
pub(super) enum Event {
    /// A message to a pool that is about no worker.
    ToPool {
        pool: usize,
        input: Input,
    },
    /// A message to a pool from one of its workers.
    FromWorker {
        pool: usize,
        worker: WorkerId,
        word: Word,
    },
    /// An order to a worker's actor.
    ToWorker {
        pool: usize,
        worker: WorkerId,
        order: Order,
    },
    /// A thread comes to the end of what it is doing.
    Step {
        pool: usize,
        worker: WorkerId,
        generation: u32,
    },
    /// A continuous run is done with one of its requests.
    Item {
        pool: usize,
        worker: WorkerId,
        generation: u32,
        request: usize,
    },
    ThreadEnds {
        pool: usize,
        worker: WorkerId,
    },
    Kill {
        pool: usize,
        worker: WorkerId,
    },
    ToDesk(RoomInput),
    /// Maintenance's answer to an ask; the lease comes along with a grant.
    Room {
        pool: usize,
        worker: WorkerId,
        answer: Result<(Device, Bytes), Input>,
    },
    Relieve {
        device: Device,
    },
    AskOffers {
        pool: usize,
    },
    DeskAlarm,
    Tick {
        pool: usize,
    },
    CooldownAlarm {
        pool: usize,
    },
    CooldownDue {
        pool: usize,
    },
    Interval,
    Arrive,
    CallerGoes {
        request: usize,
    },
    Command,
    ShutDown,
    DrainedBy {
        pool: usize,
    },
    Close,
}

/// One accepted request, as its caller and its job see it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) pool: usize,
    pub(super) model: usize,
    pub(super) lane: usize,
    pub(super) deadline: Time,
    pub(super) streams: bool,
    pub(super) poison: bool,
    pub(super) bad: bool,
    pub(super) hangs: bool,
    pub(super) attempt: u32,
    /// When its current run sends out, or sent out, part of the answer.
    pub(super) emits_at: Option<Time>,
    pub(super) answers: u32,
    pub(super) cancelled: bool,
    /// The scheduler has let go of it.
    pub(super) gone: bool,
    pub(super) deaths: u32,
    pub(super) running_on: Option<WorkerId>,
}

impl Request {
    pub(super) fn is_answered(&self) -> bool {
        self.answers > 0 || self.cancelled
    }

    pub(super) fn has_emitted(&self, now: Time) -> bool {
        self.emits_at.is_some_and(|at| at <= now)
    }

    pub(super) fn is_abandoned(&self, now: Time) -> bool {
        self.cancelled || (!self.has_emitted(now) && now >= self.deadline)
    }

    /// From now on no run that has begun can answer or send anything out.
    pub(super) fn end_attempt(&mut self, now: Time) {
        self.attempt += 1;
        if !self.has_emitted(now) {
            self.emits_at = None;
        }
    }
}

/// Weights in memory, alive while somebody holds them.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) device: Device,
    pub(super) bytes: Bytes,
    pub(super) holders: u32,
}

/// What the shell and the checks know of a model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) device: Device,
    pub(super) weights: Option<usize>,
    pub(super) offered: Option<usize>,
    pub(super) retained: Option<usize>,
    pub(super) pinned: bool,
    pub(super) slots: [usize; 2],
    pub(super) unanswered: [usize; 2],
    /// Failures that count, for the restart budget.
    pub(super) failures: VecDeque<Time>,
    pub(super) broken: bool,
    pub(super) no_start_before: Time,
    pub(super) last_busy: Time,
    pub(super) last_cooldown: Option<Time>,
}

/// What is held for a worker between its wish for room and its load.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) lease: Option<(Device, Bytes)>,
    pub(super) weights: Option<usize>,
    pub(super) asked: bool,
}

pub(super) struct Pool {
    pub(super) scheduler: Scheduler,
    pub(super) models: Vec<Model>,
    pub(super) workers: Vec<SimWorker>,
    pub(super) rooms: BTreeMap<WorkerId, Room>,
    /// What waits in the scheduler's queues, by deadline.
    pub(super) queued: BTreeSet<(Time, usize)>,
    /// Asks that maintenance has not answered yet, or whose answer is on its way.
    pub(super) asks: BTreeSet<WorkerId>,
    tick_at: Time,
    cooldown_at: Time,
    pub(super) ticks: (Time, u32),
    pub(super) shut_by: Option<Time>,
    pub(super) drained: bool,
    from_maintenance: Time,
    to_maintenance: Time,
}

/// The invariant that does not hold, and what was seen.
pub(super) type Broken = (&'static str, String);

pub(super) struct World {
    pub(super) now: Time,
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free_slots: Vec<usize>,
    sequence: u64,
    pub(super) random: Rng,
    pub(super) scenario: Scenario,
    pub(super) pools: Vec<Pool>,
    pub(super) requests: Vec<Request>,
    pub(super) ledgers: BTreeMap<Device, Ledger>,
    /// What is held, counted beside the ledgers.
    pub(super) held: BTreeMap<Device, Bytes>,
    pub(super) weights: Vec<Weights>,
    pub(super) desk: RoomDesk,
    pub(super) desk_at: Time,
    pub(super) arrivals_left: u32,
    /// Which calls of preload and unload have not returned.
    pub(super) calls: BTreeSet<u64>,
    pub(super) next_call: u64,
    pub(super) closing: bool,
    pub(super) plant: Option<Plant>,
    pub(super) coverage: Coverage,
    pub(super) broken: Option<Broken>,
    trace: Option<Vec<String>>,
    effects: Vec<Effect>,
    /// Inputs that follow from effects at once, as in the shell.
    follow: VecDeque<(usize, Input)>,
    /// Requests that came back from a worker in the input at hand.
    pub(super) came_back: Vec<usize>,
}

impl Pool {
    fn new(name: &'static str, interval: Duration, seed: u64, plans: &[ModelPlan]) -> Self {
        let model = |plan: &ModelPlan| Model {
            device: plan.policy.device.clone(),
            weights: None,
            offered: None,
            retained: None,
            pinned: plan.policy.pinned,
            slots: [0; 2],
            unanswered: [0; 2],
            failures: VecDeque::new(),
            broken: false,
            no_start_before: Time::ZERO,
            last_busy: Time::ZERO,
            last_cooldown: None,
        };
        Self {
            scheduler: Scheduler::new(name, interval, seed),
            models: plans.iter().map(model).collect(),
            workers: Vec::new(),
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

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut random = Rng::with_seed(seed);
        let scenario = Scenario::new(&mut random);
        let interval = scenario.interval;
        let names = ["red", "green", "blue"];
        let pools: Vec<Pool> = scenario
            .pools
            .iter()
            .zip(names)
            .map(|(plans, name)| Pool::new(name, interval, seed, plans))
            .collect();
        let ledgers: BTreeMap<Device, Ledger> =
            scenario.limits.iter().map(|(device, limit)| (device.clone(), Ledger::new(*limit))).collect();
        Self {
            now: Time::ZERO,
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            sequence: 0,
            desk: RoomDesk::new(pools.len()),
            desk_at: Time::NEVER,
            held: ledgers.keys().map(|device| (device.clone(), Bytes::ZERO)).collect(),
            ledgers,
            pools,
            requests: Vec::new(),
            weights: Vec::new(),
            arrivals_left: scenario.requests,
            scenario,
            random,
            calls: BTreeSet::new(),
            next_call: 0,
            closing: false,
            plant,
            coverage: Coverage::default(),
            broken: None,
            trace: traced.then(Vec::new),
            effects: Vec::new(),
            follow: VecDeque::new(),
            came_back: Vec::new(),
        }
    }

    pub(super) fn run(&mut self) -> Result<Report, Broken> {
        self.declare_all();
        self.after(Duration::ZERO, Event::Arrive);
        let interval = self.scenario.interval;
        self.after(interval, Event::Interval);
        self.plan_commands();
        let mut events = 0;
        while let Some(Reverse((at, _, slot))) = self.heap.pop() {
            self.now = at;
            self.free_slots.push(slot);
            let Some(event) = self.slots[slot].take() else { continue };
            if self.trace.is_some() {
                let line = format!("{event:?}");
                self.note(|| line);
            }
            if catch_unwind(AssertUnwindSafe(|| self.happen(event))).is_err() {
                self.break_invariant("no panic", || "see standard error".to_owned());
            }
            events += 1;
            if events > MOST_EVENTS {
                self.break_invariant("comes to rest", || "too many events".to_owned());
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.check_rest();
        match self.broken.take() {
            Some(broken) => Err(broken),
            None => Ok(Report { events, coverage: std::mem::take(&mut self.coverage) }),
        }
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// Writes a line of the trace, if one is kept.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14.6}  {}", self.now.since(Time::ZERO).as_secs_f64(), line()));
        }
    }

    pub(super) fn at(&mut self, at: Time, event: Event) {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.sequence += 1;
        self.heap.push(Reverse((at.max(self.now), self.sequence, slot)));
    }

    pub(super) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// A fault that happens as often as the scenario says, and not once the history is being brought to its end.
    pub(super) fn fault(&mut self, fault: Fault) -> bool {
        let rate = self.scenario.rate(fault);
        let happens = !self.closing && rate > 0.0 && self.random.f64() < rate;
        if happens {
            self.coverage.fault(fault);
        }
        happens
    }

    fn delay(&mut self) -> Duration {
        let most = self.scenario.delay.as_micros() as u64;
        Duration::from_micros(if most == 0 { 0 } else { self.random.u64(0..most) })
    }

    /// Messages between the same two parties arrive in the order in which they were sent.
    pub(super) fn send(&mut self, last: Time) -> Time {
        let arrives = self.now + self.delay();
        arrives.max(last)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToPool { pool, input } => self.feed(pool, input),
            Event::FromWorker { pool, worker, word } => self.hear(pool, worker, word),
            Event::ToWorker { pool, worker, order } => self.ordered(pool, worker, order),
            Event::Step { pool, worker, generation } => self.step(pool, worker, generation),
            Event::Item { pool, worker, generation, request } => {
                self.item_done(pool, worker, generation, request);
            }
            Event::ThreadEnds { pool, worker } => self.thread_ends(pool, worker),
            Event::Kill { pool, worker } => self.kill(pool, worker),
            Event::ToDesk(input) => self.desk(input),
            Event::Room { pool, worker, answer } => self.room_answered(pool, worker, answer),
            Event::Relieve { device } => self.relieve(&device),
            Event::AskOffers { pool } => self.offer(pool),
            Event::DeskAlarm => {
                self.desk_at = Time::NEVER;
                self.desk(RoomInput::Tick);
            }
            Event::Tick { pool } => self.tick(pool),
            Event::CooldownAlarm { pool } => {
                let at = self.send(self.pools[pool].from_maintenance);
                self.pools[pool].from_maintenance = at;
                self.at(at, Event::CooldownDue { pool });
            }
            Event::CooldownDue { pool } => {
                self.pools[pool].cooldown_at = Time::NEVER;
                self.feed(pool, Input::Cooldown);
            }
            Event::Interval => self.interval(),
            Event::Arrive => self.arrive(),
            Event::CallerGoes { request } => self.caller_goes(request),
            Event::Command => self.command(),
            Event::ShutDown => self.shut_down(),
            Event::DrainedBy { pool } => {
                self.check(
                    "drained by the deadline",
                    |world| world.pools[pool].drained,
                    || format!("pool {pool}"),
                );
            }
            Event::Close => self.close(),
        }
    }

    fn tick(&mut self, pool: usize) {
        let now = self.now;
        let Pool { ticks, tick_at, .. } = &mut self.pools[pool];
        if *tick_at == now {
            *tick_at = Time::NEVER;
            *ticks = if ticks.0 == now { (now, ticks.1 + 1) } else { (now, 1) };
        } else if self.random.u8(..4) > 0 {
            // An alarm that was set to another moment; now and then it rings nevertheless.
            return;
        }
        self.feed(pool, Input::Tick);
    }

    /// Gives a pool's scheduler an input and carries out what follows, until nothing more does.
    pub(super) fn feed(&mut self, pool: usize, input: Input) {
        let ticked = matches!(input, Input::Tick);
        self.follow.push_back((pool, input));
        while let Some((pool, mut input)) = self.follow.pop_front() {
            self.coverage.input(&input);
            if self.trace.is_some() {
                let line = format!("    pool {pool} <= {input:?}");
                self.note(|| line);
            }
            self.before_input(pool, &mut input);
            let mut effects = std::mem::take(&mut self.effects);
            self.pools[pool].scheduler.handle(self.now, input, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(pool, effect);
            }
            self.effects = effects;
            self.requeue();
        }
        self.drop_offers(pool);
        self.set_alarms(pool);
        self.check_pool(pool, ticked);
    }

    fn set_alarms(&mut self, pool: usize) {
        let state = &mut self.pools[pool];
        let (tick, cooldown) = (state.scheduler.alarm().max(self.now), state.scheduler.cooldown_alarm());
        if tick < state.tick_at {
            state.tick_at = tick;
            self.at(tick, Event::Tick { pool });
        }
        if cooldown < self.pools[pool].cooldown_at {
            self.pools[pool].cooldown_at = cooldown;
            self.at(cooldown, Event::CooldownAlarm { pool });
        }
    }

    fn carry_out(&mut self, pool: usize, effect: Effect) {
        self.coverage.effect(&effect);
        if self.trace.is_some() {
            let line = format!("    pool {pool} => {effect:?}");
            self.note(|| line);
        }
        match effect {
            Effect::Spawn { worker, key } => self.spawn(pool, worker, key),
            Effect::Size { worker } => self.order(pool, worker, Order::Size),
            Effect::Reserve { worker, key, bytes, source, urgency } => {
                self.reserve(pool, worker, key, (bytes, source), urgency);
            }
            Effect::CancelReserve { worker } => self.cancel_reserve(pool, worker),
            Effect::Load { worker, .. } => self.load(pool, worker),
            Effect::Run { worker, requests } => self.run_batch(pool, worker, &requests),
            Effect::Fail { request, error } => {
                if self.lets_go(request) && self.plant != Some(Plant::AnswerLost) {
                    self.answer(request.0 as usize, error.reason());
                }
            }
            Effect::Expire { request } => self.expire(request),
            Effect::ExpireRunning { request } => self.expire_running(request),
            Effect::Forget { request } => {
                self.lets_go(request);
                let answered = self.requests[request.0 as usize].is_answered();
                self.check("no request lost", |_| answered, || format!("{request} was forgotten unanswered"));
            }
            Effect::Ping { worker } => self.order(pool, worker, Order::Ping),
            Effect::Stop { worker, reason } => self.stop(pool, worker, reason),
            Effect::Quarantine { worker } => {
                let model = self.worker(pool, worker).model;
                self.count_failure(pool, model);
                self.offer_weights(pool, worker, None);
                self.let_go(pool, worker, Told::Quarantined);
            }
            Effect::RetainWeights { key } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                let (old, offered) = (model.retained.take(), model.offered.take());
                model.retained = offered;
                self.drop_weights(old);
            }
            Effect::ReleaseWeights { key } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                let (retained, offered) = (model.retained.take(), model.offered.take());
                self.drop_weights(retained);
                self.drop_weights(offered);
            }
            Effect::Relieve { device } => self.tell_maintenance(pool, Event::Relieve { device }),
            Effect::Return { call, result } => self.returned(pool, call, result.is_ok()),
            Effect::Emit(event) => self.heard(pool, &event),
            Effect::Drained { .. } => self.drained(pool),
        }
    }

    fn heard(&mut self, pool: usize, event: &Telemetry) {
        if let Telemetry::BreakerClosed { model, .. } = event {
            let index = self.scenario.pools[pool].iter().position(|plan| plan.policy.model == *model);
            if let Some(index) = index {
                let model = &mut self.pools[pool].models[index];
                (model.broken, model.no_start_before) = (false, Time::ZERO);
                model.failures.clear();
            }
        }
    }

    fn returned(&mut self, pool: usize, call: CallId, _well: bool) {
        let open = self.calls.remove(&call.0);
        self.check("calls return once", |_| open, || format!("pool {pool}, {call:?}"));
    }

    fn drained(&mut self, pool: usize) {
        self.pools[pool].drained = true;
        let left = self.requests.iter().position(|request| request.pool == pool && !request.gone);
        // A request on its way to the pool will be refused when it arrives.
        let left = left.filter(|index| {
            let request = &self.requests[*index];
            request.running_on.is_some() || self.pools[pool].queued.contains(&(request.deadline, *index))
        });
        self.check("everybody is answered at shutdown", |_| left.is_none(), || format!("request {left:?}"));
    }

    fn expire(&mut self, request: RequestId) {
        let deadline = self.requests[request.0 as usize].deadline;
        let now = self.now;
        self.check("deadlines", |_| deadline <= now, || format!("{request} was expired early"));
        if self.lets_go(request) {
            self.answer(request.0 as usize, "timeout");
        }
    }

    /// A request that is still running is answered, unless part of its answer is out.
    fn expire_running(&mut self, request: RequestId) {
        let index = request.0 as usize;
        let (state, now) = (&self.requests[index], self.now);
        let (deadline, gone) = (state.deadline, state.gone);
        self.check("deadlines", |_| deadline <= now && !gone, || format!("{request} was expired wrongly"));
        let emitted = self.requests[index].emits_at.is_some_and(|at| at <= now);
        if !emitted && !self.requests[index].is_answered() {
            self.answer(index, "timeout");
        }
    }

    /// The scheduler lets go of a request, which it does exactly once.
    fn lets_go(&mut self, request: RequestId) -> bool {
        let index = request.0 as usize;
        let state = &mut self.requests[index];
        let first = !std::mem::replace(&mut state.gone, true);
        let (pool, deadline) = (state.pool, state.deadline);
        self.pools[pool].queued.remove(&(deadline, index));
        self.check("ends once", |_| first, || format!("{request} was let go of twice"));
        first
    }

    /// Requests that came back from a worker and were neither answered nor run again wait in the queue.
    fn requeue(&mut self) {
        while let Some(index) = self.came_back.pop() {
            let request = &self.requests[index];
            if !request.gone && request.running_on.is_none() {
                self.pools[request.pool].queued.insert((request.deadline, index));
            }
        }
    }

    pub(super) fn tell_maintenance(&mut self, pool: usize, event: Event) {
        let at = self.send(self.pools[pool].to_maintenance);
        self.pools[pool].to_maintenance = at;
        self.at(at, event);
    }

    pub(super) fn tell_pool(&mut self, pool: usize, event: Event) {
        let at = self.send(self.pools[pool].from_maintenance);
        self.pools[pool].from_maintenance = at;
        self.at(at, event);
    }

    /// What the scheduler is about to be told, for the checks and the shell's own books.
    fn before_input(&mut self, pool: usize, input: &mut Input) {
        match input {
            Input::Submit { tickets } => {
                for (_, ticket) in tickets {
                    let index = ticket.request.0 as usize;
                    self.pools[pool].queued.insert((ticket.deadline, index));
                    if self.plant == Some(Plant::DeadlineIgnored) {
                        ticket.deadline = ticket.deadline + Duration::from_secs(30);
                    }
                }
            }
            Input::Pin { key, pinned } => self.pools[pool].models[key.0 as usize].pinned = *pinned,
            Input::Started { worker, .. } => {
                let now = self.now;
                let worker = self.worker(pool, *worker);
                (worker.ready, worker.ready_at) = (true, now);
            }
            Input::StartFailed { worker, .. } => self.worker_failed(pool, *worker, true),
            Input::Finished { worker, outcomes } => {
                let requests = outcomes.iter().map(|(request, _)| request.0 as usize);
                let (worker, now) = (*worker, self.now);
                let (key, told) = (self.worker(pool, worker).model, self.worker(pool, worker).told);
                if told != Told::Nothing {
                    // From a thread that was let go; what it ran has been taken from it.
                    return;
                }
                for request in requests.collect::<Vec<_>>() {
                    self.unassign(pool, worker, request);
                }
                self.pools[pool].models[key].last_busy = now;
            }
            Input::Died { worker, .. } => {
                self.worker_failed(pool, *worker, false);
                self.let_go(pool, *worker, Told::Dead);
            }
            Input::Ended { worker } => {
                self.worker_failed(pool, *worker, false);
                self.let_go(pool, *worker, Told::Dead);
            }
            _ => {}
        }
    }

    /// What the shell makes of a worker's message.
    fn hear(&mut self, pool: usize, worker: WorkerId, word: Word) {
        self.worker(pool, worker).in_flight -= 1;
        let input = match word {
            Word::Input(Input::Started { worker, footprint }) => {
                let state = self.worker(pool, worker);
                let (model, weights) = (state.model, state.weights);
                self.pools[pool].models[model].weights = weights;
                Input::Started { worker, footprint }
            }
            Word::Input(Input::Pong { worker, last_progress, .. }) => {
                Input::Pong { worker, last_progress, fates: self.fates(pool, worker) }
            }
            Word::Input(input) => input,
            Word::Panicked { weights } => {
                if self.worker(pool, worker).told != Told::Nothing {
                    self.drop_weights(weights);
                    return;
                }
                self.offer_weights(pool, worker, weights);
                self.died(pool, worker)
            }
            Word::ActorEnded => {
                if self.worker(pool, worker).told != Told::Nothing {
                    return;
                }
                self.offer_weights(pool, worker, None);
                self.died(pool, worker)
            }
        };
        self.feed(pool, input);
    }

    fn died(&mut self, pool: usize, worker: WorkerId) -> Input {
        let now = self.now;
        for request in self.worker(pool, worker).assigned.clone() {
            self.requests[request].end_attempt(now);
        }
        Input::Died { worker, cause: crate::error::Cause::new("crashed"), fates: self.fates(pool, worker) }
    }

    fn fates(&mut self, pool: usize, worker: WorkerId) -> Vec<(RequestId, Fate)> {
        let now = self.now;
        let assigned = self.worker(pool, worker).assigned.clone();
        let fate = |index: usize| {
            let request = &self.requests[index];
            let fate = match (request.is_answered(), request.has_emitted(now)) {
                (true, _) => Fate::Answered,
                (false, true) => Fate::Emitted,
                (false, false) => Fate::Untouched,
            };
            (RequestId(index as u64), fate)
        };
        assigned.into_iter().map(fate).collect()
    }

    /// A weak reference that may still be upgraded at this moment.
    pub(super) fn offer_weights(&mut self, pool: usize, worker: WorkerId, carried: Option<usize>) {
        let index = self.worker(pool, worker).model;
        let held = carried.or_else(|| self.hold(self.pools[pool].models[index].weights));
        let old = std::mem::replace(&mut self.pools[pool].models[index].offered, held);
        self.drop_weights(old);
    }

    fn drop_offers(&mut self, pool: usize) {
        for index in 0..self.pools[pool].models.len() {
            let offered = self.pools[pool].models[index].offered.take();
            self.drop_weights(offered);
        }
    }

    /// Takes hold of weights, if they are still there.
    pub(super) fn hold(&mut self, weights: Option<usize>) -> Option<usize> {
        let index = weights.filter(|index| self.weights[*index].holders > 0)?;
        self.weights[index].holders += 1;
        Some(index)
    }

    pub(super) fn drop_weights(&mut self, weights: Option<usize>) {
        let Some(weights) = weights.map(|index| &mut self.weights[index]) else { return };
        weights.holders -= 1;
        if weights.holders == 0 {
            let (device, bytes) = (weights.device.clone(), weights.bytes);
            self.give_back(&device, bytes);
        }
    }

    /// Answers a request's caller, unless it has been answered or has gone.
    pub(super) fn answer(&mut self, index: usize, reason: &'static str) {
        let request = &mut self.requests[index];
        if request.is_answered() {
            return;
        }
        request.answers += 1;
        if self.plant == Some(Plant::AnswerSentTwice) {
            request.answers += 1;
        }
        self.coverage.ending(reason);
        self.free_slot(index);
    }

    pub(super) fn free_slot(&mut self, index: usize) {
        let Request { pool, model, lane, answers, .. } = self.requests[index];
        let state = &mut self.pools[pool].models[model];
        state.unanswered[lane] -= 1;
        if self.plant != Some(Plant::SlotNotGivenBack) {
            state.slots[lane] -= 1;
        }
        let slots_match = state.slots == state.unanswered;
        self.check("slots", |_| slots_match, || format!("request {index}"));
        self.check("answered once", |_| answers <= 1, || format!("request {index}"));
    }

    fn reserve(
        &mut self,
        pool: usize,
        worker: WorkerId,
        key: ModelKey,
        (bytes, source): (Bytes, Source),
        urgency: Urgency,
    ) {
        self.meet(pool, worker, key);
        let model = &self.pools[pool].models[key.0 as usize];
        let (device, kept, current) = (model.device.clone(), model.retained, model.weights);
        let weights = match source {
            Source::Shared => self.hold(kept.or(current)),
            Source::Load => None,
        };
        let lease = if self.scenario.takes_free_room { self.lease(&device, bytes) } else { None };
        let found = lease.is_some();
        self.pools[pool].rooms.insert(worker, Room { lease, weights, asked: !found });
        if found {
            self.follow.push_back((pool, Input::RoomGranted { worker }));
        } else if self.scenario.takes_free_room && urgency == Urgency::IfFree {
            let (free, limit) = (self.ledgers[&device].free(), self.ledgers[&device].limit());
            self.follow.push_back((pool, Input::RoomDenied { worker, needed: bytes, free, limit }));
        } else {
            self.ask_for_room(pool, worker, key, (device, bytes), urgency);
        }
    }

    fn load(&mut self, pool: usize, worker: WorkerId) {
        let Some(Room { lease, weights, .. }) = self.pools[pool].rooms.remove(&worker) else { return };
        self.order(pool, worker, Order::Load { lease, weights });
    }

    pub(super) fn stop(&mut self, pool: usize, worker: WorkerId, reason: EvictionReason) {
        self.check_stop(pool, worker, reason);
        self.let_go(pool, worker, Told::Stopped);
    }
}
