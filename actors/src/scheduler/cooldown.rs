//! Lets go of workers that are not needed: by cooldown when a model has been idle, by eviction when
//! maintenance wants the room, by unload when somebody asks for it, by removal with the last request. A pin
//! protects a model from the first two.

use super::model_state::{Leaving, Unload};
use super::workers::answer_preloads;
use super::{CallId, Effect, ModelState, Scheduler};
use crate::error::Error;
use crate::id::{ModelKey, Time, WorkerId};
use crate::telemetry::EvictionReason;

impl Scheduler {
    /// The moment at which the model's next cooldown is due: one idle time after all its workers fell idle,
    /// and one interval after the last.
    fn cooldown_due(&self, model: &ModelState) -> Option<Time> {
        if model.pinned {
            return None;
        }
        let first = model.idle_since()? + model.policy.config.cooldown_idle;
        Some(model.last_cooldown.map_or(first, |last| first.max(last + self.cooldown_interval)))
    }

    pub(super) fn note_idle(&mut self, key: ModelKey) {
        if let Some(due) = self.models.get(&key).and_then(|model| self.cooldown_due(model)) {
            self.cooldown_alarm = self.cooldown_alarm.min(due);
        }
    }

    pub(super) fn cool_down(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.cooldown_alarm = Time::NEVER;
        let keys: Vec<ModelKey> = self.models.keys().copied().collect();
        for key in keys {
            let Some(model) = self.models.get(&key) else { continue };
            let due = self.cooldown_due(model).is_some_and(|due| due <= now);
            if due && let Some(worker) = model.least_recently_used() {
                self.dismiss(now, key, worker, EvictionReason::Cooldown, effects);
                if let Some(model) = self.models.get_mut(&key) {
                    model.last_cooldown = Some(now);
                }
            }
            self.note_idle(key);
        }
    }

    /// Evicts a worker if it is idle and its model has nothing to do; else that has changed since maintenance
    /// asked.
    pub(super) fn evict(
        &mut self,
        now: Time,
        worker: WorkerId,
        reason: EvictionReason,
        effects: &mut Vec<Effect>,
    ) {
        let Some((key, model)) = self.owner(worker) else { return };
        if model.may_shrink() && model.worker(worker).is_some_and(|entry| entry.is_idle()) {
            self.dismiss(now, key, worker, reason, effects);
            self.advance(now, key, effects);
        }
    }

    pub(super) fn pin(&mut self, now: Time, key: ModelKey, pinned: bool, effects: &mut Vec<Effect>) {
        if let Some(model) = self.models.get_mut(&key) {
            model.pinned = pinned && !model.removed;
            self.advance(now, key, effects);
        }
    }

    pub(super) fn remove(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        if let Some(model) = self.models.get_mut(&key) {
            model.removed = true;
            model.pinned = false;
            self.advance(now, key, effects);
        }
    }

    pub(super) fn preload(&mut self, now: Time, key: ModelKey, call: CallId, effects: &mut Vec<Effect>) {
        if let Err(error) = self.admit(now, key) {
            effects.push(Effect::Return { call, result: Err(error) });
            return;
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        if model.has_ready_worker() && model.unload.is_none() {
            effects.push(Effect::Return { call, result: Ok(()) });
            return;
        }
        model.preloads.push(call);
        self.advance(now, key, effects);
    }

    /// Unloads a model: running batches finish, everything else of it goes at once. Requests that wait are
    /// served by a new start once the bytes are back.
    pub(super) fn unload(
        &mut self,
        now: Time,
        key: ModelKey,
        call: CallId,
        deadline: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(model) = self.models.get_mut(&key) else {
            effects.push(Effect::Return { call, result: Ok(()) });
            return;
        };
        model.unload.get_or_insert(Unload { calls: Vec::new() }).calls.push((call, deadline));
        model.replacements = 0;
        model.cold_start_goal = 0;
        self.wake_at(deadline);
        self.dismiss_starting(now, key, EvictionReason::Unload, effects);
        self.release_weights(now, key, effects);
        self.advance(now, key, effects);
        self.check_unload(now, key, effects);
    }

    /// Forgets a preload or an unload that nobody waits for. A load under way goes on, as that of a request does; an
    /// unload ends with its last caller.
    pub(super) fn caller_gone(&mut self, now: Time, key: ModelKey, call: CallId, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        model.preloads.retain(|waiting| *waiting != call);
        if let Some(unload) = &mut model.unload {
            unload.calls.retain(|(waiting, _)| *waiting != call);
            self.check_unload(now, key, effects);
        }
        self.advance(now, key, effects);
    }

    /// Sends idle workers away from a model that is being unloaded, or that has nothing left to do after its removal or
    /// at shutdown.
    pub(super) fn retire(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let shutting_down = self.shutdown.is_some();
        let Some(model) = self.models.get_mut(&key) else { return };
        let reason = match &model.unload {
            Some(_) => EvictionReason::Unload,
            None if shutting_down && model.queue.is_empty() => EvictionReason::Shutdown,
            None if model.is_over() => EvictionReason::Removed,
            None => return,
        };
        if reason != EvictionReason::Unload {
            model.replacements = 0;
            self.dismiss_starting(now, key, reason, effects);
            self.release_weights(now, key, effects);
        }
        let Some(model) = self.models.get(&key) else { return };
        let idle: Vec<WorkerId> =
            model.workers.iter().filter(|worker| worker.is_idle()).map(|worker| worker.id).collect();
        for worker in idle {
            self.dismiss(now, key, worker, reason, effects);
        }
        if reason == EvictionReason::Unload {
            self.check_unload(now, key, effects);
        }
    }

    /// Answers those who wait for an unload once the last thread has ended, or when their time is up with
    /// what is left and why.
    pub(super) fn check_unload(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let Some(unload) = &mut model.unload else { return };
        let ending = model.leaving.iter().filter(|gone| gone.why != Leaving::Stuck).count();
        let (running, calls) = (model.workers.len(), std::mem::take(&mut unload.calls));
        let (waiting, due): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|(_, deadline)| running + ending > 0 && now < *deadline);
        unload.calls = waiting;
        let goes_on = !unload.calls.is_empty();
        let stuck = model.stuck();
        let result = match running + ending + stuck {
            0 => Ok(()),
            _ => Err(Error::UnloadIncomplete {
                capability: self.capability.into(),
                model: model.policy.model.clone(),
                remaining: model.bytes(),
                reason: format!("{running} workers are running, {ending} are ending and {stuck} are stuck"),
            }),
        };
        effects.extend(due.into_iter().map(|(call, _)| Effect::Return { call, result: result.clone() }));
        if goes_on {
            return;
        }
        model.unload = None;
        if model.has_ready_worker() {
            // It was not unloaded in time, so whoever asked for it meanwhile has it.
            answer_preloads(model, effects);
        }
        self.advance(now, key, effects);
    }
}
