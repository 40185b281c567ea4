//! Tells busy workers from stuck ones. A worker that loads or runs must tick its gauge within the stall
//! limit, an idle one soon after a ping; one that has not is given up. Idle workers are pinged at each health
//! check because a thread that hangs between two runs has no request whose stall would show it. Workers that
//! have ended are not found here: supervision tells of those. A worker that was told to go, or died, and whose
//! thread has not ended within the stall limit is stuck too: it may hang in a destructor.

use std::time::Duration;

use super::failures::{Loss, Rerun};
use super::model_state::Leaving;
use super::workers::fail_waiting;
use super::{Effect, Fate, ModelState, Phase, Scheduler, Worker};
use crate::error::{Cause, Error, Failure, FailureKind};
use crate::id::{ModelKey, RequestId, Time, WorkerId};
use crate::telemetry::Event;

/// Limit on the time in which an idle thread, which has nothing else to do, answers a ping.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Number of threads beyond `max_workers` at which no further one is started, so that what waits already gets past
/// those that hang, while new requests are refused.
const SPARE_THREADS: usize = 1;

impl ModelState {
    /// Returns when the worker's gauge has to be read next; a worker with nothing to do has no need to tick.
    pub(super) fn health_due(&self, worker: &Worker) -> Time {
        let stall = self.policy.config.stall;
        match worker.phase {
            Phase::Sizing | Phase::Starting { .. } => worker.progress_at + stall.load,
            Phase::Busy { .. } => worker.progress_at + stall.run,
            Phase::Idle { pinged_at: Some(pinged_at), .. } => pinged_at + PING_LIMIT,
            Phase::Idle { pinged_at: None, .. } | Phase::Reserving { .. } => Time::NEVER,
        }
    }
}

impl Scheduler {
    /// Reads the gauges of workers whose last known progress is too old.
    pub(super) fn check_health(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get(&key) else { return };
        let due = model.workers.iter().filter(|worker| model.health_due(worker) <= now);
        effects.extend(due.map(|worker| Effect::ReadProgress { worker: worker.id }));
    }

    /// Finds the threads that should have ended and have not: nobody may count on their bytes any more.
    pub(super) fn check_leaving(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let capability = self.capability;
        let Some(model) = self.models.get_mut(&key) else { return };
        let ending = model.leaving.iter_mut().filter(|gone| gone.why != Leaving::Stuck);
        for gone in ending.filter(|gone| gone.overdue_at <= now) {
            gone.why = Leaving::Stuck;
            let (id, worker, stalled) = (model.policy.model.clone(), gone.worker, now.since(gone.since));
            effects.push(Effect::Emit(Event::WorkerStuck { capability, key, model: id, worker, stalled }));
        }
    }

    /// Answers everybody who waits for a model that may start no worker for its stuck threads.
    pub(super) fn refuse_if_stuck(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let capability = self.capability;
        let Some(model) = self.models.get(&key) else { return };
        let stuck = model.stuck() + self.namesakes(model).map(ModelState::stuck).sum::<usize>();
        if stuck <= model.policy.config.max_workers + SPARE_THREADS {
            return;
        }
        let error = stuck_error(capability, model, stuck);
        if let Some(model) = self.models.get_mut(&key) {
            model.replacements = 0;
            fail_waiting(model, &error, effects);
        }
        self.release_weights(now, key, effects);
    }

    /// Returns true if a further thread may be started. Threads that have yet to end count, as they may hang, and
    /// nothing ends those.
    pub(super) fn may_start(&self, model: &ModelState) -> bool {
        let max = model.policy.config.max_workers;
        let ending: usize = self.namesakes(model).map(|other| other.leaving.len()).sum();
        let working: usize = self.namesakes(model).map(ModelState::threads).sum();
        // One predecessor may finish what it has beside this model; a row of them may not.
        let others = ending + working.saturating_sub(max);
        model.workers.len() + model.leaving.len() + others <= max + SPARE_THREADS
    }

