//! The invariants of the design, checked after every event.

use std::time::Duration;

use super::Plant;
use super::state::{Doing, Pool, SimWorker, Told};
use super::world::World;
use crate::error::Error;
use crate::id::{Bytes, Device, ModelKey, RequestId, Time, WorkerId};
use crate::scheduler::{Batching, Leaving, ModelState, Phase};
use crate::telemetry::EvictionReason;

/// More ticks than this at one moment are a busy loop.
const MOST_TICKS: u32 = 4;
/// A stuck worker is found this long after its stall limit at the latest. One that hangs while it is idle has
/// no stall limit but a few seconds to answer its ping.
const NOTICE: Duration = Duration::from_secs(6);

impl World {
    pub(super) fn break_invariant(&mut self, invariant: &'static str, detail: impl FnOnce() -> String) {
        if self.broken.is_none() {
            let detail = detail();
            self.note(|| format!("!! {invariant}: {detail}"));
            self.broken = Some((invariant, detail));
        }
    }

    pub(super) fn check(
        &mut self,
        invariant: &'static str,
        holds: impl FnOnce(&Self) -> bool,
        detail: impl FnOnce() -> String,
    ) {
        if !holds(self) {
            self.break_invariant(invariant, detail);
        }
    }

    pub(super) fn check_bytes(&mut self, device: &Device) {
        let (ledger, held) = (self.ledgers[device], self.held[device]);
        if ledger.charged() > ledger.limit() {
            self.break_invariant("charged within the limit", || format!("{ledger:?}"));
        }
        if ledger.charged() != held {
            self.break_invariant("bytes", || format!("{ledger:?} where {held:?} are held"));
        }
    }

    pub(super) fn check_request_may_run(&mut self, index: usize) {
        let request = &self.requests[index];
        let (gone, deaths, on) = (request.gone, request.deaths, request.running_on);
        let (pool, model) = (request.pool, request.model);
        self.check("ends once", |_| !gone, || format!("request {index} runs after its end"));
        // The members of a continuous run are run again together first.
        let most = match self.scenario.pools[pool][model].policy.batching {
            Batching::PerRun => 2,
            Batching::Continuous => 3,
        };
        self.check("poison is not run again", |_| deaths < most, || format!("request {index}"));
        self.check("runs in one place", |_| on.is_none(), || format!("request {index} runs on {on:?}"));
    }

    /// A model's failure ends a request only if that ran alone, unless part of its answer is out.
    pub(super) fn check_fails_alone(&mut self, request: RequestId, error: &Error) {
        let by_model = matches!(error, Error::ModelError { .. } | Error::InvalidInput { .. });
        let state = &self.requests[request.0 as usize];
        let undeserved = by_model && state.shared && !state.is_answered() && !state.has_emitted(self.now);
        self.check("one bad input fails alone", |_| !undeserved, || format!("{request}: {error}"));
    }

    /// A batch that arrives must find its worker free, unless runs are joined.
    pub(super) fn check_run(&mut self, pool: usize, worker: WorkerId) {
        let state = &self.pools[pool].workers[worker.0 as usize - 1];
        let continuous = self.scenario.pools[pool][state.model].policy.batching == Batching::Continuous;
        let busy = matches!(state.doing, Doing::Running(_)) || !state.inbox.is_empty();
        self.check("nothing waits behind a busy worker", |_| continuous || !busy, || format!("{worker}"));
    }

    pub(super) fn check_stop(&mut self, pool: usize, worker: WorkerId, reason: EvictionReason) {
        let now = self.now;
        let state = &self.pools[pool].workers[worker.0 as usize - 1];
        let plan = &self.scenario.pools[pool][state.model];
        if !state.ready {
            return;
        }
        let (busy, pinned) = (!state.assigned.is_empty(), self.pools[pool].models[state.model].pinned);
        let young = now.since(state.ready_at) < plan.policy.config.min_residency;
        let chosen =
            matches!(reason, EvictionReason::MakeRoom | EvictionReason::Pressure | EvictionReason::Cooldown);
        if chosen && busy {
            self.break_invariant("no busy worker evicted", || format!("{worker}"));
        }
        if chosen && pinned {
            self.break_invariant("no pinned worker evicted", || format!("{worker}"));
        }
        if reason == EvictionReason::MakeRoom && young {
            self.break_invariant("no young worker evicted", || format!("{worker}"));
        }
        if reason == EvictionReason::Cooldown {
            self.check_cooldown(pool, worker);
        }
    }

