//! The simulated workers: an actor that passes orders on and answers pings, and a thread that sizes, loads and ends,
//! and that can fail, stall or vanish at each step. What it does while it runs is in `runs`.

use std::collections::VecDeque;
use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::state::Weights;
use super::world::{Event, Word, World};
use crate::error::Failure;
use crate::id::{Bytes, Device, ModelKey, Time, WorkerId};
use crate::model::Footprint;
use crate::scheduler::{Batching, Input};

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
    pub(super) generation: u32,
    pub(super) stalled_at: Option<Time>,
    pub(super) inbox: VecDeque<Order>,
    pub(super) batch: Vec<(usize, u32)>,
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
        if matches!(order, Order::Load { .. }) && self.planted(Plant::LostLoad) {
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

    pub(super) fn report(&mut self, pool: usize, worker: WorkerId, word: Word) {
        let state = self.worker(pool, worker);
        state.in_flight += 1;
        let last = state.from_thread;
        let at = self.send(last);
        self.worker(pool, worker).from_thread = at;
        self.at(at, Event::FromWorker { pool, worker, word });
    }

    /// The thread takes its next order, or ends once nobody can send it one.
    pub(super) fn proceed(&mut self, pool: usize, worker: WorkerId) {
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
            self.report(pool, worker, Word::Input(Input::Sized { worker, footprint }));
            let failure = Failure::failed("larger than what was reserved");
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

    pub(super) fn worker_ref(&self, pool: usize, worker: WorkerId) -> &SimWorker {
        &self.pools[pool].workers[worker.0 as usize - 1]
    }

    /// The thread ends; now and then it takes its time.
    pub(super) fn end_thread(&mut self, pool: usize, worker: WorkerId) {
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
