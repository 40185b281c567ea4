//! Losing workers: starts that fail, crashes, the backoff that follows, and the breaker that ends a series of
//! them.
//!
//! A start that would fail the same way again (a missing directory, an architecture that is not supported) is
//! no such series: it answers everybody who waits with its cause, and neither spends the restart budget nor
//! opens the breaker. The next request tries the load afresh, so that a model serves as soon as its files are
//! right; one load at a time is tried, whatever the number of callers. While another worker serves, nobody is
//! answered with it, and no further worker is tried for a moment.
//!
//! A death counts against the model once none of the requests that ran can be its cause: each was answered by its run, or
//! is when it is run again. One that the model had not had yet is none of them: it was given to a worker that was gone. One that cannot be run again is never cleared: part of its answer is out, its time ran out,
//! its caller has gone, or it is poison. While a request is under suspicion, further deaths may be its doing and are excused. The breaker stops starts,
//! not workers: those that serve go on.

use super::model_state::{Holds, Leaving, Suspicion};
use super::workers::{SCALE_UP_PAUSE, fail_waiting};
use super::{Batching, Effect, Fate, Phase, Scheduler, Source, Verdict, Worker};
use crate::error::{Cause, Error, Failure, FailureKind};
use crate::id::{ModelKey, RequestId, Time, WorkerId};
use crate::telemetry::{Event, EvictionReason};

/// The loss of a worker that was ready.
pub(super) struct Loss<'a> {
    /// The worker as it was.
    pub(super) entry: Worker,
    /// The fates of its requests.
    pub(super) fates: &'a [(RequestId, Fate)],
    /// The answer to those that cannot be run again.
    pub(super) error: Error,
    /// The reason that the breaker remembers.
    pub(super) cause: Cause,
    /// The way in which requests are run again for the first time.
    pub(super) rerun: Rerun,
}

/// Company of requests that are run again because their worker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rerun {
    /// Each runs alone, as the next loss would tell nothing else.
    Alone,
    /// They run together, as one after another they would take very long. Whoever is there at the next death runs alone.
    Together,
}

/// The requests of a worker that was lost, by number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rescued {
    /// Number of those that its model had.
    pub(super) ran: usize,
    /// Number of those of them that ran on until it died, and may have killed it.
    pub(super) suspects: usize,
    /// Number of these that are run again.
    pub(super) reruns: usize,
}

/// True of a failed start that would fail the same way again.
pub(crate) fn is_permanent(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Permanent | FailureKind::InvalidInput)
}

impl Scheduler {
    pub(super) fn start_failed(
        &mut self,
        now: Time,
        worker: WorkerId,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        self.lose_start(now, worker, (failure, Leaving::Dead), effects);
    }

    /// Does what all starts that fail have in common; `why` says what becomes of the thread.
    pub(super) fn lose_start(
        &mut self,
        now: Time,
        worker: WorkerId,
        (failure, why): (Failure, Leaving),
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let Some(phase) =
            model.worker(worker).filter(|entry| !entry.is_ready()).map(|entry| entry.phase.clone())
        else {
            return;
        };
        if matches!(phase, Phase::Reserving { .. }) {
            effects.push(Effect::CancelReserve { worker });
        }
        if (phase == Phase::Starting { source: Source::Shared }) {
            // The weights that were kept may be what is wrong, or gone: the next start reads them again.
            self.release_weights(now, key, effects);
        }
        let Some(model) = self.models.get(&key) else { return };
        let id = model.policy.model.clone();
        self.leave(now, key, worker, why);
        let error = Error::SpawnFailed {
            capability: capability.into(),
            model: id.clone(),
            failure: failure.kind,
            cause: failure.cause.clone(),
        };
        effects.push(Effect::Emit(Event::StartFailed {
            capability,
            key,
            model: id,
            worker,
            error: error.clone(),
        }));
        let Some(model) = self.models.get_mut(&key) else { return };
        let permanent = is_permanent(failure.kind);
        // A request that ran out of memory is tried once more, with the room that idle models can give.
        let starved = failure.kind == FailureKind::OutOfMemory;
        let hopeless = permanent || starved && model.load_starved;
        if starved && !hopeless {
            model.load_starved = true;
            effects.push(Effect::Relieve { device: model.policy.device.clone() });
        }
        if hopeless {
            model.load_starved = false;
            model.replacements = 0;
            if !model.has_ready_worker() {
                fail_waiting(model, &error, effects);
            }
        }
        if permanent {
            model.scale_up_at = now + SCALE_UP_PAUSE;
        } else {
            self.count_failure(now, key, failure.cause, effects);
        }
        self.advance(now, key, effects);
    }