    fn check_cooldown(&mut self, pool: usize, worker: WorkerId) {
        let (now, interval) = (self.now, self.scenario.interval);
        let index = self.pools[pool].workers[worker.0 as usize - 1].model;
        let idle = self.scenario.pools[pool][index].policy.config.cooldown_idle;
        let model = &mut self.pools[pool].models[index];
        let soon =
            now < model.last_busy + idle || model.last_cooldown.is_some_and(|last| now < last + interval);
        model.last_cooldown = Some(now);
        self.check("cooldown waits", |_| !soon, || format!("{worker}"));
        let older = self.less_used_sibling(pool, worker);
        self.check("least recently used", |_| older.is_none(), || format!("{older:?} before {worker}"));
    }

    /// A worker is about to be started.
    pub(super) fn check_start(&mut self, pool: usize, model: usize) {
        let (now, allowed) = (self.now, self.pools[pool].models[model].no_start_before);
        self.check("restart budget", |_| now >= allowed, || format!("started before {allowed:?}"));
    }

    /// An unload that went well has left no thread and no bytes.
    pub(super) fn check_unloaded(&mut self, pool: usize, index: usize) {
        let state = &self.pools[pool];
        let holds = |worker: &SimWorker| worker.model == index;
        let held = state.live.iter().find(|worker| holds(&state.workers[worker.0 as usize - 1])).copied();
        let kept = state.models[index].retained.is_some();
        self.check(
            "unloaded means gone",
            |_| held.is_none() && !kept,
            || format!("pool {pool}, worker {held:?}"),
        );
    }

    /// A failure that counts: of a worker that the scheduler still has. Keeps the restart budget's books.
    pub(super) fn worker_failed(&mut self, pool: usize, worker: WorkerId, only_starting: bool) {
        let state = self.worker(pool, worker);
        let (index, told) = (state.model, state.told);
        let model = self.pools[pool].scheduler.models.get(&ModelKey(index as u32));
        let entry = model.and_then(|model| model.workers.iter().find(|entry| entry.id == worker));
        if told == Told::Nothing && entry.is_some_and(|entry| !only_starting || !entry.is_ready()) {
            self.count_death(pool, worker);
            if self.planted(Plant::RestartOutsideBudget) {
                let made_up = WorkerId(self.pools[pool].workers.len() as u64 + 100);
                self.spawn(pool, made_up, ModelKey(index as u32));
            }
        }
    }

    /// A breaker opens for the model's own failures: at those of which a request may be the cause it does not.
    pub(super) fn check_blame(&mut self, pool: usize, key: ModelKey) {
        let index = key.0 as usize;
        let most = self.scenario.pools[pool][index].policy.config.restart.max_restarts as usize;
        let model = &self.pools[pool].models[index];
        let is_the_models = |ran: &[usize]| ran.iter().all(|request| self.requests[*request].cleared);
        let counted = || model.deaths.iter().filter(|(_, ran)| is_the_models(ran));
        let since = model.opened_at.unwrap_or(Time::NEVER);
        let (all, later) = (counted().count(), counted().filter(|(at, _)| *at >= since).count());
        self.check(
            "a request's death is its own",
            |_| all > most || later > 0,
            || format!("pool {pool}, model {index}: {all} failures of its own open its breaker"),
        );
        self.pools[pool].models[index].opened_at = Some(self.now);
    }

    /// Counts a failure of a worker whose model had nothing to run. The cause of another may be a request, so that the core
    /// may count it later or never: what is checked is what is certain.
    pub(super) fn count_death(&mut self, pool: usize, worker: WorkerId) {
        let state = self.worker(pool, worker);
        let (index, assigned) = (state.model, state.assigned.clone());
        let ran: Vec<usize> = assigned.into_iter().filter(|request| self.requests[*request].begun).collect();
        let (now, config) = (self.now, self.scenario.pools[pool][index].policy.config.restart);
        let model = &mut self.pools[pool].models[index];
        model.deaths.retain(|(then, _)| now.since(*then) < config.window);
        let is_certain = ran.is_empty();
        model.deaths.push_back((now, ran));
        if !is_certain {
            return;
        }
        model.failures.retain(|then| now.since(*then) < config.window);
        while model.failures.len() > config.max_restarts as usize {
            model.failures.pop_front();
        }
        model.failures.push_back(now);
        let failures = model.failures.len() as u32;
        if failures > config.max_restarts || model.broken {
            model.broken = true;
            model.no_start_before = now + config.breaker_open;
        } else {
            let wait = config.first_backoff.saturating_mul(1 << (failures - 1)).min(config.max_backoff);
            model.no_start_before = model.no_start_before.max(now + wait.mul_f64(0.799));
        }
    }

    pub(super) fn check_pool(&mut self, pool: usize, ticked: bool) {
        self.check_probe(pool);
        self.check_roster(pool);
        self.check_work(pool);
        let found = self.find_fault(&self.pools[pool], ticked);
        if let Some((invariant, what)) = found {
            self.break_invariant(invariant, || format!("pool {pool}: {what}"));
        }
        if self.plant == Some(Plant::PinnedWorkerEvicted) {
            self.evict_pinned(pool);
        }
    }

