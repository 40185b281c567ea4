//! The work of the pools' shell: makes inputs of messages, carries out effects, and keeps the books of
//! leases, weights, slots and answers.

use std::time::Duration;

use super::Plant;
use super::coverage::Fault;
use super::state::{HeldRoom, Order, Request, Told};
use super::world::{Event, Word, World};
use crate::capability::{BatchKey, Cost};
use crate::error::Cause;
use crate::id::{Bytes, ModelKey, Priority, RequestId, Time, WorkerId};
use crate::scheduler::{CallId, Effect, Fate, Holds, Input, Source, Urgency, is_permanent, rank};
use crate::telemetry::{Event as Telemetry, EvictionReason};

impl World {
    /// Gives a pool's scheduler an input and carries out what follows, until nothing more does.
    pub(super) fn feed(&mut self, pool: usize, input: Input) {
        if self.pools[pool].down {
            return;
        }
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
        self.forget_removed(pool);
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
                self.check_fails_alone(request, &error);
                if self.lets_go(request) && !self.planted(Plant::AnswerLost) {
                    self.answer(request.0 as usize, error.reason());
                }
            }
            Effect::Expire { request } => self.expire(request),
            Effect::ExpireRunning { request } => self.expire_running(request),
            Effect::EndRunning { request } => self.end_running(request),
            Effect::Forget { request } => {
                self.lets_go(request);
                let answered = self.requests[request.0 as usize].is_answered();
                self.check("no request lost", |_| answered, || format!("{request} was forgotten unanswered"));
            }
            Effect::Ping { worker } => self.order(pool, worker, Order::Ping),
            Effect::ReadProgress { worker } => self.read_progress(pool, worker),
            Effect::Stop { worker, reason } => self.stop(pool, worker, reason),
            Effect::Quarantine { worker } => {
                self.count_death(pool, worker);
                self.offer_weights(pool, worker, None);
                self.let_go(pool, worker, Told::Quarantined);
            }
            Effect::RetainWeights { key } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                let (old, offered) = (model.retained.take(), model.offered.take());
                model.retained = offered;
                self.drop_weights(old);
            }
            Effect::ReleaseWeights { key, thread } => self.release_weights(pool, key, thread),
            Effect::Relieve { device } if self.fault(Fault::SlowRelief) => {
                let wait = Duration::from_micros(1 << self.random.u32(0..23));
                self.after(wait, Event::Relieve { device });
            }
            Effect::Relieve { device } => self.tell_maintenance(pool, Event::Relieve { device }),
            Effect::Return { call, result } => self.returned(pool, call, result.is_ok()),
            Effect::Emit(event) => self.heard(pool, &event),
            Effect::Drained { .. } => self.drained(pool),
        }
    }

    fn heard(&mut self, pool: usize, event: &Telemetry) {
        match event {
            Telemetry::BreakerClosed { key, .. } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                (model.broken, model.no_start_before, model.opened_at) = (false, Time::ZERO, None);
                model.failures.clear();
            }
            Telemetry::BreakerOpened { key, .. } => self.check_blame(pool, *key),
            Telemetry::WorkerStuck { worker, .. } => {
                self.check_is_stuck(pool, *worker);
                self.worker(pool, *worker).given_up = true;
                if self.planted(Plant::EndInvented) {
                    self.follow.push_back((pool, Input::Ended { worker: *worker }));
                }
            }
            _ => {}
        }
    }

    pub(super) fn returned(&mut self, pool: usize, call: CallId, well: bool) {
        let open = self.calls.remove(&call.0);
        self.check("calls return once", |_| open.is_some(), || format!("pool {pool}, {call:?}"));
        if let Some((model, deadline)) = open.and_then(|call| call.unload) {
            match well {
                true => self.check_unloaded(pool, model),
                false => self.check_unload_gave_up(pool, model, deadline),
            }
        }
    }

    pub(super) fn drained(&mut self, pool: usize) {
        self.pools[pool].drained = true;
        self.check_drained(pool);
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

    /// A request that is still running is answered, whatever part of its answer is out.
    fn end_running(&mut self, request: RequestId) {
        let index = request.0 as usize;
        let (state, now) = (&self.requests[index], self.now);
        let (ends_at, gone) = (state.ends_at, state.gone);
        self.check("deadlines", |_| ends_at <= now && !gone, || format!("{request} was ended wrongly"));
        self.answer(index, "timeout");
    }

    /// The scheduler lets go of a request, which it does exactly once.
    fn lets_go(&mut self, request: RequestId) -> bool {
        let index = request.0 as usize;
        let state = &mut self.requests[index];
        let first = !std::mem::replace(&mut state.gone, true);
        let (pool, model, deadline) = (state.pool, state.model, state.deadline);
        self.pools[pool].queued.remove(&(deadline, index));
        self.pools[pool].models[model].held -= usize::from(first);
        self.pools[pool].models[model].accounts.leave(index);
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
        if self.pools[pool].down {
            return self.unheard(event);
        }
        let at = self.send(self.pools[pool].from_maintenance);
        self.pools[pool].from_maintenance = at;
        self.at(at, event);
    }

    /// Takes note of an input before the scheduler does, for the checks and the shell's own books.
    fn before_input(&mut self, pool: usize, input: &mut Input) {
        match input {
            Input::Submit { tickets } => {
                for (key, ticket) in tickets {
                    let index = ticket.request.0 as usize;
                    self.pools[pool].queued.insert((ticket.deadline, index));
                    let aging = self.scenario.pools[pool][key.0 as usize].policy.config.aging;
                    self.requests[index].rank = Some(rank(ticket, self.now, aging));
                    self.enter_share(pool, key.0 as usize, index);
                    if ticket.tenant.is_some() && self.planted(Plant::TenantIgnored) {
                        ticket.tenant = None;
                    }
                    if self.planted(Plant::PriorityIgnored) {
                        ticket.priority = Priority(i8::MIN);
                    }
                    if self.planted(Plant::CostIgnored) {
                        ticket.cost = Cost(0);
                    }
                    if self.planted(Plant::KeyIgnored) {
                        ticket.key = BatchKey(1 - ticket.key.0);
                    }
                    if self.planted(Plant::DeadlineIgnored) {
                        ticket.deadline = ticket.deadline + Duration::from_secs(30);
                    }
                }
            }
            Input::Pin { key, pinned } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                model.pinned = *pinned && !model.removed;
            }
            Input::Remove { key } => {
                let model = &mut self.pools[pool].models[key.0 as usize];
                (model.removed, model.pinned) = (true, false);
            }
            Input::Started { worker, footprint } => {
                let now = self.now;
                let worker = self.worker(pool, *worker);
                worker.holds = Some((Holds::Worker, Some(*footprint)));
                (worker.ready, worker.ready_at, worker.idle_since) = (true, now, now);
            }
            Input::StartFailed { worker, failure } => {
                if !is_permanent(failure.kind) {
                    self.worker_failed(pool, *worker, true);
                }
                self.let_go(pool, *worker, Told::Dead);
            }
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
                let state = self.worker(pool, worker);
                if state.assigned.is_empty() {
                    state.idle_since = now;
                }
            }
            Input::Died { worker, .. } => {
                self.worker_failed(pool, *worker, false);
                self.let_go(pool, *worker, Told::Dead);
            }
            _ => {}
        }
    }

    /// Makes an input of a message about a worker, as the shell does.
    pub(super) fn hear(&mut self, pool: usize, worker: WorkerId, word: Word) {
        let state = self.worker(pool, worker);
        state.in_flight -= 1;
        let (model, told, loaded) = (state.model, state.told, state.weights);
        let input = match word {
            // The roster tells of the end of a thread, and nobody else of those of a pool that has died.
            Word::Report(input) if state.orphan && !matches!(input, Input::Ended { .. }) => return,
            Word::Report(Input::Ended { .. }) if told == Told::Nothing => {
                state.thread_ended = true;
                return self.end_actor(pool, worker, None);
            }
            Word::Report(input) => {
                if matches!(input, Input::Started { .. }) {
                    self.pools[pool].models[model].weights = loaded;
                }
                input
            }
            Word::Crashed { weights } if told != Told::Nothing => return self.drop_weights(weights),
            Word::Crashed { weights } => {
                self.offer_weights(pool, worker, weights);
                self.crashed(pool, worker)
            }
        };
        self.feed(pool, input);
    }

    fn crashed(&mut self, pool: usize, worker: WorkerId) -> Input {
        let now = self.now;
        for request in self.worker(pool, worker).assigned.clone() {
            self.requests[request].end_attempt(now);
        }
        Input::Died { worker, cause: Cause::new("crashed"), fates: self.fates(pool, worker) }
    }

    fn read_progress(&mut self, pool: usize, worker: WorkerId) {
        if self.worker(pool, worker).told == Told::Nothing {
            let (mut last_progress, fates) = (self.last_progress(pool, worker), self.fates(pool, worker));
            self.worker(pool, worker).shown = last_progress;
            if last_progress == self.now && self.planted(Plant::ProgressLost) {
                last_progress = Time::ZERO;
            }
            self.follow.push_back((pool, Input::Progress { worker, last_progress, fates }));
        }
    }

    fn fates(&mut self, pool: usize, worker: WorkerId) -> Vec<(RequestId, Fate)> {
        let (now, assigned) = (self.now, self.worker(pool, worker).assigned.clone());
        let mut fates = Vec::with_capacity(assigned.len());
        for index in assigned {
            let request = &self.requests[index];
            let fate = match (request.begun, request.is_answered(), request.has_emitted(now)) {
                _ if request.finished => Fate::Answered,
                (false, true, _) => Fate::Unwanted,
                (false, false, _) if !self.planted(Plant::UnbegunBlamed) => Fate::Unbegun,
                (_, true, _) if self.planted(Plant::CauseAcquitted) => Fate::Answered,
                (_, true, _) => Fate::GivenUp,
                (_, false, true) => Fate::Emitted,
                (_, false, false) => Fate::Untouched,
            };
            fates.push((RequestId(index as u64), fate));
        }
        fates
    }

    /// A weak reference that may still be upgraded at this moment.
    pub(super) fn offer_weights(&mut self, pool: usize, worker: WorkerId, carried: Option<usize>) {
        let index = self.worker(pool, worker).model;
        let held = carried.or_else(|| self.hold(self.pools[pool].models[index].weights));
        let old = std::mem::replace(&mut self.pools[pool].models[index].offered, held);
        self.drop_weights(old);
    }

    /// Lets go of weights that were kept: what nobody else holds is dropped by a thread, in its own time.
    fn release_weights(&mut self, pool: usize, key: ModelKey, thread: Option<WorkerId>) {
        let model = &mut self.pools[pool].models[key.0 as usize];
        let (retained, offered) = (model.retained.take(), model.offered.take());
        self.drop_weights(offered);
        let is_last = retained.is_some_and(|index| self.weights[index].holders == 1);
        let Some(worker) = thread else { return self.drop_weights(retained) };
        if is_last {
            self.free_kept(pool, worker, key, retained);
        } else {
            let state = self.worker(pool, worker);
            (state.model, state.known, state.told) = (key.0 as usize, true, Told::Stopped);
            self.drop_weights(retained);
            self.follow.push_back((pool, Input::Ended { worker }));
        }
    }

    /// A thread of its own drops weights that nobody else holds.
    pub(super) fn free_kept(&mut self, pool: usize, worker: WorkerId, key: ModelKey, weights: Option<usize>) {
        let footprint = self.pools[pool].scheduler.model(key).and_then(|model| model.footprint);
        let now = self.now;
        let state = self.worker(pool, worker);
        (state.model, state.known, state.spawned) = (key.0 as usize, true, true);
        (state.told, state.told_at, state.weights) = (Told::Stopped, now, weights);
        state.holds = Some((Holds::Weights, footprint));
        self.pools[pool].live.push(worker);
        self.end_thread(pool, worker);
    }

    fn drop_offers(&mut self, pool: usize) {
        for index in 0..self.pools[pool].models.len() {
            let offered = self.pools[pool].models[index].offered.take();
            self.drop_weights(offered);
        }
    }

    /// Answers a request's caller, unless it has been answered or has gone.
    pub(super) fn answer(&mut self, index: usize, reason: &'static str) {
        let request = &mut self.requests[index];
        if request.is_answered() {
            return;
        }
        request.answers += 1;
        if self.planted(Plant::AnswerSentTwice) {
            self.requests[index].answers += 1;
        }
        self.coverage.ending(reason);
        self.free_slot(index);
    }

    pub(super) fn free_slot(&mut self, index: usize) {
        let Request { pool, model, lane, answers, .. } = self.requests[index];
        let kept = self.planted(Plant::SlotNotGivenBack);
        let state = &mut self.pools[pool].models[model];
        state.unanswered[lane] -= 1;
        state.slots[lane] -= usize::from(!kept);
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
        let at_once = self.scenario.takes_free_room || urgency == Urgency::IfFree;
        let lease = if at_once { self.lease(&device, bytes) } else { None };
        let found = lease.is_some();
        let asked = match urgency {
            Urgency::MakeRoom { until } if !found => Some((key, (device.clone(), bytes), until)),
            _ => None,
        };
        self.pools[pool].rooms.insert(worker, HeldRoom { lease, weights, asked });
        match (found, urgency) {
            (true, _) => self.follow.push_back((pool, Input::RoomGranted { worker })),
            (false, Urgency::MakeRoom { until }) => {
                self.ask_for_room(pool, worker, key, (device, bytes), until);
            }
            (false, Urgency::IfFree) => {
                let (free, limit) = (self.ledgers[&device].free(), self.ledgers[&device].limit());
                self.reclaim(&device, bytes);
                self.follow.push_back((pool, Input::RoomDenied { worker, needed: bytes, free, limit }));
            }
        }
    }

    fn load(&mut self, pool: usize, worker: WorkerId) {
        let Some(HeldRoom { lease, weights, .. }) = self.pools[pool].rooms.remove(&worker) else { return };
        if lease.is_some() {
            let key = ModelKey(self.worker(pool, worker).model as u32);
            let footprint = self.pools[pool].scheduler.model(key).and_then(|model| model.footprint);
            self.worker(pool, worker).holds = Some((Holds::Worker, footprint));
        }
        self.order(pool, worker, Order::Load { lease, weights });
    }

    pub(super) fn stop(&mut self, pool: usize, mut worker: WorkerId, reason: EvictionReason) {
        if reason == EvictionReason::Cooldown
            && let Some(other) = self.busier_sibling(pool, worker)
            && self.planted(Plant::RecentlyUsedCooledDown)
        {
            worker = other;
        }
        self.check_stop(pool, worker, reason);
        self.let_go(pool, worker, Told::Stopped);
    }
}