    pub(super) fn died(
        &mut self,
        now: Time,
        worker: WorkerId,
        cause: Cause,
        fates: &[(RequestId, Fate)],
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let Some(entry) = model.worker(worker).cloned() else { return };
        if !entry.is_ready() {
            let failure = Failure { kind: FailureKind::Failed, cause };
            self.start_failed(now, worker, failure, effects);
            return;
        }
        let rerun = match model.policy.batching {
            Batching::Continuous => Rerun::Together,
            Batching::PerRun => Rerun::Alone,
        };
        let id = model.policy.model.clone();
        let error = Error::WorkerCrashed {
            capability: capability.into(),
            model: id.clone(),
            worker,
            cause: cause.clone(),
        };
        effects.push(Effect::Emit(Event::WorkerCrashed {
            capability,
            key,
            model: id,
            worker,
            error: error.clone(),
        }));
        self.leave(now, key, worker, Leaving::Dead);
        self.lose_ready_worker(now, key, Loss { entry, fates, error, cause, rerun }, effects);
    }

    /// Does what a crash and a stall have in common: the weights are kept for the replacement, the requests
    /// are rescued, the failure counts.
    pub(super) fn lose_ready_worker(
        &mut self,
        now: Time,
        key: ModelKey,
        loss: Loss<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let replaced = model.unload.is_none();
        if replaced {
            let room = model.policy.config.max_workers.saturating_sub(model.workers.len());
            model.replacements = (model.replacements + 1).min(room);
        }
        // Also what is not replaced has its weights dropped by a thread, and not wherever the last hold on them ends.
        if !model.has_weights() {
            model.retained = true;
            effects.push(Effect::RetainWeights { key });
        }
        if !replaced {
            self.release_weights(now, key, effects);
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        // A request may be the cause. What ran alone is, as far as can be known; of several, those that can be run again
        // show it. While one death is looked into, further ones may have the same cause.
        let looked_into = model.suspicion.is_some();
        let suspect_of = (!looked_into).then(|| model.restarts.total() + 1);
        let running = loss.entry.running().to_vec();
        let mut rescued = Rescued::default();
        if !running.is_empty() {
            model.active_at = now;
            let how = (loss.fates, &loss.error, loss.rerun);
            rescued = self.rescue(now, (key, loss.entry.id), (running, suspect_of), how, effects);
        }
        if rescued.ran == 0 || (rescued.ran > 1 && rescued.suspects == 0 && !looked_into) {
            self.count_failure(now, key, loss.cause, effects);
        } else {
            self.excuse_failure(now, key);
            if let (Some(number), Some(model)) = (suspect_of, self.models.get_mut(&key))
                && rescued.reruns > 0
            {
                let suspects = rescued.suspects;
                model.suspicion = Some(Suspicion { number, suspects, cleared: 0, cause: loss.cause });
            }
        }
        self.advance(now, key, effects);
    }

    /// Counts a death against the model once all requests that were running at it have been answered by other workers.
    pub(super) fn settle_suspicion(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let Some(Suspicion { number, cause, .. }) = model.settle_suspicion() else { return };
        if model.restarts.count(number, &model.policy.config.restart) {
            self.open_breaker(now, key, cause, effects);
        }
    }

    /// Counts a failure: either the next start is put off by the backoff, or the breaker opens.
    fn count_failure(&mut self, now: Time, key: ModelKey, cause: Cause, effects: &mut Vec<Effect>) {
        let jitter = self.random.f64();
        let Some(model) = self.models.get_mut(&key) else { return };
        let verdict = model.restarts.failed(&model.policy.config.restart, now, jitter);
        match verdict {
            _ if !model.breaker.is_closed() => self.open_breaker(now, key, cause, effects),
            Verdict::GiveUp => self.open_breaker(now, key, cause, effects),
            Verdict::RestartAfter(backoff) => {
                model.restart_at = model.restart_at.max(now + backoff);
                let restart_at = model.restart_at;
                self.wake_at(restart_at);
            }
        }
    }

    /// Puts the next start off by the backoff, and leaves the budget as it is.
    fn excuse_failure(&mut self, now: Time, key: ModelKey) {
        let jitter = self.random.f64();
        let Some(model) = self.models.get_mut(&key) else { return };
        let backoff = model.restarts.excused(&model.policy.config.restart, now, jitter);
        model.restart_at = model.restart_at.max(now + backoff);
        let restart_at = model.restart_at;
        self.wake_at(restart_at);
    }

    /// Starts no worker for a while. Where none is left that serves, everybody who waits is answered.
    fn open_breaker(&mut self, now: Time, key: ModelKey, cause: Cause, effects: &mut Vec<Effect>) {
        let capability = self.capability;
        let Some(model) = self.models.get_mut(&key) else { return };
        let retry_after = model.policy.config.restart.breaker_open;
        model.breaker.open(now + retry_after, cause.clone());
        model.replacements = 0;
        model.cold_start_goal = 0;
        model.restart_at = now;
        let id = model.policy.model.clone();
        let error =
            Error::CircuitOpen { capability: self.capability.into(), model: id.clone(), retry_after, cause };
        effects.push(Effect::Emit(Event::BreakerOpened {
            capability,
            key,
            model: id,
            retry_after,
            error: error.clone(),
        }));
        if !model.has_ready_worker() {
            fail_waiting(model, &error, effects);
        }
        self.dismiss_starting(now, key, EvictionReason::Unload, effects);
        self.release_weights(now, key, effects);
    }

    pub(super) fn ended(&mut self, now: Time, worker: WorkerId, effects: &mut Vec<Effect>) {
        let Some((_, model)) = self.owner(worker) else { return };
        if model.worker(worker).is_some() {
            // The shell tells of the crash first. If it should not, nothing is known of the requests, so none of
            // them may be run again.
            let running = model.worker(worker).map(|entry| entry.running().to_vec()).unwrap_or_default();
            let fates: Vec<(RequestId, Fate)> =
                running.iter().map(|ticket| (ticket.request, Fate::Emitted)).collect();
            self.died(now, worker, Cause::new("its thread ended"), &fates, effects);
        }
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let held = model.leaving.iter().find(|gone| gone.worker == worker).copied();
        model.leaving.retain(|gone| gone.worker != worker);
        if held.is_none_or(|gone| gone.holds != Holds::Weights) {
            let id = model.policy.model.clone();
            effects.push(Effect::Emit(Event::WorkerEnded { capability, key, model: id, worker }));
        }
        let (name, removed) = (model.policy.model.clone(), model.removed);
        self.owners.remove(&worker);
        self.check_unload(now, key, effects);
        self.advance(now, key, effects);
        if removed {
            // Those that replaced it may have waited for this thread, and may have been replaced meanwhile.
            let named = self.models.values().filter(|other| other.key != key && other.policy.model == name);
            let successors: Vec<ModelKey> = named.map(|other| other.key).collect();
            successors.into_iter().for_each(|successor| self.advance(now, successor, effects));
        }
    }
}
