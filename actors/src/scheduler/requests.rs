//! A request's way through the scheduler: accepted or refused, given to an idle worker in a batch, and at the
//! end of its run answered, split or run again.

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::batching::split;
use super::failures::{Rerun, Rescued};
use super::health::stuck_error;
use super::{Batching, Effect, Fate, ModelState, Outcome, Passage, Phase, Scheduler, Ticket};
use crate::error::{Cause, Error, Failure, FailureKind};
use crate::id::{ModelId, ModelKey, RequestId, Time, WorkerId};
use crate::telemetry::Event;

/// Number of worker deaths after which a request that was running at each, and alone at the last, is not run again.
const POISON_DEATHS: u32 = 2;
/// Pause before a request that ran out of memory is tried once more: idle workers of other models are
/// evicted, which takes a moment.
const RELIEF: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Takes requests that came together: all are queued before any is run, so that whole batches form.
    pub(super) fn submit(&mut self, now: Time, tickets: Vec<(ModelKey, Ticket)>, effects: &mut Vec<Effect>) {
        let mut models: Vec<ModelKey> = Vec::new();
        for (key, ticket) in tickets {
            let request = ticket.request;
            if let Err(error) = self.admit(now, key) {
                effects.push(Effect::Fail { request, error });
            } else if ticket.deadline <= now {
                effects.push(Effect::Expire { request });
            } else if let Some(model) = self.models.get_mut(&key) {
                self.alarm = self.alarm.min(ticket.deadline);
                model.queue.push(ticket, now, model.policy.config.aging);
                if !models.contains(&key) {
                    models.push(key);
                }
            }
        }
        for key in models {
            self.advance(now, key, effects);
        }
    }

    /// Refuses new work for a model that can take none.
    pub(super) fn admit(&mut self, now: Time, key: ModelKey) -> Result<(), Error> {
        if self.shutdown.is_some() {
            return Err(Error::ShuttingDown);
        }
        let Some(model) = self.models.get_mut(&key) else {
            return Err(Error::UnknownModel {
                capability: self.capability.into(),
                model: ModelId::from(format!("number {}", key.0)),
            });
        };
        if model.has_ready_worker() {
            // Whatever keeps others from being started, this one serves.
            return Ok(());
        }
        if model.stuck() > model.policy.config.max_workers {
            return Err(stuck_error(self.capability, model, model.stuck()));
        }
        match model.breaker.pass(now) {
            Passage::Refused { retry_after, cause } => Err(Error::CircuitOpen {
                capability: self.capability.into(),
                model: model.policy.model.clone(),
                retry_after,
                cause,
            }),
            Passage::Free | Passage::Probe => Ok(()),
        }
    }

    pub(super) fn cancel(&mut self, now: Time, key: ModelKey, request: RequestId, effects: &mut Vec<Effect>) {
        // A request that is running is left to its thread, which sees the mark between two steps.
        if self.models.get_mut(&key).is_some_and(|model| model.queue.remove(request)) {
            effects.push(Effect::Forget { request });
            self.advance(now, key, effects);
        }
    }

    /// Answers what is out of time. A request that is running keeps its seat until its thread sees the mark,
    /// and one that has made a first output has met its deadline.
    pub(super) fn expire(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let queued = model.queue.take_expired(now);
        effects.extend(queued.into_iter().map(|request| Effect::Expire { request }));
        let running = model.workers.iter_mut().flat_map(super::Worker::running_mut);
        for ticket in running.filter(|ticket| ticket.next_limit().is_some_and(|limit| limit <= now)) {
            if !std::mem::replace(&mut ticket.expired, true) {
                effects.push(Effect::ExpireRunning { request: ticket.request });
            }
            if ticket.ends_at <= now {
                ticket.ended = true;
                effects.push(Effect::EndRunning { request: ticket.request });
            }
        }
    }

    /// Does what follows from any change of a model: idle workers get work or go, missing workers are started.
    pub(super) fn advance(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        self.settle_suspicion(now, key, effects);
        self.dispatch(now, key, effects);
        self.retire(now, key, effects);
        self.staff(now, key, effects);
        self.note_idle(key);
    }

    /// Gives waiting requests to idle workers, evenly, and to running ones that take them in between steps.
    fn dispatch(&mut self, now: Time, key: ModelKey, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        if model.unload.is_some() {
            return;
        }
        while model.queue.is_ready(now)
            && !model.is_probing()
            && let Some(index) = model.workers.iter().position(super::Worker::is_idle)
        {
            let (probing, ready) = (model.breaker.is_half_open(), model.queue.ready(now));
            let share = model.batches.even_share(probing, ready, model.idle());
            let mut formed = model.queue.form(share, None, now);
            effects.extend(formed.expired.into_iter().map(|request| Effect::Expire { request }));
            if probing {
                // What would run again together was so before the breaker opened.
                let others = formed.batch.split_off(formed.batch.len().min(1));
                model.queue.push_rerun(others);
            }
            run(model, index, formed.batch, now, effects);
        }
        if model.policy.batching == Batching::Continuous {
            join_running(model, now, effects);
        }
        if model.in_flight() > 0 {
            let stalls_at = now + model.policy.config.stall.run;
            self.wake_at(stalls_at);
        }
    }

    pub(super) fn finished(
        &mut self,
        now: Time,
        worker: WorkerId,
        outcomes: Vec<(RequestId, Outcome)>,
        effects: &mut Vec<Effect>,
    ) {
        let capability = self.capability;
        let Some((key, model)) = self.owner(worker) else { return };
        let id = model.policy.model.clone();
        let Some(entry) = model.worker(worker) else { return };
        let Phase::Busy { running } = &mut entry.phase else { return };
        let mut failed: Vec<(Ticket, Failure)> = Vec::new();
        let mut answered = false;
        let mut cleared = Vec::new();
        let was_alone = outcomes.len() == 1;
        // Those that ran are in the order of their outcomes, so that each is found at once.
        let mut ran = std::mem::take(running).into_iter().peekable();
        for (request, outcome) in outcomes {
            while let Some(other) = ran.next_if(|ticket| ticket.request != request) {
                running.push(other);
            }
            let Some(ticket) = ran.next().or_else(|| take_out(running, request)) else { continue };
            match outcome {
                Outcome::Answered => {
                    answered = true;
                    cleared.extend(Some(ticket).filter(|ticket| ticket.suspect_of.is_some()));
                    effects.push(Effect::Forget { request });
                }
                Outcome::GivenUp => effects.push(Effect::Forget { request }),
                Outcome::FailedAfterOutput(failure) => {
                    effects.push(Effect::Fail { request, error: failure.into_error(capability, &id) });
                }
                // Answered already, unless a first output had met the deadline by then.
                Outcome::Failed(failure) if ticket.expired => {
                    let error = failure.of_one_that_is_waited_for().into_error(capability, &id);
                    effects.push(Effect::Fail { request, error });
                }
                Outcome::Failed(failure) => failed.push((ticket, failure)),
            }
        }
        running.extend(ran);
        entry.progress_at = now;
        if running.is_empty() {
            entry.phase = Phase::Idle { since: now, pinged_at: None };
        }
        model.active_at = now;
        cleared.iter().for_each(|ticket| model.clear(ticket));
        if answered {
            self.probe_succeeded(key, effects);
        }
        self.rerun_failed(now, (key, worker), (failed, was_alone), effects);
        self.advance(now, key, effects);
    }

    /// Reruns requests that failed: a batch of many is split in two; the last one of a batch whose others have
    /// ended by then runs by itself; one that ran alone has failed for good, unless it ran out of memory the
    /// first time.
    fn rerun_failed(
        &mut self,
        now: Time,
        (key, worker): (ModelKey, WorkerId),
        (mut failed, was_alone): (Vec<(Ticket, Failure)>, bool),
        effects: &mut Vec<Effect>,
    ) {
        failed.retain(|(ticket, _)| {
            let late = ticket.deadline <= now;
            if late {
                effects.push(Effect::Expire { request: ticket.request });
            }
            !late
        });
        let Some((_, failure)) = failed.last() else { return };
        if let Some(deadline) = failed.iter().map(|(ticket, _)| ticket.deadline).min() {
            self.wake_at(deadline);
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        let (id, kind) = (model.policy.model.clone(), failure.kind);
        let (capability, cause) = (self.capability, failure.cause.clone());
        if kind == FailureKind::OutOfMemory {
            let (model, requests, cause) = (id.clone(), failed.len(), cause.clone());
            effects.push(Effect::Emit(Event::OutOfMemory {
                capability,
                key,
                model,
                worker,
                requests,
                cause,
            }));
        }
        let rerun = |requests| {
            let model = id.clone();
            Effect::Emit(Event::RequestsRerun {
                capability,
                key,
                model,
                worker,
                requests,
                cause: cause.clone(),
            })
        };
        if failed.len() > 1 {
            effects.push(rerun(failed.iter().map(|(ticket, _)| ticket.request).collect()));
            if kind == FailureKind::OutOfMemory
                && let Some(requests) =
                    model.batches.ran_out_of_memory(failed.iter_mut().map(|(ticket, _)| ticket))
            {
                let model = id.clone();
                effects.push(Effect::Emit(Event::BatchShrunk { capability, key, model, requests }));
            }
            for part in split(failed.into_iter().map(|(ticket, _)| ticket).collect()) {
                model.queue.push_rerun(part);
            }
            return;
        }
        for (mut ticket, failure) in failed {
            let retry_at = now + RELIEF;
            if !was_alone {
                ticket.alone = true;
                effects.push(rerun(vec![ticket.request]));
                model.queue.push_rerun(vec![ticket]);
            } else if kind == FailureKind::OutOfMemory && !ticket.starved && retry_at < ticket.deadline {
                ticket.starved = true;
                effects.push(rerun(vec![ticket.request]));
                effects.push(Effect::Relieve { device: model.policy.device.clone() });
                model.queue.push_rerun_from(retry_at, vec![ticket]);
                self.alarm = self.alarm.min(retry_at);
            } else {
                if kind == FailureKind::OutOfMemory {
                    model.batches.ran_out_of_memory_alone(&ticket);
                }
                let error = failure.of_one_that_is_waited_for().into_error(self.capability, &id);
                effects.push(Effect::Fail { request: ticket.request, error });
            }
        }
    }

    /// Answers or reruns the requests that a dead worker was running: those that may be rerun are, as `rerun`
    /// says the first time and then each alone, so that the one that kills is found. Those that its model had not had yet
    /// wait as they did before.
    /// `suspect_of` is the number of the failure that they are suspects of, if they are not of an earlier one.
    pub(super) fn rescue(
        &mut self,
        now: Time,
        (key, worker): (ModelKey, WorkerId),
        (tickets, suspect_of): (Vec<Ticket>, Option<u64>),
        (fates, error, rerun): (&[(RequestId, Fate)], &Error, Rerun),
        effects: &mut Vec<Effect>,
    ) -> Rescued {
        let capability = self.capability;
        let (mut requests, mut together, mut unbegun) = (Vec::new(), Vec::new(), Vec::new());
        let fates: FxHashMap<RequestId, Fate> = fates.iter().copied().collect();
        let fate_of = |request| fates.get(&request).copied().unwrap_or(Fate::Untouched);
        let suspects = tickets.iter().filter(|ticket| fate_of(ticket.request).is_suspect()).count();
        let ran = tickets.iter().filter(|ticket| fate_of(ticket.request).has_run()).count();
        let was_alone = suspects == 1;
        for mut ticket in tickets {
            self.wake_at(ticket.deadline);
            let Some(model) = self.models.get_mut(&key) else { return Rescued::default() };
            let request = ticket.request;
            let fate = fate_of(request);
            if fate.has_run() {
                ticket.deaths += 1;
                ticket.suspect_of = ticket.suspect_of.or(suspect_of);
            }
            let is_poison = was_alone && ticket.deaths >= POISON_DEATHS;
            match fate {
                Fate::Answered | Fate::GivenUp | Fate::Unwanted => effects.push(Effect::Forget { request }),
                Fate::Untouched | Fate::Unbegun if ticket.expired => effects.push(Effect::Forget { request }),
                Fate::Emitted => effects.push(Effect::Fail { request, error: error.clone() }),
                Fate::Untouched if is_poison => {
                    let (model, deaths) = (model.policy.model.clone(), ticket.deaths);
                    let error = Error::Poison {
                        capability: capability.into(),
                        model: model.clone(),
                        deaths,
                        cause: Cause::of(error),
                    };
                    let found = Event::PoisonFound { capability, key, model, request, error: error.clone() };
                    effects.extend([Effect::Emit(found), Effect::Fail { request, error }]);
                }
                Fate::Untouched | Fate::Unbegun if ticket.deadline <= now => {
                    effects.push(Effect::Expire { request });
                }
                Fate::Unbegun => unbegun.push(ticket),
                Fate::Untouched => {
                    requests.push(request);
                    if rerun == Rerun::Together && ticket.deaths == 1 {
                        together.push(ticket);
                    } else {
                        ticket.alone = true;
                        model.queue.push_rerun(vec![ticket]);
                    }
                }
            }
        }
        if let [only] = together.as_mut_slice() {
            only.alone = true;
        }
        let reruns = requests.len();
        requests.extend(unbegun.iter().map(|ticket| ticket.request));
        if let Some(model) = self.models.get_mut(&key).filter(|_| !requests.is_empty()) {
            model.queue.push_rerun(together);
            model.queue.push_rerun(unbegun);
            let (model, cause) = (model.policy.model.clone(), Cause::of(error));
            effects.push(Effect::Emit(Event::RequestsRerun {
                capability,
                key,
                model,
                worker,
                requests,
                cause,
            }));
        }
        Rescued { ran, suspects, reruns }
    }
}

