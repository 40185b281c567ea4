//! The callers and operators: requests with their deadlines and cancels, preload, unload, pin, stray
//! evictions, kills and the shutdown, and at the end the settling down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::scenario::footprint;
use super::state::{Call, Model, Request};
use super::world::{Event, World};
use crate::capability::{BatchKey, Cost};
use crate::id::{Lane, ModelKey, Priority, RequestId, Time, WorkerId};
use crate::memory::PressureLevel;
use crate::scheduler::{CallId, Input, ModelPolicy, Ticket};
use crate::telemetry::EvictionReason;

impl World {
    pub(super) fn declare_all(&mut self) {
        for pool in 0..self.pools.len() {
            for index in 0..self.pools[pool].models.len() {
                self.declare(pool, index);
            }
        }
    }

    pub(super) fn declare(&mut self, pool: usize, index: usize) {
        let mut policy = self.policy(pool, index);
        if !policy.config.tenants.weights.is_empty() && self.planted(Plant::WeightsIgnored) {
            Arc::make_mut(&mut policy.config).tenants.weights.clear();
        }
        self.feed(pool, Input::Declare { key: ModelKey(index as u32), policy });
    }

    /// The policy of a model as it is now: a pin and its end outlive the pool that was told of them.
    pub(super) fn policy(&self, pool: usize, index: usize) -> ModelPolicy {
        let pinned = self.pools[pool].models[index].pinned;
        ModelPolicy { pinned, ..self.scenario.pools[pool][index].policy.clone() }
    }

    /// Spreads orders over the time in which requests come.
    pub(super) fn plan_commands(&mut self) {
        let span = self.scenario.gap * self.scenario.requests;
        for _ in 0..self.random.usize(0..12) {
            let at = span.mul_f64(self.random.f64() * 2.0);
            self.after(at, Event::Command);
        }
        if self.scenario.rate(Fault::Shutdown) > 0.0 {
            let at = span.mul_f64(self.random.f64() * 1.5);
            self.after(at, Event::ShutDown);
        }
    }

    pub(super) fn arrive(&mut self) {
        if self.arrivals_left == 0 {
            let wait = Duration::from_millis(self.random.u64(1..30_000));
            return self.after(wait, Event::Close);
        }
        let burst = if self.random.u8(..4) == 0 { self.random.u32(1..12) } else { 1 };
        // Those that come at one moment reach a pool together, as through its intake, or one by one.
        let together = self.random.bool();
        let mut tickets: BTreeMap<usize, Vec<(ModelKey, Ticket)>> = BTreeMap::new();
        for _ in 0..burst.min(self.arrivals_left) {
            self.arrivals_left -= 1;
            let Some((pool, ticket)) = self.request() else { continue };
            match together {
                true => tickets.entry(pool).or_default().push(ticket),
                false => self.submit(pool, vec![ticket]),
            }
        }
        for (pool, tickets) in tickets {
            self.submit(pool, tickets);
        }
        let wait = match self.random.u8(..16) {
            0 => Duration::from_millis(self.random.u64(1..200_000)),
            _ => self.scenario.gap.mul_f64(self.random.f64() * 2.0),
        };
        self.after(wait, Event::Arrive);
    }

