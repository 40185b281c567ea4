//! The simulated workers: an actor that passes orders on and answers pings, and a thread that sizes, loads and runs,
//! and that can fail, stall or vanish at each step.

use std::collections::VecDeque;
use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::world::{Event, Weights, Word, World};
use crate::error::Failure;
use crate::id::{Bytes, Device, ModelKey, RequestId, Time, WorkerId};
use crate::model::Footprint;
use crate::scheduler::{Batching, Input, Outcome};
use crate::telemetry::EvictionReason;

/// What a worker's actor is told.
#[derive(Debug)]
pub(super) enum Order {
    Size,
    Load { lease: Option<(Device, Bytes)>, weights: Option<usize> },
    Run(Vec<(usize, u32)>),
    Ping,
}

/// What the scheduler has done with a worker.
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
    Ending,
    Ended,
}

/// How a run will end.
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
    known: bool,
    pub(super) spawned: bool,
    pub(super) actor: bool,
    deaf: bool,
    pub(super) told: Told,
    pub(super) doing: Doing,
    /// Counts up whenever what was planned for the thread is void.
    generation: u32,
    pub(super) stalled_at: Option<Time>,
    pub(super) inbox: VecDeque<Order>,
    batch: Vec<(usize, u32)>,
    pub(super) lease: Option<(Device, Bytes)>,
    pub(super) weights: Option<usize>,
    /// The scheduler was told that it is ready.
    pub(super) ready: bool,
    pub(super) ready_at: Time,
    /// Requests that the scheduler has running here.
    pub(super) assigned: Vec<usize>,
    /// Messages on their way to its actor, or from it or its thread to the pool.
    pub(super) in_flight: u32,
    to_actor: Time,
    from_actor: Time,
    from_thread: Time,
}

impl World {
    pub(super) fn worker(&mut self, pool: usize, worker: WorkerId) -> &mut SimWorker {
        let (workers, index) = (&mut self.pools[pool].workers, worker.0 as usize - 1);
        if workers.len() <= index {
            workers.resize_with(index + 1, SimWorker::default);
        }
        &mut workers[index]
    }

    pub(super) fn spawn(&mut self, pool: usize, worker: WorkerId, key: ModelKey) {
        self.meet(pool, worker, key);
        let state = self.worker(pool, worker);
        (state.spawned, state.actor) = (true, true);
    }

    /// The first that is heard of a worker is its start.
    pub(super) fn meet(&mut self, pool: usize, worker: WorkerId, key: ModelKey) {
        let state = self.worker(pool, worker);
        if !std::mem::replace(&mut state.known, true) {
            state.model = key.0 as usize;
            self.check_start(pool, key.0 as usize);
        }
    }

    /// To a worker's actor, if the pool still has its handle.
    pub(super) fn order(&mut self, pool: usize, worker: WorkerId, order: Order) {
        if self.plant == Some(Plant::LostLoad) && matches!(order, Order::Load { .. }) {
            return self.discard(order);
        }
        let state = self.worker(pool, worker);
        if state.told != Told::Nothing || !state.spawned {
            return self.discard(order);
        }
        state.in_flight += 1;
        let last = state.to_actor;
        let at = self.send(last);
        self.worker(pool, worker).to_actor = at;
        self.at(at, Event::ToWorker { pool, worker, order });
    }

    fn discard(&mut self, order: Order) {
        if let Order::Load { lease, weights } = order {
            self.drop_weights(weights);
            self.drop_lease(lease);
        }
    }

    pub(super) fn ordered(&mut self, pool: usize, worker: WorkerId, order: Order) {
        let state = self.worker(pool, worker);
        state.in_flight -= 1;
        if !state.actor {
            return self.discard(order);
        }
        if matches!(order, Order::Ping) {
            return self.ping(pool, worker);
        }
        if matches!(order, Order::Run(_)) {
            self.check_run(pool, worker);
        }
        let state = self.worker(pool, worker);
        let joins = matches!((&order, state.doing), (Order::Run(_), Doing::Running(RunEnd::Well)));
        let model = state.model;
        if joins && self.scenario.pools[pool][model].policy.batching == Batching::Continuous {
            if let Order::Run(items) = order {
                self.join(pool, worker, items);
            }
            return;
        }
        self.worker(pool, worker).inbox.push_back(order);
        self.proceed(pool, worker);
    }

