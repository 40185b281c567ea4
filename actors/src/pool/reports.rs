//! Turns what a pool learns of its workers into inputs of the scheduler: the reports of their threads, the
//! supervision events of their actors, and the progress that their gauges show. Here a run that is over is
//! cut off from its callers, and the weights that a crashed worker leaves behind are offered for keeping.

use std::sync::{Arc, Weak};

use ractor::ActorId;
use rustc_hash::FxHashSet;

use super::{PoolState, WeightsEntry};
use crate::capability::Capability;
use crate::id::{ModelKey, RequestId, WorkerId};
use crate::job::{Job, Stage};
use crate::scheduler::{Fate, Holds, Input, Outcome};
use crate::worker::{Crash, Report, SharedWeights, WorkerHandle};

impl<C: Capability> PoolState<C> {
    pub(super) fn report(&mut self, report: Report<C>) {
        let input = match report {
            Report::Sized { worker, footprint } => Input::Sized { worker, footprint },
            Report::Started { worker, footprint, weights } => {
                self.roster.charge(worker, Holds::Worker, Some(footprint));
                self.remember_weights(worker, weights);
                Input::Started { worker, footprint }
            }
            Report::StartFailed { worker, failure } => {
                self.inputs.push_back(Input::StartFailed { worker, failure });
                return self.let_go(worker);
            }
            Report::Finished { worker, outcomes } => {
                self.publisher.touch();
                self.end_failed_attempts(worker, &outcomes);
                Input::Finished { worker, outcomes }
            }
            Report::Ended { worker } => return self.thread_ended(worker),
        };
        self.inputs.push_back(input);
    }

    /// A thread that ends while the pool has its handle was not told to: its actor fails, unless it has
    /// already, and the supervision event decides before the end is told.
    fn thread_ended(&mut self, worker: WorkerId) {
        match self.workers.get_mut(&worker) {
            Some(handle) => {
                handle.thread_ended = true;
                handle.fail(Crash::new("its thread ended"));
            }
            None => self.tell_end(worker),
        }
    }

    fn tell_end(&mut self, worker: WorkerId) {
        self.threads.remove(&worker);
        self.publisher.now();
        self.inputs.push_back(Input::Ended { worker });
    }

    /// Drops a worker's handle, which ends its actor and, once it has done what it is doing, its thread.
    pub(super) fn let_go(&mut self, worker: WorkerId) {
        if self.workers.remove(&worker).is_some_and(|handle| handle.thread_ended) {
            self.tell_end(worker);
        }
    }

    /// Tells the scheduler of a crash. The actor of a worker that was let go ends too, which is none.
    pub(super) fn crashed(&mut self, actor: ActorId, crash: Crash<C>) {
        let Some(worker) = self.worker_of(actor) else { return };
        // First the weights are taken hold of, then the handle is dropped: its thread may end at once.
        self.offer_weights(worker, crash.weights);
        // First the old run is cut off, then it is seen how far it came: nothing can change in between.
        for job in self.running_jobs(worker) {
            job.end_attempt();
        }
        let fates = self.fates(worker);
        self.publisher.now();
        self.inputs.push_back(Input::Died { worker, cause: crash.cause, fates });
        self.let_go(worker);
    }

    fn worker_of(&self, actor: ActorId) -> Option<WorkerId> {
        let handle = self.workers.iter().find(|(_, handle)| handle.actor.get_id() == actor);
        handle.map(|(worker, _)| *worker)
    }

    /// Answers [`Effect::ReadProgress`](crate::scheduler::Effect::ReadProgress) from the worker's gauge.
    pub(super) fn read_progress(&mut self, worker: WorkerId) {
        if let Some(last_progress) = self.workers.get(&worker).map(WorkerHandle::last_progress) {
            let fates = self.fates(worker);
            self.inputs.push_back(Input::Progress { worker, last_progress, fates });
        }
    }

    fn running_jobs(&self, worker: WorkerId) -> Vec<Arc<Job<C>>> {
        let running = self.scheduler.running(worker);
        running.iter().filter_map(|ticket| Some(self.jobs.get(&ticket.request)?.job().clone())).collect()
    }

    fn fates(&self, worker: WorkerId) -> Vec<(RequestId, Fate)> {
        let fate = |job: &Job<C>| match (job.stage(), job.is_answered()) {
            (Stage::Ahead, false) => Fate::Unbegun,
            (Stage::Ahead, true) => Fate::Unwanted,
            (Stage::Begun, false) if job.may_run_again() => Fate::Untouched,
            (Stage::Begun, false) => Fate::Emitted,
            (Stage::Begun, true) => Fate::GivenUp,
            (Stage::Finished, _) => Fate::Answered,
        };
        self.running_jobs(worker).iter().map(|job| (job.id, fate(job))).collect()
    }

    /// Ends the attempts of requests that failed and may be run again. A thread that was given up and came
    /// back reports too, on requests that run elsewhere by now: those attempts are none of its business.
    fn end_failed_attempts(&self, worker: WorkerId, outcomes: &[(RequestId, Outcome)]) {
        let failed = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        let failed: FxHashSet<RequestId> = failed.map(|(request, _)| *request).collect();
        if failed.is_empty() {
            return;
        }
        for job in self.running_jobs(worker).iter().filter(|job| failed.contains(&job.id)) {
            job.end_attempt();
        }
    }

    fn remember_weights(&mut self, worker: WorkerId, weights: Weak<SharedWeights<C>>) {
        // The weights of a load that was given up go with its thread; nobody may count on them.
        if !self.workers.contains_key(&worker) {
            return;
        }
        if let Some(key) = self.scheduler.model_of(worker) {
            self.weights_entry(key).shared = weights;
        }
    }

    pub(super) fn offer_weights(&mut self, worker: WorkerId, weights: Option<Arc<SharedWeights<C>>>) {
        if let Some(key) = self.scheduler.model_of(worker) {
            self.offering.push(key);
            let entry = self.weights_entry(key);
            entry.offered = weights.or_else(|| entry.shared.upgrade());
        }
    }

    pub(super) fn weights_entry(&mut self, key: ModelKey) -> &mut WeightsEntry<C> {
        self.weights.entry(key).or_insert(WeightsEntry { shared: Weak::new(), offered: None, retained: None })
    }
}