    fn request(&mut self) -> Option<(usize, (ModelKey, Ticket))> {
        let pool = self.random.usize(..self.pools.len());
        let model = self.addressee(pool)?;
        let lane = usize::from(self.random.u8(..4) == 0);
        let config = self.scenario.pools[pool][model].policy.config.clone();
        let capacity = config.queue.map_or([8, 8], |queue| [queue.interactive, queue.batch])[lane];
        let state = &mut self.pools[pool].models[model];
        if state.slots[lane] >= capacity {
            self.coverage.ending("overloaded");
            return None;
        }
        state.held += 1;
        state.slots[lane] += 1;
        state.unanswered[lane] += 1;
        let timeout = match self.fault(Fault::ShortOfTime) {
            true => Duration::from_millis(self.random.u64(0..200)),
            false => config.request_timeout,
        };
        let request = Request {
            pool,
            model,
            lane,
            tenant: self.scenario.tenants[self.apart.usize(..self.scenario.tenants.len())].clone(),
            deadline: self.now + timeout,
            ends_at: self.now + config.total_timeout.unwrap_or(Duration::MAX).max(timeout),
            streams: self.random.u8(..3) == 0,
            poison: self.fault(Fault::PoisonInput),
            bad: self.fault(Fault::BadInput),
            hangs: self.fault(Fault::HangingInput),
            attempt: 0,
            emits_at: None,
            answers: 0,
            cancelled: false,
            gone: false,
            deaths: 0,
            running_on: None,
            shared: false,
            cost: self.random.u64(1..20),
            key: BatchKey(self.random.u64(0..2)),
            rank: None,
            reran: false,
            begun: false,
            finished: false,
            cleared: false,
        };
        let index = self.requests.len();
        let ticket = Ticket {
            lane: if request.lane == 0 { Lane::Interactive } else { Lane::Batch },
            priority: Priority(self.random.i8(-2..3)),
            tenant: request.tenant.clone(),
            cost: Cost(request.cost),
            key: request.key,
            ends_at: request.ends_at,
            ..Ticket::new(RequestId(index as u64), request.deadline)
        };
        self.requests.push(request);
        Some((pool, (ModelKey(model as u32), ticket)))
    }

    /// The model of a request: the one that a name stands for, or an earlier one for whose slot the caller waited. None
    /// where the caller is refused: no pool is up, or the model has gone.
    fn addressee(&mut self, pool: usize) -> Option<usize> {
        let state = &self.pools[pool];
        let named = state.names[self.random.usize(..state.names.len())];
        let late = state.names.len() < state.models.len() && self.random.u8(..8) == 0;
        let model = if late { self.random.usize(..state.models.len()) } else { named };
        let is_on_its_way = self.random.u8(..4) == 0;
        let is_taken = !state.models[model].removed || (is_on_its_way && !state.models[model].forgotten);
        if state.down || !is_taken {
            self.coverage.ending("refused");
            return None;
        }
        Some(model)
    }

    /// Sends requests of one pool to it, together.
    fn submit(&mut self, pool: usize, tickets: Vec<(ModelKey, Ticket)>) {
        let at = self.send(Time::ZERO);
        let requests: Vec<usize> = tickets.iter().map(|(_, ticket)| ticket.request.0 as usize).collect();
        self.at(at, Event::ToPool { pool, input: Input::Submit { tickets } });
        for index in requests {
            self.may_leave(index, at);
        }
    }

    fn may_leave(&mut self, index: usize, at: Time) {
        if self.fault(Fault::CallerGoes) {
            // Not before the submit: the same caller sends both.
            let leaves = at + Duration::from_micros(1 << self.random.u32(0..24));
            self.at(leaves, Event::CallerGoes { request: index });
        }
    }

    pub(super) fn caller_goes(&mut self, request: usize) {
        let state = &mut self.requests[request];
        if state.is_answered() {
            return;
        }
        state.cancelled = true;
        let (pool, key) = (state.pool, ModelKey(state.model as u32));
        self.coverage.ending("cancelled");
        self.free_slot(request);
        let at = self.send(Time::ZERO);
        let input = Input::Cancel { key, request: RequestId(request as u64) };
        self.at(at, Event::ToPool { pool, input });
    }