    fn ping(&mut self, pool: usize, worker: WorkerId) {
        if self.fault(Fault::PingUnanswered) {
            self.worker(pool, worker).deaf = true;
        }
        let now = self.now;
        let state = self.worker(pool, worker);
        if state.deaf {
            return;
        }
        let last_progress = state.stalled_at.unwrap_or(now);
        let last = state.from_actor;
        state.in_flight += 1;
        let at = self.send(last);
        self.worker(pool, worker).from_actor = at;
        let word = Word::Input(Input::Pong { worker, last_progress, fates: Vec::new() });
        self.at(at, Event::FromWorker { pool, worker, word });
    }

    fn report(&mut self, pool: usize, worker: WorkerId, word: Word) {
        let state = self.worker(pool, worker);
        state.in_flight += 1;
        let last = state.from_thread;
        let at = self.send(last);
        self.worker(pool, worker).from_thread = at;
        self.at(at, Event::FromWorker { pool, worker, word });
    }

    /// The thread takes its next order, or ends once nobody can send it one.
    fn proceed(&mut self, pool: usize, worker: WorkerId) {
        let state = self.worker(pool, worker);
        if state.doing != Doing::Nothing || !state.spawned {
            return;
        }
        match state.inbox.pop_front() {
            Some(Order::Size) => self.begin(pool, worker, Doing::Sizing),
            Some(Order::Load { lease, weights }) => {
                (state.lease, state.weights) = (lease, weights);
                self.begin(pool, worker, Doing::Loading);
            }
            Some(Order::Run(items)) => self.begin_run(pool, worker, items),
            Some(Order::Ping) => {}
            None if !state.actor => self.end_thread(pool, worker),
            None => {}
        }
    }

    fn begin(&mut self, pool: usize, worker: WorkerId, doing: Doing) {
        let now = self.now;
        let stalls = self.fault(Fault::LoadStalls);
        let model = self.worker(pool, worker).model;
        let shared = self.worker(pool, worker).weights.is_some();
        let usual = self.scenario.pools[pool][model].load / if shared { 20 } else { 1 };
        let takes = usual.mul_f64(0.5 + self.random.f64());
        let state = self.worker(pool, worker);
        state.doing = doing;
        state.generation += 1;
        let generation = state.generation;
        if stalls {
            state.stalled_at = Some(now);
        } else {
            self.after(takes, Event::Step { pool, worker, generation });
        }
    }

    pub(super) fn step(&mut self, pool: usize, worker: WorkerId, generation: u32) {
        let state = self.worker(pool, worker);
        if state.generation != generation {
            return;
        }
        state.stalled_at = None;
        match state.doing {
            // Nobody wants it any more.
            Doing::Sizing | Doing::Loading if state.told != Told::Nothing => self.end_thread(pool, worker),
            Doing::Sizing => self.size(pool, worker),
            Doing::Loading => self.load_done(pool, worker),
            Doing::Running(end) => self.run_ends(pool, worker, end),
            Doing::Nothing | Doing::Ending | Doing::Ended => {}
        }
    }

    fn size(&mut self, pool: usize, worker: WorkerId) {
        if let Some(failure) = self.start_failure(Fault::SizeFails) {
            return self.start_fails(pool, worker, failure);
        }
        let model = self.worker(pool, worker).model;
        let mut footprint = self.scenario.pools[pool][model].footprint;
        if self.fault(Fault::LargerThanSized) {
            footprint = Footprint { shared: Bytes(footprint.shared.0 / 2), ..footprint };
        }
        self.report(pool, worker, Word::Input(Input::Sized { worker, footprint }));
        self.worker(pool, worker).doing = Doing::Nothing;
        self.proceed(pool, worker);
    }

    fn start_failure(&mut self, transient: Fault) -> Option<Failure> {
        if self.fault(transient) {
            Some(Failure::failed("read error"))
        } else if self.fault(Fault::LoadFailsForGood) {
            Some(Failure::permanent("no such file"))
        } else if self.fault(Fault::LoadOutOfMemory) {
            Some(Failure::out_of_memory("out of memory"))
        } else {
            None
        }
    }

    fn start_fails(&mut self, pool: usize, worker: WorkerId, failure: Failure) {
        self.free_memory(pool, worker);
        self.report(pool, worker, Word::Input(Input::StartFailed { worker, failure }));
        self.end_thread(pool, worker);
    }

