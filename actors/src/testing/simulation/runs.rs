//! The runs of batches, as one and continuous: their ends, their output, and the outcome of each request.

use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::state::{Doing, Order, Request, RunEnd, SimWorker, Told};
use super::world::{Event, Word, World};
use crate::error::Failure;
use crate::id::{RequestId, WorkerId};
use crate::scheduler::{Batching, Input, Outcome};
use crate::telemetry::EvictionReason;

impl World {
    pub(super) fn run_batch(&mut self, pool: usize, worker: WorkerId, requests: &[RequestId]) {
        let (now, mut items) = (self.now, Vec::with_capacity(requests.len()));
        self.check("a batch is not empty", |_| !requests.is_empty(), || format!("{worker}"));
        self.check_batch(pool, worker, requests);
        for request in requests {
            let index = request.0 as usize;
            self.check_request_may_run(index);
            let state = &mut self.requests[index];
            state.reran = true;
            (state.begun, state.finished) = (false, false);
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
        if let Some(busy) = self.busy_sibling(pool, worker)
            && self.planted(Plant::RequestKeptBehindBusy)
        {
            to = busy;
        }
        self.order(pool, to, Order::Run(items));
        if self.planted(Plant::BusyWorkerEvicted) {
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

    pub(super) fn begin_run(&mut self, pool: usize, worker: WorkerId, items: Vec<(usize, u32)>) {
        if self.fault(Fault::LostWhileIdle) {
            return self.is_lost(pool, worker);
        }
        self.begin_with(&items);
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

    /// From here on a death of the worker may be the doing of these.
    fn begin_with(&mut self, items: &[(usize, u32)]) {
        for (index, attempt) in items {
            let request = &mut self.requests[*index];
            request.begun |= request.attempt == *attempt;
        }
    }

    /// The thread finds that its model is gone before it begins anything.
    fn is_lost(&mut self, pool: usize, worker: WorkerId) {
        let weights = self.hold(self.worker_ref(pool, worker).weights);
        self.end_actor(pool, worker, weights);
        self.end_thread(pool, worker);
    }

    fn how_it_ends(&mut self, pool: usize, model: usize, items: &[(usize, u32)]) -> RunEnd {
        let any = |world: &Self, what: fn(&Request) -> bool| {
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

    pub(super) fn join(&mut self, pool: usize, worker: WorkerId, items: Vec<(usize, u32)>) {
        let model = self.worker(pool, worker).model;
        let generation = self.worker(pool, worker).generation;
        self.begin_with(&items);
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
        self.cache_grows(pool, worker);
        let outcomes = vec![(RequestId(request as u64), self.outcome(item, None))];
        self.report(pool, worker, Word::Report(Input::Finished { worker, outcomes }));
        if last {
            self.worker(pool, worker).doing = Doing::Nothing;
            self.proceed(pool, worker);
        }
    }

    pub(super) fn run_ends(&mut self, pool: usize, worker: WorkerId, end: RunEnd) {
        let failure = match end {
            RunEnd::Well | RunEnd::Hangs => None,
            RunEnd::Fails => Some(Failure::failed("wrong shape")),
            RunEnd::BadInput => Some(Failure::invalid_input("not a picture")),
            RunEnd::OutOfMemory => Some(Failure::out_of_memory("out of memory")),
            RunEnd::Panics => return self.panics(pool, worker),
            RunEnd::VanishesSilently => return self.end_thread(pool, worker),
        };
        let batch = std::mem::take(&mut self.worker(pool, worker).batch);
        for (index, _) in &batch {
            self.requests[*index].shared = batch.len() > 1;
        }
        let outcomes = batch
            .into_iter()
            .map(|item| (RequestId(item.0 as u64), self.outcome(item, failure.clone())))
            .collect();
        self.cache_grows(pool, worker);
        self.report(pool, worker, Word::Report(Input::Finished { worker, outcomes }));
        self.worker(pool, worker).doing = Doing::Nothing;
        if self.fault(Fault::DestructorPanics) {
            // What it has run is dropped on the thread, outside of the run.
            self.end_actor(pool, worker, None);
            return self.end_thread(pool, worker);
        }
        self.proceed(pool, worker);
    }

    /// Returns the outcome of one request at the end of its run, as the real thread does.
    fn outcome(&mut self, (index, attempt): (usize, u32), failure: Option<Failure>) -> Outcome {
        let now = self.now;
        let request = &self.requests[index];
        let current = request.attempt == attempt;
        // A model may answer some of a batch before the rest fails.
        let answers = failure.is_none() || self.random.u8(..4) == 0;
        if current && answers && !request.is_abandoned(now) && !(request.bad && failure.is_some()) {
            self.answer(index, if request.bad { "invalid_input" } else { "ok" });
            self.requests[index].finish();
            return Outcome::Answered;
        }
        let request = &self.requests[index];
        if request.is_answered() || request.is_abandoned(now) {
            if current {
                self.answer(index, "timeout");
            }
            return Outcome::GivenUp;
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
                self.requests[index].finish();
            }
        }
        self.is_lost(pool, worker);
    }
}
