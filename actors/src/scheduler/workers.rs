//! Starts workers, by cold start, scale-up and replacement, takes them from no room to ready, and lets go of
//! them.

use std::time::Duration;

use super::model_state::{Gone, Holds, Leaving};
use super::{Effect, ModelPolicy, ModelState, Passage, Phase, Scheduler, Source, Urgency, Worker};
use crate::error::Error;
use crate::id::{Bytes, ModelKey, Time, WorkerId};
use crate::memory::PressureLevel;
use crate::model::Footprint;
use crate::telemetry::{Event, EvictionReason};

/// Pause before another further worker is tried, after one found no room or could not be started for good.
pub(super) const SCALE_UP_PAUSE: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Starts what is missing: the first worker where one is wanted, then the cold start's, replacements, and
    /// one more while every worker is busy and something waits.
    pub(super) fn staff(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let (capability, shutting_down) = (self.capability, self.shutdown.is_some());
        let Some(model) = self.models.get_mut(&key) else { return };
        let (closed, unloads) =
            ((shutting_down && model.queue.is_empty()) || model.is_over(), model.unload.is_some());
        if model.workers.is_empty() && !model.is_wanted() {
            // Weights may have been kept for a replacement that nobody wants any more.
            self.release_weights(now, key, effects);
        }
        if closed || unloads {
            return;
        }
        if self.models.get(&key).is_some_and(|model| model.workers.is_empty() && model.is_wanted()) {
            self.refuse_if_stuck(now, key, effects);
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        if model.workers.is_empty() && model.is_wanted() && !probe_or_refuse(now, capability, model, effects)
        {
            return self.release_weights(now, key, effects);
        }
        if model.has_ready_worker() && model.breaker.lapse(now) {
            effects.push(Effect::Emit(breaker_closed(capability, model)));
        }
        if model.breaker.is_open() || now < model.restart_at {
            let starts_at = model.breaker.until().unwrap_or(model.restart_at);
            if model.is_wanted() && now < starts_at {
                self.wake_at(starts_at);
            }
            return;
        }
        let probing = model.breaker.is_half_open();
        let config = &model.policy.config;
        if model.workers.is_empty() {
            if model.is_wanted() {
                model.cold_start_goal = if probing { 1 } else { config.initial_workers() };
                let until = now + config.room_wait;
                self.start(now, key, Urgency::MakeRoom { until }, effects);
            }
            return;
        }
        // The others share the first one's weights, so they wait until it has them.
        if probing || !model.has_weights() {
            return;
        }
        let (max, until) = (config.max_workers, now + config.room_wait);
        let starting = model.workers.iter().filter(|worker| !worker.is_ready()).count();
        let replacements =
            model.replacements.saturating_sub(starting).min(max.saturating_sub(model.workers.len()));
        for _ in 0..replacements {
            self.start(now, key, Urgency::MakeRoom { until }, effects);
        }
        self.scale_up(now, key, effects);
    }

    fn scale_up(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let pressure = self.pressure.get(&model.policy.device).copied().unwrap_or_default();
        // A cold start is tried once; whom cooldown or an eviction takes later is not put back by it.
        let goal = std::mem::take(&mut model.cold_start_goal);
        if pressure > PressureLevel::Normal {
            return;
        }
        let all_busy = !model.is_starting() && model.workers.iter().all(|worker| !worker.is_idle());
        let overloaded = all_busy && model.queue.is_ready(now);
        let missing = match goal.saturating_sub(model.workers.len()) {
            0 if overloaded && model.workers.len() < model.policy.config.max_workers => 1,
            missing => missing,
        };
        if missing > 0 && now < model.scale_up_at {
            let scale_up_at = model.scale_up_at;
            self.wake_at(scale_up_at);
            return;
        }
        for _ in 0..missing {
            self.start(now, key, Urgency::IfFree, effects);
        }
    }

    fn start(&mut self, now: Time, key: ModelKey, urgency: Urgency, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get(&key) else { return };
        if !self.may_start(model) {
            // The next thread to end, or to be found stuck, brings us here again.
            return;
        }
        self.next_worker += 1;
        let worker = WorkerId(self.next_worker);
        self.owners.insert(worker, key);
        let Some(model) = self.models.get_mut(&key) else { return };
        let failures = model.restarts.in_window();
        if model.replacements > 0 && failures > 0 {
            let (capability, model) = (self.capability, model.policy.model.clone());
            effects.push(Effect::Emit(Event::WorkerRestarted { capability, key, model, worker, failures }));
        }
        model.workers.push(Worker {
            id: worker,
            phase: Phase::Sizing,
            spawned: false,
            ready_at: now,
            progress_at: now,
        });
        if model.footprint.is_some() {
            reserve(model, worker, urgency, effects);
            return;
        }
        spawn(model, worker, effects);
        effects.push(Effect::Size { worker });
        let stalls_at = now + model.policy.config.stall.load;
        self.wake_at(stalls_at);
    }

    pub(super) fn sized(
        &mut self,
        now: Time,
        worker: WorkerId,
        footprint: Footprint,
        effects: &mut Vec<Effect>,
    ) {
        let Some((_, model)) = self.owner(worker) else { return };
        match model.worker(worker).map(|entry| &entry.phase) {
            Some(Phase::Sizing) => model.footprint.get_or_insert(footprint),
            Some(Phase::Starting { .. }) => return model.footprint = Some(footprint),
            _ => return,
        };
        let until = now + model.policy.config.room_wait;
        reserve(model, worker, Urgency::MakeRoom { until }, effects);
    }

    pub(super) fn room_granted(&mut self, now: Time, worker: WorkerId, effects: &mut Vec<Effect>) {
        let reserving = self.owner(worker).and_then(|(_, model)| {
            let Phase::Reserving { source, .. } = model.worker(worker)?.phase else { return None };
            Some((source, model))
        });
        let Some((source, model)) = reserving else {
            effects.push(Effect::CancelReserve { worker });
            return;
        };
        spawn(model, worker, effects);
        if source == Source::Load {
            model.load_began = now;
        }
        if let Some(entry) = model.worker(worker) {
            entry.phase = Phase::Starting { source };
            entry.progress_at = now;
        }
        effects.push(Effect::Load { worker, source });
        let stalls_at = now + model.policy.config.stall.load;
        self.wake_at(stalls_at);
    }

    pub(super) fn room_denied(
        &mut self,
        now: Time,
        worker: WorkerId,
        [needed, free, limit]: [Bytes; 3],
        effects: &mut Vec<Effect>,
    ) {
        let Some((key, model)) = self.owner(worker) else { return };
        let Some(&Phase::Reserving { urgency, .. }) = model.worker(worker).map(|entry| &entry.phase) else {
            return;
        };
        // Whatever happens to the queue, nothing more is tried until this moment.
        model.cold_start_goal = 0;
        model.scale_up_at = now + SCALE_UP_PAUSE;
        model.replacements = 0;
        // One more worker that only took what was free may have become the only one: then room is made in earnest.
        let given_up = model.workers.len() == 1 && urgency != Urgency::IfFree;
        self.dismiss(now, key, worker, EvictionReason::MakeRoom, effects);
        if given_up && let Some(model) = self.models.get_mut(&key) {
            let (model_id, device) = (model.policy.model.clone(), model.policy.device.clone());
            let error = Error::MemoryExhausted {
                capability: self.capability.into(),
                model: model_id,
                device,
                needed,
                free,
                limit,
            };
            fail_waiting(model, &error, effects);
            self.release_weights(now, key, effects);
        }
        self.advance(now, key, effects);
    }

    pub(super) fn started(
        &mut self,
        now: Time,
        worker: WorkerId,
        footprint: Footprint,
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let Some(Phase::Starting { source }) = model.worker(worker).map(|entry| entry.phase.clone()) else {
            return;
        };
        model.footprint = Some(footprint);
        model.load_starved = false;
        model.replacements = model.replacements.saturating_sub(1);
        if source == Source::Load {
            model.load_time = now.since(model.load_began).max(Duration::from_millis(1));
            model.batches.loaded();
        }
        if let Some(entry) = model.worker(worker) {
            entry.phase = Phase::Idle { since: now, pinged_at: None };
            (entry.ready_at, entry.progress_at) = (now, now);
        }
        self.release_weights(now, key, effects);
        let Some(model) = self.models.get_mut(&key) else { return };
        // A preload asks for no more than a load, so the load was the probe.
        let probed = model.queue.is_empty() && !model.preloads.is_empty();
        answer_preloads(model, effects);
        let model_id = model.policy.model.clone();
        effects.push(Effect::Emit(Event::WorkerStarted { capability, key, model: model_id, worker }));
        if probed {
            self.probe_succeeded(key, effects);
        }
        self.advance(now, key, effects);
    }

    /// A model that came to work again starts with a clean record.
    pub(super) fn probe_succeeded(&mut self, key: ModelKey, effects: &mut Vec<Effect>) {
        if let Some(model) = self.models.get_mut(&key)
            && model.breaker.succeeded()
        {
            model.restarts.reset();
            effects.push(Effect::Emit(breaker_closed(self.capability, model)));
        }
    }

    /// Gives up every start under way.
    pub(super) fn dismiss_starting(
        &mut self,
        now: Time,
        key: ModelKey,
        reason: EvictionReason,
        effects: &mut Vec<Effect>,
    ) {
        let Some(model) = self.models.get(&key) else { return };
        let starting: Vec<WorkerId> =
            model.workers.iter().filter(|worker| !worker.is_ready()).map(|worker| worker.id).collect();
        for worker in starting {
            self.dismiss(now, key, worker, reason, effects);
        }
    }

    /// Gives no number up to this one, which an earlier scheduler of the same pool may have given.
    pub(crate) fn number_after(&mut self, last: WorkerId) {
        self.next_worker = self.next_worker.max(last.0);
    }

    /// Takes over a thread that an earlier scheduler of the same pool left, before any input: what it holds is the
    /// model's until its end is told.
    pub(crate) fn inherit(
        &mut self,
        now: Time,
        (key, policy): (ModelKey, ModelPolicy),
        worker: WorkerId,
        (why, holds, footprint): (Leaving, Holds, Option<Footprint>),
    ) {
        self.declare(key, policy);
        self.owners.insert(worker, key);
        let Some(model) = self.models.get_mut(&key) else { return };
        model.footprint = model.footprint.or(footprint);
        let overdue_at = now + model.policy.config.stall.run.max(model.policy.config.stall.load);
        model.leaving.push(Gone { worker, why, since: now, overdue_at, holds });
        self.wake_at(overdue_at);
    }

    /// Moves a worker from those that count to those whose thread has yet to end.
    pub(super) fn leave(&mut self, now: Time, key: ModelKey, worker: WorkerId, why: Leaving) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let Some(entry) = model.take_worker(worker).filter(|entry| entry.spawned) else { return };
        let stall = model.policy.config.stall;
        let overdue_at = now + if entry.is_ready() { stall.run } else { stall.load };
        let holds = if entry.is_charged() { Holds::Worker } else { Holds::Nothing };
        model.leaving.push(Gone { worker, why, since: now, overdue_at, holds });
        self.wake_at(overdue_at);
    }

    /// Lets go of weights that were kept for a replacement. If no worker holds them, stuck ones included, a thread
    /// drops them, which counts among those that have yet to end: the destructor is not ours.
    pub(super) fn release_weights(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key).filter(|model| model.retained) else { return };
        model.retained = false;
        let mut stuck = model.leaving.iter().filter(|gone| gone.why == Leaving::Stuck);
        if model.has_ready_worker() || stuck.any(|gone| gone.holds == Holds::Worker) {
            return effects.push(Effect::ReleaseWeights { key, thread: None });
        }
        self.next_worker += 1;
        let (worker, overdue_at) = (WorkerId(self.next_worker), now + model.policy.config.stall.run);
        let (why, holds) = (Leaving::Draining, Holds::Weights);
        model.leaving.push(Gone { worker, why, since: now, overdue_at, holds });
        self.owners.insert(worker, key);
        self.wake_at(overdue_at);
        effects.push(Effect::ReleaseWeights { key, thread: Some(worker) });
    }

    /// Lets a worker go that is not running anything, wherever else it stands.
    pub(super) fn dismiss(
        &mut self,
        now: Time,
        key: ModelKey,
        worker: WorkerId,
        reason: EvictionReason,
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some(model) = self.models.get_mut(&key) else { return };
        let Some(entry) = model.worker(worker).cloned() else { return };
        if matches!(entry.phase, Phase::Reserving { .. }) {
            effects.push(Effect::CancelReserve { worker });
        }
        let id = model.policy.model.clone();
        self.leave(now, key, worker, Leaving::Draining);
        if entry.spawned {
            effects.push(Effect::Stop { worker, reason });
        } else {
            self.owners.remove(&worker);
        }
        if entry.is_ready() {
            effects.push(Effect::Emit(Event::WorkerEvicted { capability, key, model: id, worker, reason }));
        }
    }
}