    fn load_done(&mut self, pool: usize, worker: WorkerId) {
        if let Some(failure) = self.start_failure(Fault::LoadFails) {
            return self.start_fails(pool, worker, failure);
        }
        let state = self.worker(pool, worker);
        let (model, shared) = (state.model, state.weights.is_some());
        let footprint = self.scenario.pools[pool][model].footprint;
        if !shared && !self.measure(pool, worker, footprint) {
            let failure = Failure::out_of_memory("larger than what was reserved");
            return self.start_fails(pool, worker, failure);
        }
        self.report(pool, worker, Word::Input(Input::Started { worker, footprint }));
        self.worker(pool, worker).doing = Doing::Nothing;
        self.proceed(pool, worker);
    }

    /// Corrects the charge to what was measured, and splits it into the weights' and the worker's own.
    fn measure(&mut self, pool: usize, worker: WorkerId, footprint: Footprint) -> bool {
        let Some((device, reserved)) = self.worker(pool, worker).lease.clone() else { return false };
        let needed = footprint.with_workers(1);
        if needed > reserved && self.lease(&device, needed - reserved).is_none() {
            return false;
        }
        self.give_back(&device, reserved - needed);
        self.weights.push(Weights { device: device.clone(), bytes: footprint.shared, holders: 1 });
        let weights = self.weights.len() - 1;
        let state = self.worker(pool, worker);
        state.lease = Some((device, footprint.per_worker));
        state.weights = Some(weights);
        true
    }

    pub(super) fn run_batch(&mut self, pool: usize, worker: WorkerId, requests: &[RequestId]) {
        let (now, mut items) = (self.now, Vec::with_capacity(requests.len()));
        self.check("a batch is not empty", |_| !requests.is_empty(), || format!("{worker}"));
        for request in requests {
            let index = request.0 as usize;
            self.check_request_may_run(index);
            let state = &mut self.requests[index];
            state.attempt += 1;
            let attempt = state.attempt;
            let emitted = state.has_emitted(now);
            if !emitted {
                state.emits_at = None;
            }
            state.running_on = Some(worker);
            let deadline = state.deadline;
            self.pools[pool].queued.remove(&(deadline, index));
            if emitted {
                self.answer(index, "worker_crashed");
            }
            self.worker(pool, worker).assigned.push(index);
            items.push((index, attempt));
        }
        let model = self.worker(pool, worker).model;
        self.pools[pool].models[model].last_busy = now;
        let mut to = worker;
        if self.plant == Some(Plant::RequestKeptBehindBusy)
            && let Some(busy) = self.busy_sibling(pool, worker)
        {
            to = busy;
        }
        self.order(pool, to, Order::Run(items));
        if self.plant == Some(Plant::BusyWorkerEvicted) {
            self.stop(pool, worker, EvictionReason::MakeRoom);
        }
    }

    fn busy_sibling(&self, pool: usize, worker: WorkerId) -> Option<WorkerId> {
        let index = worker.0 as usize - 1;
        let workers = &self.pools[pool].workers;
        let model = workers[index].model;
        let busy = |(other, state): (usize, &SimWorker)| {
            other != index
                && state.model == model
                && state.told == Told::Nothing
                && !state.assigned.is_empty()
        };
        workers.iter().enumerate().position(busy).map(|other| WorkerId(other as u64 + 1))
    }

    fn begin_run(&mut self, pool: usize, worker: WorkerId, items: Vec<(usize, u32)>) {
        let model = self.worker(pool, worker).model;
        let end = self.how_it_ends(pool, model, &items);
        let slow = self.fault(Fault::RunIsSlow);
        let usual = self.scenario.pools[pool][model].run * if slow { 1_000 } else { 1 };
        let takes = usual.mul_f64(0.5 + self.random.f64());
        let now = self.now;
        let continuous = self.scenario.pools[pool][model].policy.batching == Batching::Continuous;
        let state = self.worker(pool, worker);
        state.doing = Doing::Running(end);
        state.generation += 1;
        let generation = state.generation;
        state.batch = Vec::new();
        if end == RunEnd::Hangs {
            // Its last progress is a moment after the start.
            state.stalled_at = Some(now);
            state.batch = items;
        } else if continuous && end == RunEnd::Well {
            self.join(pool, worker, items);
        } else {
            state.batch = items.clone();
            self.plan_output(&items, takes);
            self.after(takes, Event::Step { pool, worker, generation });
        }
    }

