//! The shutdown of a pool: nothing new is taken, what is queued and running has until the deadline, then
//! every remaining caller is answered. A worker that never returns delays nothing.

use super::model_state::Leaving;
use super::workers::fail_waiting;
use super::{Effect, Phase, Scheduler};
use crate::error::Error;
use crate::id::{ModelKey, Time, WorkerId};
use crate::telemetry::EvictionReason;

#[derive(Debug)]
pub(super) struct Shutdown {
    deadline: Time,
    stage: Stage,
    abandoned: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    // ## Finishing => Forced => Drained, or Finishing => Drained
    /// Accepted requests may finish.
    Finishing,
    /// The time ran out: everybody has been answered. Threads that have not ended are reported.
    Forced,
    /// Reported.
    Drained,
}

impl Scheduler {
    pub(super) fn shut_down(&mut self, now: Time, deadline: Time, effects: &mut Vec<Effect>) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(Shutdown { deadline, stage: Stage::Finishing, abandoned: 0 });
        self.wake_at(deadline);
        let keys: Vec<ModelKey> = self.models.keys().copied().collect();
        for key in keys {
            if let Some(model) = self.models.get_mut(&key) {
                let calls = model.preloads.drain(..);
                effects.extend(calls.map(|call| Effect::Return { call, result: Err(Error::ShuttingDown) }));
            }
            self.advance(now, key, effects);
        }
        self.check_shutdown(now, effects);
    }

    /// At the deadline everybody who still waits is answered and every worker let go.
    pub(super) fn check_shutdown(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(shutdown) = &mut self.shutdown else { return };
        if shutdown.stage != Stage::Finishing {
            return;
        }
        if now < shutdown.deadline {
            let deadline = shutdown.deadline;
            self.wake_at(deadline);
            return;
        }
        shutdown.stage = Stage::Forced;
        let keys: Vec<ModelKey> = self.models.keys().copied().collect();
        let abandoned: usize = keys.into_iter().map(|key| self.abandon(now, key, effects)).sum();
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.abandoned = abandoned;
        }
    }

    fn abandon(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) -> usize {
        self.dismiss_starting(now, key, EvictionReason::Shutdown, effects);
        let Some(model) = self.models.get_mut(&key) else { return 0 };
        let mut abandoned = model.queue.len();
        fail_waiting(model, &Error::ShuttingDown, effects);
        let workers: Vec<WorkerId> = model.workers.iter().map(|worker| worker.id).collect();
        for worker in workers {
            let Some(model) = self.models.get_mut(&key) else { return abandoned };
            if let Some(Phase::Busy { running }) = model.worker(worker).map(|entry| entry.phase.clone()) {
                abandoned += running.len();
                effects.extend(
                    running
                        .into_iter()
                        .map(|ticket| Effect::Fail { request: ticket.request, error: Error::ShuttingDown }),
                );
            }
            self.leave(now, key, worker, Leaving::Draining);
            effects.push(Effect::Stop { worker, reason: EvictionReason::Shutdown });
        }
        self.release_weights(now, key, effects);
        let Some(model) = self.models.get_mut(&key) else { return abandoned };
        if let Some(unload) = model.unload.take() {
            let calls = unload.calls.into_iter();
            effects.extend(calls.map(|(call, _)| Effect::Return { call, result: Err(Error::ShuttingDown) }));
        }
        abandoned
    }

    /// Reports the end once: with every thread ended, or at the deadline without them.
    pub(super) fn check_drained(&mut self, effects: &mut Vec<Effect>) {
        let Some(shutdown) = &mut self.shutdown else { return };
        let idle = || self.models.values().all(|model| model.queue.is_empty() && model.workers.is_empty());
        let ended = || {
            let mut leaving = self.models.values().flat_map(|model| &model.leaving);
            leaving.all(|gone| gone.why == Leaving::Stuck)
        };
        let done = match shutdown.stage {
            Stage::Finishing => idle() && ended(),
            Stage::Forced => true,
            Stage::Drained => false,
        };
        if done {
            shutdown.stage = Stage::Drained;
            effects.push(Effect::Drained { abandoned: shutdown.abandoned });
        }
    }
}