/// Answers everybody who waits for the model.
pub(super) fn fail_waiting(model: &mut ModelState, error: &Error, effects: &mut Vec<Effect>) {
    for ticket in model.queue.take_all() {
        effects.push(Effect::Fail { request: ticket.request, error: error.clone() });
    }
    for call in model.preloads.drain(..) {
        effects.push(Effect::Return { call, result: Err(error.clone()) });
    }
}

/// Answers those who preload the model: it has a worker that is ready.
pub(super) fn answer_preloads(model: &mut ModelState, effects: &mut Vec<Effect>) {
    let calls = model.preloads.drain(..).map(|call| Effect::Return { call, result: Ok(()) });
    effects.extend(calls);
}

/// Returns true if a model without a worker may start one. While its breaker refuses, all who wait are
/// answered.
fn probe_or_refuse(
    now: Time,
    capability: &'static str,
    model: &mut ModelState,
    effects: &mut Vec<Effect>,
) -> bool {
    let Passage::Refused { retry_after, cause } = model.breaker.pass(now) else { return true };
    let error = Error::CircuitOpen {
        capability: capability.into(),
        model: model.policy.model.clone(),
        retry_after,
        cause,
    };
    model.replacements = 0;
    fail_waiting(model, &error, effects);
    false
}

fn breaker_closed(capability: &'static str, model: &ModelState) -> Event {
    Event::BreakerClosed { capability, key: model.key, model: model.policy.model.clone() }
}

fn spawn(model: &mut ModelState, worker: WorkerId, effects: &mut Vec<Effect>) {
    let key = model.key;
    if let Some(entry) = model.worker(worker)
        && !std::mem::replace(&mut entry.spawned, true)
    {
        effects.push(Effect::Spawn { worker, key });
    }
}

fn reserve(model: &mut ModelState, worker: WorkerId, urgency: Urgency, effects: &mut Vec<Effect>) {
    let footprint = model.footprint.unwrap_or_default();
    let (source, bytes) = match model.has_weights() {
        true => (Source::Shared, footprint.per_worker),
        false => (Source::Load, footprint.with_workers(1)),
    };
    let key = model.key;
    if let Some(entry) = model.worker(worker) {
        entry.phase = Phase::Reserving { bytes, source, urgency };
    }
    effects.push(Effect::Reserve { worker, key, bytes, source, urgency });
}
