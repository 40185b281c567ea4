//! What a pool hears from its workers: what their threads report and what the supervision tree says of their actors,
//! turned into inputs of the scheduler. Here a run that is over is cut off from its callers, and the weights that a
//! dead worker leaves behind are offered for keeping.

use std::sync::{Arc, Weak};

use ractor::{ActorCell, ActorId};

use super::{PoolState, WeightsEntry};
use crate::capability::Capability;
use crate::error::Cause;
use crate::id::{ModelKey, RequestId, WorkerId};
use crate::job::Job;
use crate::scheduler::{Fate, Input, Outcome};
use crate::worker::thread::fail_actor;
use crate::worker::{Report, SharedWeights};

impl<C: Capability> PoolState<C> {
    pub(super) fn report(&mut self, report: Report<C>) {
        let input = match report {
            Report::Sized { worker, footprint } => Input::Sized { worker, footprint },
            Report::Started { worker, footprint, weights } => {
                self.remember_weights(worker, weights);
                Input::Started { worker, footprint }
            }
            Report::StartFailed { worker, failure } => {
                self.workers.remove(&worker);
                Input::StartFailed { worker, failure }
            }
            Report::Finished { worker, outcomes } => {
                self.publisher.touch();
                self.end_failed_attempts(worker, &outcomes);
                Input::Finished { worker, outcomes }
            }
            Report::Panicked { worker, cause, weights } => return self.panicked(worker, cause, weights),
            Report::Pong { worker, last_progress } => {
                Input::Pong { worker, last_progress, fates: self.fates(worker) }
            }
            Report::Ended { worker } => {
                self.threads.remove(&worker);
                self.publisher.now();
                // A thread that ends with its handle still here has died without a word, or its actor's death is not
                // known yet: its requests are told apart before it is forgotten.
                if self.workers.remove(&worker).is_some() {
                    self.offer_weights(worker, None);
                    self.died(worker, Cause::new("its thread ended"));
                }
                Input::Ended { worker }
            }
        };
        self.inputs.push_back(input);
    }

    /// Model code panicked. Its actor is told to fail, and its handle kept until the supervision event says that it
    /// has, so that the tree shows a crash and not a stop.
    fn panicked(&mut self, worker: WorkerId, cause: Cause, weights: Option<Arc<SharedWeights<C>>>) {
        let Some(handle) = self.workers.remove(&worker) else { return };
        fail_actor(&handle.actor, &cause);
        self.failing.push(handle);
        self.offer_weights(worker, weights);
        self.died(worker, cause);
    }

    pub(super) fn actor_ended(&mut self, actor: &ActorCell, reason: String) {
        let id = actor.get_id();
        self.failing.retain(|handle| handle.actor.get_id() != id);
        if let Some(worker) = self.worker_of(id) {
            // First the weights are taken hold of, then the handle is dropped: its thread may end at once.
            self.offer_weights(worker, None);
            // Its thread may still run; it sees the mark and ends when it can.
            self.workers.remove(&worker);
            self.died(worker, Cause::new(format!("its actor ended: {reason}")));
        }
    }

    fn worker_of(&self, actor: ActorId) -> Option<WorkerId> {
        let handle = self.workers.iter().find(|(_, handle)| handle.actor.get_id() == actor);
        handle.map(|(worker, _)| *worker)
    }

    pub(super) fn died(&mut self, worker: WorkerId, cause: Cause) {
        // First the old run is cut off, then it is seen how far it came: nothing can change in between.
        for job in self.running_jobs(worker) {
            job.end_attempt();
        }
        let fates = self.fates(worker);
        self.publisher.now();
        self.inputs.push_back(Input::Died { worker, cause, fates });
    }

    fn running_jobs(&self, worker: WorkerId) -> Vec<Arc<Job<C>>> {
        let running = self.scheduler.running(worker);
        running.iter().filter_map(|ticket| Some(self.jobs.get(&ticket.request)?.job().clone())).collect()
    }

    fn fates(&self, worker: WorkerId) -> Vec<(RequestId, Fate)> {
        let fate = |job: Arc<Job<C>>| match (job.is_answered(), job.may_run_again()) {
            (true, _) => (job.id, Fate::Answered),
            (false, false) => (job.id, Fate::Emitted),
            (false, true) => (job.id, Fate::Untouched),
        };
        self.running_jobs(worker).into_iter().map(fate).collect()
    }

    /// What will be run again waits until then. A thread that was given up and came back reports too, on requests
    /// that run elsewhere by now: those attempts are none of its business.
    fn end_failed_attempts(&self, worker: WorkerId, outcomes: &[(RequestId, Outcome)]) {
        let failed = |request| {
            outcomes.iter().any(|(of, outcome)| *of == request && matches!(outcome, Outcome::Failed(_)))
        };
        for job in self.running_jobs(worker).iter().filter(|job| failed(job.id)) {
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