    /// The models of this one's name that were removed or replaced.
    fn namesakes<'a>(&'a self, model: &'a ModelState) -> impl Iterator<Item = &'a ModelState> {
        let others = self.models.values().filter(|other| other.removed && other.key != model.key);
        others.filter(|other| other.policy.model == model.policy.model)
    }

    /// Pings every idle worker that has no ping to answer.
    pub(super) fn health_check(&mut self, now: Time, effects: &mut Vec<Effect>) {
        for model in self.models.values_mut() {
            for worker in &mut model.workers {
                if let Phase::Idle { pinged_at: pinged_at @ None, .. } = &mut worker.phase {
                    *pinged_at = Some(now);
                    worker.progress_at = now;
                    effects.push(Effect::Ping { worker: worker.id });
                    self.alarm = self.alarm.min(now + PING_LIMIT);
                }
            }
        }
    }

    /// Takes a reading of a worker's gauge, and gives the worker up if it shows no progress within the stall
    /// limit.
    pub(super) fn progress_read(
        &mut self,
        now: Time,
        worker: WorkerId,
        last_progress: Time,
        fates: &[(RequestId, Fate)],
        effects: &mut Vec<Effect>,
    ) {
        let Some((_, model)) = self.owner(worker) else { return };
        let Some(entry) = model.worker(worker) else { return };
        entry.progress_at = entry.progress_at.max(last_progress);
        if let Phase::Idle { pinged_at, .. } = &mut entry.phase {
            pinged_at.take_if(|pinged_at| *pinged_at <= last_progress);
        }
        let entry = entry.clone();
        let due = model.health_due(&entry);
        match due <= now {
            true => self.give_up(now, worker, fates, effects),
            false => self.wake_at(due),
        }
    }

    /// Quarantines a worker: its thread is left to itself, its bytes stay charged until it ends, its place is
    /// free.
    fn give_up(
        &mut self,
        now: Time,
        worker: WorkerId,
        fates: &[(RequestId, Fate)],
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
            effects.push(Effect::Emit(Event::WorkerStuck { capability, key, model: id, worker, stalled }));
            let failure = Failure { kind: FailureKind::Failed, cause };
            self.lose_start(now, worker, (failure, Leaving::Stuck), effects);
            return;
        }
        self.leave(now, key, worker, Leaving::Stuck);
        effects.push(Effect::Quarantine { worker });
        let error =
            Error::WorkerStuck { capability: self.capability.into(), model: id.clone(), worker, stalled };
        effects.push(Effect::Emit(Event::WorkerStuck { capability, key, model: id, worker, stalled }));
        // With several in the batch nobody knows which one hangs, so each gets a run of its own.
        let fates = match entry.running() {
            [alone] => vec![(alone.request, emitted_unless_answered(fates, alone.request))],
            _ => fates.to_vec(),
        };
        // A further stall would cost a further thread.
        let (cause, rerun) = (Cause::of(&error), Rerun::Alone);
        self.lose_ready_worker(now, key, Loss { entry, fates: &fates, error, cause, rerun }, effects);
    }
}

/// Returns the refusal of a model that has too many stuck threads.
pub(super) fn stuck_error(capability: &'static str, model: &ModelState, stuck: usize) -> Error {
    Error::SpawnFailed {
        capability: capability.into(),
        model: model.policy.model.clone(),
        failure: FailureKind::Failed,
        cause: Cause::new(format!("{stuck} of its threads are stuck and cannot be ended")),
    }
}

/// Has the request that hangs alone answered, so that it is not run again to hang another worker. One that had not begun
/// hangs nothing.
fn emitted_unless_answered(fates: &[(RequestId, Fate)], request: RequestId) -> Fate {
    match fates.iter().find(|(of, _)| *of == request) {
        None | Some((_, Fate::Untouched)) => Fate::Emitted,
        Some((_, fate)) => *fate,
    }
}
