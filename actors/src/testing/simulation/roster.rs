//! Checks of threads: none is forgotten while it lives, their number is bounded, who is found stuck is, and of a model that
//! is forgotten nothing is left.

use std::time::Duration;

use super::state::{SimWorker, Told};
use super::world::World;
use crate::id::{ModelKey, WorkerId};
use crate::scheduler::Holds;

/// An idle thread has this long to answer a ping.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// Threads that a model may have beside as many as its workers.
const SPARE: usize = 2;

impl World {
    /// The scheduler knows of every thread that lives, whichever pool started it.
    pub(super) fn check_roster(&mut self, pool: usize) {
        let state = &self.pools[pool];
        let unknown = state.live.iter().find(|worker| state.scheduler.model_of(**worker).is_none()).copied();
        self.check("no thread is forgotten", |_| unknown.is_none(), || format!("pool {pool}, {unknown:?}"));
    }

    /// A thread has been started: the model has no more than it may have workers, and two. With those of the models that it
    /// replaced, which end what they have, there are no more than three models may have.
    pub(super) fn check_threads(&mut self, pool: usize, key: ModelKey) {
        let (state, plans) = (&self.pools[pool], &self.scenario.pools[pool]);
        let policy = &plans[key.0 as usize].policy;
        let most = policy.config.max_workers + SPARE;
        let (mut own, mut of_the_name) = (0, 0);
        for worker in &state.live {
            let worker = &state.workers[worker.0 as usize - 1];
            // One that drops weights comes on top of the bound.
            let counts = !matches!(worker.holds, Some((Holds::Weights, _)));
            own += usize::from(counts && worker.model == key.0 as usize);
            of_the_name += usize::from(counts && plans[worker.model].policy.model == policy.model);
        }
        let bounded = own <= most && of_the_name <= 3 * most;
        self.check(
            "threads are bounded",
            |_| bounded,
            || format!("pool {pool}: {own} and {of_the_name} of {key:?}"),
        );
    }

    /// A thread is called stuck only if it was let go of long ago, or has made no progress for long.
    pub(super) fn check_is_stuck(&mut self, pool: usize, worker: WorkerId) {
        let (now, state) = (self.now, self.worker_ref(pool, worker));
        let given_up = state.told == Told::Quarantined && state.told_at == now;
        let since = if given_up { state.shown } else { state.told_at };
        let stall = self.scenario.pools[pool][state.model].policy.config.stall;
        let limit = stall.run.min(stall.load).min(PING_LIMIT);
        let early = now.since(since) < limit;
        self.check("stuck means stuck", |_| !early, || format!("{worker} of pool {pool}, since {since:?}"));
    }

    /// A model is forgotten once nobody waits for it and its last thread has ended.
    pub(super) fn check_forgotten(&mut self, pool: usize, index: usize) {
        let state = &self.pools[pool];
        let of_it = |worker: &&SimWorker| worker.model == index;
        let threads =
            state.live.iter().map(|worker| &state.workers[worker.0 as usize - 1]).filter(of_it).count();
        let held = state.models[index].held;
        self.check(
            "forgotten means gone",
            |_| threads == 0 && held == 0,
            || format!("pool {pool}, model {index}: {threads} threads, {held} requests"),
        );
    }
}