    fn how_it_ends(&mut self, pool: usize, model: usize, items: &[(usize, u32)]) -> RunEnd {
        let any = |world: &Self, what: fn(&super::world::Request) -> bool| {
            items.iter().any(|(index, _)| what(&world.requests[*index]))
        };
        if any(self, |request| request.poison && !request.cancelled) {
            RunEnd::Panics
        } else if !self.closing && any(self, |request| request.hangs && !request.cancelled) {
            RunEnd::Hangs
        } else if any(self, |request| request.bad && !request.cancelled) {
            RunEnd::BadInput
        } else if items.len() > self.scenario.pools[pool][model].most || self.fault(Fault::RunOutOfMemory) {
            RunEnd::OutOfMemory
        } else if self.fault(Fault::RunPanics) {
            RunEnd::Panics
        } else if self.fault(Fault::SilentEnd) {
            RunEnd::VanishesSilently
        } else if self.fault(Fault::RunHangs) {
            RunEnd::Hangs
        } else if self.fault(Fault::RunFails) {
            RunEnd::Fails
        } else {
            RunEnd::Well
        }
    }

    /// Streams send something out in the course of the run, if it gets that far.
    fn plan_output(&mut self, items: &[(usize, u32)], takes: Duration) {
        for (index, attempt) in items {
            let at = self.now + takes.mul_f64(self.random.f64() * 1.5);
            let ends = self.now + takes;
            let request = &mut self.requests[*index];
            if request.streams && request.attempt == *attempt && at < ends && at < request.deadline {
                request.emits_at = Some(at);
            }
        }
    }

    fn join(&mut self, pool: usize, worker: WorkerId, items: Vec<(usize, u32)>) {
        let model = self.worker(pool, worker).model;
        let generation = self.worker(pool, worker).generation;
        for (request, attempt) in items {
            let takes = self.scenario.pools[pool][model].run.mul_f64(0.5 + self.random.f64());
            self.plan_output(&[(request, attempt)], takes);
            self.worker(pool, worker).batch.push((request, attempt));
            self.after(takes, Event::Item { pool, worker, generation, request });
        }
    }

    pub(super) fn item_done(&mut self, pool: usize, worker: WorkerId, generation: u32, request: usize) {
        let state = self.worker(pool, worker);
        if state.generation != generation {
            return;
        }
        let Some(place) = state.batch.iter().position(|(index, _)| *index == request) else { return };
        let item = state.batch.remove(place);
        let last = state.batch.is_empty();
        let outcomes = vec![(RequestId(request as u64), self.outcome(item, None))];
        self.report(pool, worker, Word::Input(Input::Finished { worker, outcomes }));
        if last {
            self.worker(pool, worker).doing = Doing::Nothing;
            self.proceed(pool, worker);
        }
    }

    fn run_ends(&mut self, pool: usize, worker: WorkerId, end: RunEnd) {
        let failure = match end {
            RunEnd::Well | RunEnd::Hangs => None,
            RunEnd::Fails => Some(Failure::failed("wrong shape")),
            RunEnd::BadInput => Some(Failure::invalid_input("not a picture")),
            RunEnd::OutOfMemory => Some(Failure::out_of_memory("out of memory")),
            RunEnd::Panics => return self.panics(pool, worker),
            RunEnd::VanishesSilently => return self.end_thread(pool, worker),
        };
        let batch = std::mem::take(&mut self.worker(pool, worker).batch);
        let outcomes = batch
            .into_iter()
            .map(|item| (RequestId(item.0 as u64), self.outcome(item, failure.clone())))
            .collect();
        self.report(pool, worker, Word::Input(Input::Finished { worker, outcomes }));
        self.worker(pool, worker).doing = Doing::Nothing;
        self.proceed(pool, worker);
    }

    /// What a thread makes of one request at the end of its run, as the real one does.
    fn outcome(&mut self, (index, attempt): (usize, u32), failure: Option<Failure>) -> Outcome {
        let now = self.now;
        let request = &self.requests[index];
        let current = request.attempt == attempt;
        // A model may answer some of a batch before the rest fails.
        let answers = failure.is_none() || self.random.u8(..4) == 0;
        if current && answers && !request.is_abandoned(now) && !(request.bad && failure.is_some()) {
            self.answer(index, if request.bad { "invalid_input" } else { "ok" });
        }
        let request = &self.requests[index];
        if request.is_answered() {
            return Outcome::Answered;
        }
        if request.is_abandoned(now) {
            if current {
                self.answer(index, "timeout");
            }
            return Outcome::Answered;
        }
        let failure = failure.unwrap_or_else(|| Failure::failed("ended without an answer"));
        match request.has_emitted(now) {
            true => Outcome::FailedAfterOutput(failure),
            false => Outcome::Failed(failure),
        }
    }