    fn evict_pinned(&mut self, pool: usize) {
        let state = &self.pools[pool];
        let pinned = |(_, worker): &(usize, &SimWorker)| {
            let idle = worker.ready && worker.assigned.is_empty() && worker.told == Told::Nothing;
            idle && state.models[worker.model].pinned
        };
        if let Some((index, _)) = state.workers.iter().enumerate().find(pinned) {
            let worker = WorkerId(index as u64 + 1);
            if self.planted(Plant::PinnedWorkerEvicted) {
                self.stop(pool, worker, EvictionReason::Pressure);
            }
        }
    }

    fn find_fault(&self, pool: &Pool, ticked: bool) -> Option<(&'static str, String)> {
        let alarm = pool.scheduler.alarm();
        if let Some((deadline, index)) = pool.queued.first() {
            if alarm > *deadline {
                return Some(("deadlines", format!("no alarm for request {index}, due at {deadline:?}")));
            }
            if ticked && *deadline <= self.now {
                return Some(("deadlines", format!("request {index} outlived the tick at its deadline")));
            }
        }
        if pool.ticks.1 > MOST_TICKS && pool.ticks.0 == self.now {
            return Some(("no busy loop", format!("{} ticks at one moment", pool.ticks.1)));
        }
        let shutting_down = pool.shut_by.is_some();
        let models = || pool.scheduler.models.values();
        let late = models().find_map(|model| self.find_late_run(model, alarm, ticked));
        late.or_else(|| models().find_map(|model| self.find_fault_of(model, pool, alarm, shutting_down)))
    }

    /// A request that runs out of time while it runs is answered then and there, unless its answer has begun.
    fn find_late_run(&self, model: &ModelState, alarm: Time, ticked: bool) -> Option<(&'static str, String)> {
        let running = model.workers.iter().flat_map(|worker| worker.running());
        running.filter(|ticket| !ticket.ended || ticked).find_map(|ticket| {
            let request = &self.requests[ticket.request.0 as usize];
            if alarm > request.deadline && !ticket.expired {
                return Some(("deadlines", format!("no alarm for {}, which runs", ticket.request)));
            }
            if alarm > request.ends_at && !ticket.ended {
                return Some(("deadlines", format!("no alarm for the end of {}", ticket.request)));
            }
            let in_time = self.now < request.deadline || request.has_emitted(self.now);
            let late = !request.is_answered() && (!in_time || request.ends_at <= self.now);
            (ticked && late).then(|| ("deadlines", format!("{} runs on unanswered", ticket.request)))
        })
    }

    fn find_fault_of(
        &self,
        model: &ModelState,
        pool: &Pool,
        alarm: Time,
        shutting_down: bool,
    ) -> Option<(&'static str, String)> {
        let name = &model.policy.model;
        if model.workers.len() > model.policy.config.max_workers {
            return Some(("at most so many workers", format!("{name} has {}", model.workers.len())));
        }
        let known = model.queue.reruns().chain(model.workers.iter().flat_map(|worker| worker.running()));
        for ticket in known {
            let deaths = self.requests[ticket.request.0 as usize].deaths;
            if ticket.deaths > deaths {
                let what = format!("{} of {name}: {} deaths, not {deaths}", ticket.request, ticket.deaths);
                return Some(("only a run that has begun is blamed", what));
            }
        }
        let threads = model.workers.len() + model.leaving.len();
        // A thread that drops weights comes on top of the bound.
        if threads > model.policy.config.max_workers + 3 {
            return Some(("threads are bounded", format!("{name} has {threads}")));
        }
        let ending = || model.leaving.iter().filter(|gone| gone.why != Leaving::Stuck);
        if let Some(gone) = ending().find(|gone| alarm > gone.overdue_at.max(self.now)) {
            return Some(("stuck workers are found", format!("no alarm for {gone:?} of {name}")));
        }
        let idle = model.workers.iter().any(|worker| worker.is_idle());
        if model.queue.is_ready(self.now) && idle && model.unload.is_none() && !model.is_probing() {
            return Some(("nothing waits beside an idle worker", format!("{name}")));
        }
        if model.is_over() && idle {
            return Some(("workers of removed models go", format!("{name} has an idle one")));
        }
        if !model.preloads.is_empty() && model.has_ready_worker() && model.unload.is_none() {
            return Some(("calls return once", format!("{name} is ready and its preload still waits")));
        }
        for entry in &model.workers {
            let sim = pool.workers.get(entry.id.0 as usize - 1);
            let moves = match entry.phase {
                Phase::Reserving { .. } => pool.asks.contains(&entry.id),
                Phase::Idle { .. } => true,
                _ => sim.is_some_and(|sim| {
                    let working = !matches!(sim.doing, Doing::Nothing | Doing::Ended);
                    sim.in_flight > 0 || !sim.inbox.is_empty() || working
                }),
            };
            if !moves {
                return Some(("no load lost", format!("nothing will ever become of {entry:?} of {name}")));
            }
        }
        let closed = (shutting_down && model.queue.is_empty()) || model.is_over();
        let stranded = model.workers.is_empty() && model.is_wanted() && model.unload.is_none() && !closed;
        if stranded && !is_full(model, pool) && !(self.now < model.restart_at && alarm <= model.restart_at) {
            return Some(("no load lost", format!("{name} is wanted and nothing starts it")));
        }
        None
    }

