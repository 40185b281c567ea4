//! The simulated workers: a thread that sizes, loads, answers pings and ends, and that can fail, stall or
//! vanish at each step, and an actor that fails when its thread does, or is killed. Runs are in `runs`.

use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::state::{Doing, Order, RunEnd, SimWorker, Told, Weights};
use super::world::{Event, Word, World};
use crate::error::Failure;
use crate::id::{Bytes, ModelKey, Time, WorkerId};
use crate::model::Footprint;
use crate::scheduler::{Batching, Input};

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
        state.actor = true;
        if !std::mem::replace(&mut state.spawned, true) {
            self.pools[pool].live.push(worker);
            self.check_threads(pool, key);
            if self.planted(Plant::ThreadsUnasked) {
                let next = worker.0 + 100;
                (next..next + 8).for_each(|unasked| self.spawn(pool, WorkerId(unasked), key));
            }
        }
    }

    /// The first that is heard of a worker is its start.
    pub(super) fn meet(&mut self, pool: usize, worker: WorkerId, key: ModelKey) {
        let state = self.worker(pool, worker);
        if !std::mem::replace(&mut state.known, true) {
            state.model = key.0 as usize;
            self.check_start(pool, key.0 as usize);
        }
    }

    /// Sends an order to a worker's thread, if the pool still has its handle.
    pub(super) fn order(&mut self, pool: usize, worker: WorkerId, order: Order) {
        if matches!(order, Order::Load { .. }) && self.planted(Plant::LostLoad) {
            return self.discard(order);
        }
        let state = self.worker(pool, worker);
        if state.told != Told::Nothing || !state.spawned {
            return self.discard(order);
        }
        state.in_flight += 1;
        let last = state.to_thread;
        let at = self.send(last);
        self.worker(pool, worker).to_thread = at;
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
        if state.told != Told::Nothing {
            return self.discard(order);
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

    /// The thread answers a ping with a tick, or hangs for good.
    fn ping(&mut self, pool: usize, worker: WorkerId) {
        let hangs = self.fault(Fault::PingUnanswered);
        let now = self.now;
        let state = self.worker(pool, worker);
        if hangs {
            (state.doing, state.stalled_at) = (Doing::Hanging, Some(now));
            state.generation += 1;
            return;
        }
        state.answered_at = now;
        self.proceed(pool, worker);
    }

    /// The last progress that a worker's gauge shows.
    pub(super) fn last_progress(&mut self, pool: usize, worker: WorkerId) -> Time {
        let now = self.now;
        let state = self.worker(pool, worker);
        match state.doing {
            Doing::Nothing | Doing::Hanging => state.answered_at,
            _ => state.stalled_at.unwrap_or(now),
        }
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
            Some(Order::Ping) => self.ping(pool, worker),
            None if state.told != Told::Nothing => self.end_thread(pool, worker),
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
            Doing::Hanging => {
                state.doing = Doing::Nothing;
                self.proceed(pool, worker);
            }
            Doing::Sizing => self.size(pool, worker),
            Doing::Loading => self.load_done(pool, worker),
            Doing::Running(end) => self.run_ends(pool, worker, end),
            Doing::Ending => self.after(Duration::ZERO, Event::ThreadEnds { pool, worker }),
            Doing::Nothing | Doing::Ended => {}
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
        self.report(pool, worker, Word::Report(Input::Sized { worker, footprint }));
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
        self.report(pool, worker, Word::Report(Input::StartFailed { worker, failure }));
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
            self.report(pool, worker, Word::Report(Input::Sized { worker, footprint }));
            let failure = Failure::failed("larger than what was reserved");
            return self.start_fails(pool, worker, failure);
        }
        self.report(pool, worker, Word::Report(Input::Started { worker, footprint }));
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
        let (bytes, cached) = (footprint.shared, Bytes::ZERO);
        self.weights.push(Weights { device: device.clone(), bytes, cached, holders: 1 });
        let weights = self.weights.len() - 1;
        let state = self.worker(pool, worker);
        state.lease = Some((device, footprint.per_worker));
        state.weights = Some(weights);
        true
    }

    pub(super) fn worker_ref(&self, pool: usize, worker: WorkerId) -> &SimWorker {
        &self.pools[pool].workers[worker.0 as usize - 1]
    }

    /// The thread ends; now and then it takes its time, or hangs in a destructor.
    pub(super) fn end_thread(&mut self, pool: usize, worker: WorkerId) {
        let (lingers, hangs) = (self.fault(Fault::ThreadLingers), self.fault(Fault::DestructorHangs));
        let wait = if lingers { self.random.u64(1_000..100_000) } else { self.random.u64(0..3) };
        let now = self.now;
        let state = self.worker(pool, worker);
        state.doing = Doing::Ending;
        state.generation += 1;
        if hangs {
            return state.stalled_at = Some(now);
        }
        self.after(Duration::from_millis(wait), Event::ThreadEnds { pool, worker });
    }

    pub(super) fn thread_ends(&mut self, pool: usize, worker: WorkerId) {
        let inbox = std::mem::take(&mut self.worker(pool, worker).inbox);
        for order in inbox {
            self.discard(order);
        }
        self.free_memory(pool, worker);
        self.worker(pool, worker).doing = Doing::Ended;
        self.pools[pool].live.retain(|live| *live != worker);
        self.report(pool, worker, Word::Report(Input::Ended { worker }));
    }

    fn free_memory(&mut self, pool: usize, worker: WorkerId) {
        let state = self.worker(pool, worker);
        let (weights, lease) = (state.weights.take(), state.lease.take());
        self.drop_weights(weights);
        self.drop_lease(lease);
    }

    /// The actor ends, of its thread's panic or because somebody kills it: supervision tells the pool.
    pub(super) fn end_actor(&mut self, pool: usize, worker: WorkerId, weights: Option<usize>) {
        let state = self.worker(pool, worker);
        if !std::mem::take(&mut state.actor) {
            return self.drop_weights(weights);
        }
        state.in_flight += 1;
        let last = state.from_actor;
        let at = self.send(last);
        self.worker(pool, worker).from_actor = at;
        self.at(at, Event::FromWorker { pool, worker, word: Word::Crashed { weights } });
    }

    /// The pool drops a worker's handle: for good, for another, or because it died.
    pub(super) fn let_go(&mut self, pool: usize, worker: WorkerId, told: Told) {
        let now = self.now;
        let state = self.worker(pool, worker);
        if state.told != Told::Nothing {
            return;
        }
        (state.told, state.told_at, state.actor) = (told, now, false);
        if std::mem::take(&mut state.thread_ended) {
            self.follow.push_back((pool, Input::Ended { worker }));
        }
        let assigned = std::mem::take(&mut self.worker(pool, worker).assigned);
        for index in assigned {
            let request = &mut self.requests[index];
            if request.running_on == Some(worker) {
                request.running_on = None;
                request.deaths += u32::from(told != Told::Stopped && request.begun);
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