    fn panics(&mut self, pool: usize, worker: WorkerId) {
        for (index, attempt) in std::mem::take(&mut self.worker(pool, worker).batch) {
            let request = &self.requests[index];
            let answers = request.attempt == attempt && !request.poison && !request.is_abandoned(self.now);
            if answers && self.random.u8(..8) == 0 {
                self.answer(index, "ok");
            }
        }
        let weights = self.hold(self.worker_ref(pool, worker).weights);
        self.report(pool, worker, Word::Panicked { weights });
        self.end_thread(pool, worker);
    }

    fn worker_ref(&self, pool: usize, worker: WorkerId) -> &SimWorker {
        &self.pools[pool].workers[worker.0 as usize - 1]
    }

    /// The thread ends; now and then it takes its time.
    fn end_thread(&mut self, pool: usize, worker: WorkerId) {
        let lingers = self.fault(Fault::ThreadLingers);
        let wait = if lingers { self.random.u64(1_000..100_000) } else { self.random.u64(0..3) };
        let state = self.worker(pool, worker);
        state.doing = Doing::Ending;
        state.generation += 1;
        self.after(Duration::from_millis(wait), Event::ThreadEnds { pool, worker });
    }

    pub(super) fn thread_ends(&mut self, pool: usize, worker: WorkerId) {
        let inbox = std::mem::take(&mut self.worker(pool, worker).inbox);
        for order in inbox {
            self.discard(order);
        }
        self.free_memory(pool, worker);
        self.worker(pool, worker).doing = Doing::Ended;
        self.report(pool, worker, Word::Input(Input::Ended { worker }));
    }

    fn free_memory(&mut self, pool: usize, worker: WorkerId) {
        let state = self.worker(pool, worker);
        let (weights, lease) = (state.weights.take(), state.lease.take());
        self.drop_weights(weights);
        self.drop_lease(lease);
    }

    /// Somebody kills the actor. Its thread finishes what it is doing and finds nobody to take orders from.
    pub(super) fn kill(&mut self, pool: usize, worker: WorkerId) {
        let state = self.worker(pool, worker);
        if !std::mem::take(&mut state.actor) {
            return;
        }
        state.in_flight += 1;
        let last = state.from_actor;
        let at = self.send(last);
        self.worker(pool, worker).from_actor = at;
        self.at(at, Event::FromWorker { pool, worker, word: Word::ActorEnded });
        self.proceed(pool, worker);
    }

    /// The pool drops a worker's handle: for good, for another, or because it died.
    pub(super) fn let_go(&mut self, pool: usize, worker: WorkerId, told: Told) {
        let state = self.worker(pool, worker);
        if state.told != Told::Nothing {
            return;
        }
        (state.told, state.actor) = (told, false);
        let assigned = std::mem::take(&mut state.assigned);
        for index in assigned {
            let request = &mut self.requests[index];
            if request.running_on == Some(worker) {
                request.running_on = None;
                request.deaths += u32::from(told != Told::Stopped);
                self.came_back.push(index);
            }
        }
        self.drop_room(pool, worker);
        let state = self.worker(pool, worker);
        if matches!(state.doing, Doing::Sizing | Doing::Loading) && state.stalled_at.is_none() {
            // The thread sees the mark and gives up.
            self.end_thread(pool, worker);
        } else {
            self.proceed(pool, worker);
        }
    }

    pub(super) fn unassign(&mut self, pool: usize, worker: WorkerId, request: usize) {
        if self.requests[request].running_on == Some(worker) {
            self.requests[request].running_on = None;
            self.worker(pool, worker).assigned.retain(|index| *index != request);
            self.came_back.push(request);
        }
    }

    /// Threads that hang come to their senses, for the end of the history.
    pub(super) fn release_stalled(&mut self) {
        for pool in 0..self.pools.len() {
            for index in 0..self.pools[pool].workers.len() {
                let state = &self.pools[pool].workers[index];
                if state.stalled_at.is_some() {
                    let (worker, generation) = (WorkerId(index as u64 + 1), state.generation);
                    self.after(Duration::ZERO, Event::Step { pool, worker, generation });
                }
            }
        }
    }
}
