//! Busy told from stuck. A worker that loads or runs must tick; one that has not for its stall limit is asked, and
//! if it has really made no progress, or does not answer at all, it is given up. An idle one must answer a ping.

use std::time::Duration;

use super::failures::Loss;
use super::model_state::Leaving;
use super::workers::leave;
use super::{Effect, Fate, ModelState, Phase, Scheduler, Worker};
use crate::error::{Cause, Error, Failure, FailureKind};
use crate::id::{ModelKey, RequestId, Time, WorkerId};
use crate::telemetry::Event;

/// A worker's actor never blocks, so a ping that takes this long was lost with it.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl ModelState {
    /// How long a worker may go without progress where it stands.
    fn stall_limit(&self, worker: &Worker) -> Option<Duration> {
        let stall = self.policy.config.stall;
        match worker.phase {
            Phase::Sizing | Phase::Starting { .. } => Some(stall.load),
            Phase::Busy { .. } => Some(stall.run),
            Phase::Reserving { .. } | Phase::Idle { .. } => None,
        }
    }

    /// When the worker's health has to be looked at next.
    pub(super) fn health_due(&self, worker: &Worker) -> Time {
        match (worker.pinged_at, self.stall_limit(worker)) {
            (Some(pinged_at), _) => pinged_at + PING_TIMEOUT,
            (None, Some(limit)) => worker.progress_at + limit,
            (None, None) => Time::NEVER,
        }
    }
}

impl Scheduler {
    /// Asks workers whose last known progress is too old, and gives up those that did not answer.
    pub(super) fn check_health(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get(&key) else { return };
        let due: Vec<(WorkerId, bool)> = model
            .workers
            .iter()
            .filter(|worker| model.health_due(worker) <= now)
            .map(|worker| (worker.id, worker.pinged_at.is_some()))
            .collect();
        for (worker, was_asked) in due {
            match was_asked {
                // Nothing is known of its requests, so none of them may be run again.
                true => self.give_up(now, worker, None, effects),
                false => self.ping(now, worker, effects),
            }
        }
    }

    pub(super) fn health_check(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let idle: Vec<WorkerId> = self
            .models
            .values()
            .flat_map(|model| &model.workers)
            .filter(|worker| worker.is_idle() && worker.pinged_at.is_none())
            .map(|worker| worker.id)
            .collect();
        for worker in idle {
            self.ping(now, worker, effects);
        }
    }

    fn ping(&mut self, now: Time, worker: WorkerId, effects: &mut Vec<Effect>) {
        let Some((_, model)) = self.owner(worker) else { return };
        if let Some(entry) = model.worker(worker) {
            entry.pinged_at = Some(now);
            effects.push(Effect::Ping { worker });
            self.wake_at(now + PING_TIMEOUT);
        }
    }

    pub(super) fn pong(
        &mut self,
        now: Time,
        worker: WorkerId,
        last_progress: Time,
        fates: &[(RequestId, Fate)],
        effects: &mut Vec<Effect>,
    ) {
        let Some((_, model)) = self.owner(worker) else { return };
        let Some(entry) = model.worker(worker) else { return };
        entry.pinged_at = None;
        entry.progress_at = entry.progress_at.max(last_progress);
        let entry = entry.clone();
        if model.stall_limit(&entry).is_some_and(|limit| now.since(entry.progress_at) >= limit) {
            self.give_up(now, worker, Some(fates), effects);
        } else {
            let due = model.health_due(&entry);
            self.wake_at(due);
        }
    }

    /// Quarantine: the worker's thread is left to itself, its bytes stay charged until it ends, its place is free.
    fn give_up(
        &mut self,
        now: Time,
        worker: WorkerId,
        fates: Option<&[(RequestId, Fate)]>,
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let Some(entry) = model.worker(worker).cloned() else { return };
        let (id, stalled) = (model.policy.model.clone(), now.since(entry.progress_at));
        if !entry.is_ready() {
            // A load that stalls fails like any other; its thread is given up besides.
            let cause = Cause::new(format!("no progress for {} ms while loading", stalled.as_millis()));
            effects.push(Effect::Quarantine { worker });
            effects.push(Effect::Emit(Event::WorkerStuck { capability, model: id, worker, stalled }));
            self.start_failed(now, worker, Failure { kind: FailureKind::Failed, cause }, effects);
            if let Some((_, model)) = self.owner(worker) {
                mark_stuck(model, worker);
            }
            return;
        }
        leave(model, worker, Leaving::Stuck);
        effects.push(Effect::Quarantine { worker });
        let error = Error::WorkerStuck { model: id.clone(), worker, stalled };
        effects.push(Effect::Emit(Event::WorkerStuck { capability, model: id, worker, stalled }));
        let running = entry.running().to_vec();
        let all_emitted: Vec<(RequestId, Fate)>;
        let fates = match fates {
            // With several in the batch nobody knows which one hangs, so each gets a run of its own.
            Some(fates) if running.len() > 1 => fates,
            Some(fates) => {
                all_emitted = running
                    .iter()
                    .map(|ticket| (ticket.request, emitted_unless_answered(fates, ticket.request)))
                    .collect();
                &all_emitted
            }
            None => {
                all_emitted = running.iter().map(|ticket| (ticket.request, Fate::Emitted)).collect();
                &all_emitted
            }
        };
        let cause = Cause::new(error.clone());
        self.lose_ready_worker(now, key, Loss { entry, fates, error, cause }, effects);
    }
}

/// The request that hangs alone is answered, not run again to hang another worker.
fn emitted_unless_answered(fates: &[(RequestId, Fate)], request: RequestId) -> Fate {
    match fates.iter().find(|(of, _)| *of == request) {
        Some((_, Fate::Answered)) => Fate::Answered,
        _ => Fate::Emitted,
    }
}

fn mark_stuck(model: &mut ModelState, worker: WorkerId) {
    for entry in &mut model.leaving {
        if entry.worker == worker {
            entry.why = Leaving::Stuck;
        }
    }
}