    /// Nobody hangs unnoticed much longer than the stall limit, on the way out neither.
    pub(super) fn check_stuck_were_found(&mut self) {
        for pool in 0..self.pools.len() {
            let (now, models) = (self.now, self.pools[pool].scheduler.models());
            let late = models.flat_map(|model| {
                let stall = model.policy.config.stall;
                let ending = model.leaving.iter().filter(|gone| gone.why != Leaving::Stuck);
                ending.filter(move |gone| now.since(gone.since) > stall.load.max(stall.run))
            });
            let late = late.map(|gone| gone.worker).next();
            self.check("stuck workers are found", |_| late.is_none(), || format!("pool {pool}, {late:?}"));
            for index in 0..self.pools[pool].workers.len() {
                let worker = &self.pools[pool].workers[index];
                let stall = self.scenario.pools[pool][worker.model].policy.config.stall;
                let limit = match worker.doing {
                    Doing::Hanging if worker.assigned.is_empty() => Duration::ZERO,
                    Doing::Running(_) | Doing::Hanging => stall.run,
                    Doing::Ending => stall.run.max(stall.load),
                    _ => stall.load,
                };
                let Some(since) = worker.stalled_at.filter(|_| worker.told == Told::Nothing) else {
                    continue;
                };
                let late = self.now.since(since) > limit + NOTICE;
                self.check(
                    "stuck workers are found",
                    |_| !late,
                    || format!("pool {pool}, worker {}", index + 1),
                );
            }
        }
    }

    /// With nothing left to happen, everything is back where it began.
    pub(super) fn check_rest(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let lost = self.requests.iter().position(|request| !request.is_answered());
        self.check("no request lost", |_| lost.is_none(), || format!("request {lost:?} was never answered"));
        let kept = self.requests.iter().position(|request| !request.gone);
        self.check("no request lost", |_| kept.is_none(), || format!("the scheduler still has {kept:?}"));
        let ended = self.coverage.ended();
        let accepted = self.requests.len() as u64;
        self.check(
            "counts agree",
            |_| ended == accepted,
            || format!("{ended} endings of {accepted} requests"),
        );
        let open = self.calls.clone();
        self.check("calls return once", |_| open.is_empty(), || format!("{open:?} never returned"));
        let charged: Bytes = self.ledgers.values().map(|ledger| ledger.charged()).sum();
        self.check("bytes are back", |_| charged == Bytes::ZERO, || format!("{charged} are still charged"));
        self.check(
            "nobody waits for room",
            |world| world.load_queue.is_empty(),
            || "the load queue is not empty".to_owned(),
        );
        for pool in 0..self.pools.len() {
            let state = &self.pools[pool];
            let slots: usize = state.models.iter().flat_map(|model| model.slots).sum();
            let rooms = state.rooms.len() + state.asks.len();
            let models = state.scheduler.models.values();
            let left: Vec<String> = models
                .filter(|model| !model.workers.is_empty() || !model.leaving.is_empty() || model.retained)
                .map(|model| format!("{model:?}"))
                .collect();
            self.check("slots are back", |_| slots == 0, || format!("pool {pool} has {slots} in use"));
            self.check("rooms are back", |_| rooms == 0, || format!("pool {pool} has {rooms}"));
            self.check("workers are gone", |_| left.is_empty(), || format!("pool {pool}: {left:?}"));
        }
    }
}

/// The model waits for a thread to end, or to be found stuck, before it may start another. Those of the models that it
/// replaced count, but for as many as may still be at work.
fn is_full(model: &ModelState, pool: &Pool) -> bool {
    let max = model.policy.config.max_workers;
    let is_older = |other: &&ModelState| {
        other.removed && other.key != model.key && other.policy.model == model.policy.model
    };
    let others: Vec<&ModelState> = pool.scheduler.models().filter(is_older).collect();
    let leaving = || others.iter().flat_map(|other| &other.leaving).chain(&model.leaving);
    let working: usize = others.iter().map(|other| other.threads()).sum();
    let threads = model.workers.len() + leaving().count() + working.saturating_sub(max);
    let one_ends = leaving().any(|gone| gone.why != Leaving::Stuck) || working > max;
    threads > max + 1 && one_ends
}
