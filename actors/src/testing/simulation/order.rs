//! Checks of what runs when: the order of service, the members of a batch, probes, the worker that cools down, what an
//! unload and a shutdown wait for, and evictions that nobody needs.

use super::state::{SimWorker, Told};
use super::world::World;
use crate::id::{ModelKey, RequestId, Tenant, Time, WorkerId};
use crate::scheduler::{Batching, Leaving, Rank};

impl World {
    /// The batch keeps to its key, its number and its cost together with what runs there, and nobody is passed over.
    pub(super) fn check_batch(&mut self, pool: usize, worker: WorkerId, requests: &[RequestId]) {
        let model = self.worker(pool, worker).model;
        let running = self.worker(pool, worker).assigned.clone();
        let policy = &self.scenario.pools[pool][model].policy;
        let (limits, batching) = (policy.config.batch, policy.batching);
        let batch: Vec<usize> = requests.iter().map(|request| request.0 as usize).collect();
        let all = || running.iter().chain(&batch);
        let cost: u64 = all().map(|index| self.requests[*index].cost).sum();
        let (count, key) = (all().count(), batch.first().map(|index| self.requests[*index].key));
        let one_key = all().all(|index| Some(self.requests[*index].key) == key);
        self.check("one key a batch", |_| one_key, || format!("{requests:?} on {worker}"));
        self.check("the limit on requests", |_| count <= limits.requests, || format!("{count} on {worker}"));
        self.check(
            "the limit on cost",
            |_| cost <= limits.cost || count == 1,
            || format!("{cost} on {worker}"),
        );
        // The members of a continuous run are run again together once.
        let spared = u32::from(batching == Batching::Continuous);
        let is_suspect = |index: &usize| self.requests[*index].deaths > spared;
        let with_suspect = count > 1 && all().any(is_suspect);
        self.check("a suspect runs alone", |_| !with_suspect, || format!("{requests:?} on {worker}"));
        let joins = batching == Batching::Continuous && !running.is_empty();
        let passed_over = self.passed_over(pool, model, &batch, joins);
        self.check(
            "order of service",
            |_| passed_over.is_none(),
            || format!("{passed_over:?} waits while {requests:?} run"),
        );
        self.check_shares(pool, model, &batch, joins);
    }

    /// A request that still waits although it comes before another of its tenant that runs: of the same key, or, for the
    /// first of a batch and those that join a run, of any.
    fn passed_over(&self, pool: usize, model: usize, batch: &[usize], joins: bool) -> Option<RequestId> {
        let fresh = |index: &usize| Some(&self.requests[*index]).filter(|request| !request.reran);
        let opening = batch.iter().find_map(fresh)?;
        let (key, opener) = (opening.key, &opening.tenant);
        let mut tenants: Vec<(&Option<Tenant>, Rank, Rank)> = Vec::new();
        for request in batch.iter().filter_map(fresh) {
            let Some(rank) = request.rank else { continue };
            match tenants.iter_mut().find(|(tenant, ..)| **tenant == request.tenant) {
                Some((_, first, last)) => (*first, *last) = ((*first).min(rank), (*last).max(rank)),
                None => tenants.push((&request.tenant, rank, rank)),
            }
        }
        let model = self.pools[pool].scheduler.models.get(&ModelKey(model as u32))?;
        model.queue.order().find(|request| {
            let waiting = &self.requests[request.0 as usize];
            let is_before = |rank| waiting.rank.is_some_and(|own| own < rank);
            let of_key = waiting.key == key || joins;
            let running = tenants.iter().find(|(tenant, ..)| **tenant == waiting.tenant);
            running.filter(|_| !waiting.reran).is_some_and(|(tenant, first, last)| match of_key {
                true => is_before(*last),
                false => *tenant == opener && is_before(*first),
            })
        })
    }

    fn idle_siblings(&self, pool: usize, worker: WorkerId) -> impl Iterator<Item = (WorkerId, Time)> {
        let index = worker.0 as usize - 1;
        let workers = &self.pools[pool].workers;
        let model = workers[index].model;
        let is_idle = move |other: usize, state: &SimWorker| {
            let idle = state.ready && state.told == Told::Nothing && state.assigned.is_empty();
            other != index && state.model == model && idle
        };
        let idle = workers.iter().enumerate().filter(move |(other, state)| is_idle(*other, state));
        idle.map(|(other, state)| (WorkerId(other as u64 + 1), state.idle_since))
    }

    /// A sibling that has been idle for longer.
    pub(super) fn less_used_sibling(&self, pool: usize, worker: WorkerId) -> Option<WorkerId> {
        let since = self.pools[pool].workers[worker.0 as usize - 1].idle_since;
        self.idle_siblings(pool, worker).find(|(_, idle_since)| *idle_since < since).map(|(other, _)| other)
    }

    /// A sibling that has been idle for less.
    pub(super) fn busier_sibling(&self, pool: usize, worker: WorkerId) -> Option<WorkerId> {
        let since = self.pools[pool].workers[worker.0 as usize - 1].idle_since;
        self.idle_siblings(pool, worker).find(|(_, idle_since)| *idle_since > since).map(|(other, _)| other)
    }

    /// A half-open breaker lets one request through at a time.
    pub(super) fn check_probe(&mut self, pool: usize) {
        let crowded = self.pools[pool].scheduler.models().find_map(|model| {
            let crowded = model.breaker.is_half_open() && model.in_flight() > 1;
            crowded.then(|| model.policy.model.clone())
        });
        self.check("one probe at a time", |_| crowded.is_none(), || format!("pool {pool}, {crowded:?}"));
    }

    /// A thread of the pool that lives and is not known to be stuck.
    fn live_thread(&self, pool: usize, of: impl Fn(&SimWorker) -> bool) -> Option<WorkerId> {
        let state = &self.pools[pool];
        let stuck = |worker: &WorkerId| {
            let leaving = state.scheduler.models().flat_map(|model| &model.leaving);
            leaving.into_iter().any(|gone| gone.worker == *worker && gone.why == Leaving::Stuck)
        };
        let counts = |id: &&WorkerId| {
            let worker = &state.workers[id.0 as usize - 1];
            worker.told != Told::Quarantined && of(worker) && !stuck(id)
        };
        state.live.iter().find(counts).copied()
    }

    /// An unload gives up at its deadline, or when nothing is left but threads that are stuck.
    pub(super) fn check_unload_gave_up(&mut self, pool: usize, index: usize, deadline: Time) {
        let waits = self.live_thread(pool, |worker| worker.model == index).is_some();
        let early = waits && self.now < deadline && self.pools[pool].shut_by.is_none();
        self.check("an unload waits until its deadline", |_| !early, || format!("pool {pool}, {deadline:?}"));
    }

    /// Before its deadline a shutdown has left no thread but those that are stuck.
    pub(super) fn check_drained(&mut self, pool: usize) {
        let left = self.live_thread(pool, |_| true);
        let in_time = self.pools[pool].shut_by.is_some_and(|by| self.now < by);
        self.check(
            "drained means no thread",
            |_| left.is_none() || !in_time,
            || format!("pool {pool}, {left:?}"),
        );
    }
}