    pub(super) fn command(&mut self) {
        let pool = self.random.usize(..self.pools.len());
        let index = self.random.usize(..self.pools[pool].models.len());
        let key = ModelKey(index as u32);
        let workers = self.pools[pool].workers.len() as u64;
        let worker = WorkerId(1 + self.random.u64(0..workers.max(1)));
        // Each kind as likely as its rate, which is scaled up as commands are few.
        let kinds = [
            Fault::Preload,
            Fault::Unload,
            Fault::Pin,
            Fault::Remove,
            Fault::Replace,
            Fault::StrayEviction,
            Fault::ActorKilled,
            Fault::MaintenanceDies,
            Fault::PoolDies,
        ];
        let kind = kinds[self.random.usize(..kinds.len())];
        let nobody = self.pools[pool].down || self.pools[pool].models[index].forgotten;
        if self.closing || self.scenario.rate(kind) == 0.0 || (nobody && kind != Fault::MaintenanceDies) {
            return;
        }
        self.coverage.fault(kind);
        let call = CallId(self.next_call);
        match kind {
            Fault::Preload => {
                self.next_call += 1;
                self.calls.insert(call.0, Call { pool, unload: None });
                self.feed(pool, Input::Preload { key, call });
                self.may_leave_call(pool, key, call);
            }
            Fault::Unload => {
                self.next_call += 1;
                let deadline = self.now + Duration::from_millis(self.random.u64(0..10_000));
                self.calls.insert(call.0, Call { pool, unload: Some((index, deadline)) });
                self.feed(pool, Input::Unload { key, call, deadline });
                if self.calls.contains_key(&call.0) && self.planted(Plant::UnloadReturnedEarly) {
                    self.returned(pool, call, true);
                }
                self.may_leave_call(pool, key, call);
            }
            Fault::Pin => {
                let pinned = self.random.bool();
                self.feed(pool, Input::Pin { key, pinned });
            }
            Fault::MaintenanceDies => self.restart_maintenance(),
            Fault::PoolDies => self.kill_pool(pool),
            Fault::Replace => self.replace(pool, index),
            Fault::Remove => self.feed(pool, Input::Remove { key }),
            Fault::StrayEviction => {
                let reason = EvictionReason::Pressure;
                self.feed(pool, Input::Evict { worker, reason });
            }
            _ if workers > 0 => self.end_actor(pool, worker, None),
            _ => {}
        }
    }

    /// A model of the same name takes the place of one that has not been replaced yet.
    fn replace(&mut self, pool: usize, index: usize) {
        let state = &mut self.pools[pool];
        let Some(name) = state.names.iter_mut().find(|named| **named == index) else { return };
        *name = state.models.len();
        let mut plan = self.scenario.pools[pool][index].clone();
        plan.footprint = footprint(&mut self.random);
        state.models.push(Model::new(&plan));
        let successor = self.scenario.pools[pool].len();
        self.scenario.pools[pool].push(plan);
        // The pool hears of a removal and of the first request for the successor in any order.
        let late = self.random.bool();
        if !late {
            self.declare(pool, successor);
        }
        self.feed(pool, Input::Remove { key: ModelKey(index as u32) });
        if late {
            self.declare(pool, successor);
        }
    }

    fn may_leave_call(&mut self, pool: usize, key: ModelKey, call: CallId) {
        if self.random.u8(..4) == 0 {
            let leaves = Duration::from_micros(1 << self.random.u32(0..24));
            self.after(leaves, Event::CallIsLeft { pool, key, call });
        }
    }

    /// Nobody waits for a call any more, unless it has returned.
    pub(super) fn call_is_left(&mut self, pool: usize, key: ModelKey, call: CallId) {
        if self.calls.remove(&call.0).is_some() {
            self.feed(pool, Input::CallerGone { key, call });
        }
    }

    pub(super) fn shut_down(&mut self) {
        if self.closing {
            return;
        }
        self.coverage.fault(Fault::Shutdown);
        let deadline = self.now + self.scenario.shutdown_timeout;
        for pool in 0..self.pools.len() {
            self.pools[pool].shut_by = Some(deadline);
            if self.pools[pool].down {
                // It does not come back.
                self.pools[pool].drained = true;
                continue;
            }
            self.feed(pool, Input::Shutdown { deadline });
            if !self.pools[pool].drained && self.planted(Plant::DrainedEarly) {
                self.drained(pool);
            }
            self.at(deadline + Duration::from_micros(1), Event::DrainedBy { pool });
        }
    }

    /// No more faults, no pins, no pressure, and threads that hang come back: everything must come to rest by
    /// itself.
    pub(super) fn close(&mut self) {
        self.check_stuck_were_found();
        self.closing = true;
        for pool in 0..self.pools.len() {
            let devices: Vec<crate::Device> = self.ledgers.keys().cloned().collect();
            for device in devices {
                self.feed(pool, Input::Pressure { device, level: PressureLevel::Normal });
            }
            for index in 0..self.pools[pool].models.len() {
                self.pools[pool].models[index].pinned = false;
                self.feed(pool, Input::Pin { key: ModelKey(index as u32), pinned: false });
            }
        }
        self.release_stalled();
    }
}