fn take_out(running: &mut Vec<Ticket>, request: RequestId) -> Option<Ticket> {
    let index = running.iter().position(|ticket| ticket.request == request)?;
    Some(running.remove(index))
}

fn run(model: &mut ModelState, index: usize, batch: Vec<Ticket>, now: Time, effects: &mut Vec<Effect>) {
    if batch.is_empty() {
        return;
    }
    model.active_at = now;
    let worker = &mut model.workers[index];
    let requests = batch.iter().map(|ticket| ticket.request).collect();
    effects.push(Effect::Run { worker: worker.id, requests });
    match &mut worker.phase {
        // That more joins it is no progress of its own.
        Phase::Busy { running } => running.extend(batch),
        phase => {
            *phase = Phase::Busy { running: batch };
            worker.progress_at = now;
        }
    }
}

/// Fills the free seats of running workers, until nobody can join any more: who joins one may have kept
/// others from another.
fn join_running(model: &mut ModelState, now: Time, effects: &mut Vec<Effect>) {
    let mut before = usize::MAX;
    while model.queue.len() < before && !model.queue.is_empty() {
        before = model.queue.len();
        join_each(model, now, effects);
    }
}

fn join_each(model: &mut ModelState, now: Time, effects: &mut Vec<Effect>) {
    let probing = model.breaker.is_half_open();
    for index in 0..model.workers.len() {
        if model.queue.has_reruns(now) {
            return;
        }
        let Some((key, free)) = model.batches.seats(probing, model.workers[index].running()) else {
            continue;
        };
        let formed = model.queue.form(free, Some(key), now);
        effects.extend(formed.expired.into_iter().map(|request| Effect::Expire { request }));
        run(model, index, formed.batch, now, effects);
    }
}
