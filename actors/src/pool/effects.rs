//! Carries out the effects of a pool's scheduler: a function for each, none of which decides anything.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ractor::{Actor, ActorRef};

use super::{HeldRoom, PoolMessage, PoolState};
use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::{Cause, Error, Failure};
use crate::id::{Bytes, ModelId, ModelKey, RequestId, WorkerId};
use crate::job::Accepted;
use crate::maintenance::room::RoomAsk;
use crate::maintenance::{MaintenanceMessage, PoolDrained};
use crate::memory::Ledger;
use crate::model::{Footprint, LoadContext};
use crate::progress::Gauge;
use crate::scheduler::{Effect, Holds, Input, Source, Urgency};
use crate::telemetry::Event;
use crate::worker::thread::{Assignment, ThreadArguments, free, start};
use crate::worker::{Order, SharedWeights, Worker, WorkerHandle};

/// Number of waiting requests that the span of a load follows from at most.
const LINKED_REQUESTS: usize = 16;

impl<C: Capability> PoolState<C> {
    /// Carries out any effect but `Spawn`, which alone has to await something, and `ReleaseWeights`.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Run { worker, requests } => self.run(worker, &requests),
            Effect::Forget { request } => {
                self.jobs.remove(&request);
            }
            Effect::Fail { request, error } => self.answer(request, error),
            Effect::Expire { request } => {
                if let Some(accepted) = self.jobs.remove(&request) {
                    let job = accepted.job();
                    // It waits; whatever an earlier attempt made is lost.
                    job.end_attempt();
                    job.answer(Err(job.timeout_error()));
                }
            }
            Effect::ExpireRunning { request } => {
                if let Some(accepted) = self.jobs.get(&request) {
                    accepted.job().expire();
                }
            }
            Effect::EndRunning { request } => {
                if let Some(accepted) = self.jobs.get(&request) {
                    accepted.job().end();
                }
            }
            Effect::Ping { worker } => self.order(worker, Order::Ping),
            Effect::ReadProgress { worker } => self.read_progress(worker),
            Effect::Emit(event) => self.emit(event),
            structural => {
                self.publisher.now();
                self.carry_out_structural(structural);
            }
        }
    }

    /// The effects that change the tree.
    fn carry_out_structural(&mut self, effect: Effect) {
        match effect {
            Effect::Size { worker } => self.order(worker, Order::Size),
            Effect::Reserve { worker, key, bytes, source, urgency } => {
                self.reserve(worker, key, (bytes, source), urgency);
            }
            Effect::CancelReserve { worker } => self.cancel_reserve(worker),
            Effect::Load { worker, .. } => self.load(worker),
            Effect::Stop { worker, .. } => self.stop(worker),
            Effect::Quarantine { worker } => self.quarantine(worker),
            Effect::RetainWeights { key } => {
                let entry = self.weights_entry(key);
                entry.retained = entry.offered.take();
            }
            Effect::Relieve { device } => self.ask_maintenance(MaintenanceMessage::Relieve { device }),
            Effect::Return { call, result } => {
                if let Some(caller) = self.calls.remove(&call) {
                    // A caller that has gone asks no more.
                    let _ = caller.done.send(result);
                }
            }
            Effect::Drained { abandoned } => self.report_drained(abandoned),
            // Carried out elsewhere.
            Effect::Spawn { .. }
            | Effect::ReleaseWeights { .. }
            | Effect::Run { .. }
            | Effect::Forget { .. }
            | Effect::Fail { .. }
            | Effect::Expire { .. }
            | Effect::ExpireRunning { .. }
            | Effect::EndRunning { .. }
            | Effect::Ping { .. }
            | Effect::ReadProgress { .. }
            | Effect::Emit(_) => {}
        }
    }

    fn order(&self, worker: WorkerId, order: Order<C>) {
        if let Some(handle) = self.workers.get(&worker) {
            // A thread that is gone has crashed; the scheduler reruns what the order held.
            let _ = handle.orders.send(order);
        }
    }

    fn run(&mut self, worker: WorkerId, requests: &[RequestId]) {
        let mut assignments: Vec<Assignment<C>> = Vec::with_capacity(requests.len());
        for job in requests.iter().filter_map(|request| self.jobs.get(request)).map(Accepted::job) {
            let attempt = job.begin_attempt();
            if attempt == 1 {
                let waited = self.arguments.clock.now().since(job.parts.began);
                job.parts.entry.metrics().queue_wait.record(waited.as_secs_f64());
                job.parts.span.record("queue_wait_seconds", waited.as_secs_f64());
            }
            // A worker that was given up may have sent something out at the last moment.
            if job.has_sent() {
                let cause = Cause::new("its worker was given up in the middle of the answer");
                job.answer(Err(Error::WorkerCrashed {
                    capability: C::NAME.into(),
                    model: job.model().clone(),
                    worker,
                    cause,
                }));
            }
            assignments.push((job.clone(), attempt));
        }
        self.order(worker, Order::Run(assignments));
    }

    fn emit(&mut self, event: Event) {
        // A breaker, a batch limit, a crash: as much a change of the tree as a worker's start.
        self.publisher.now();
        if let Event::WorkerStuck { worker, .. } = &event {
            self.roster.give_up(*worker);
        }
        self.arguments.events.report(event);
    }

    /// Starts the thread and its actor. The actor's start only takes its arguments, so it is over at once.
    pub(super) async fn spawn(&mut self, myself: &ActorRef<PoolMessage<C>>, worker: WorkerId, key: ModelKey) {
        let Some(model) = self.models.get(&key).cloned() else { return };
        let failure = match self.try_spawn(myself, worker, &model).await {
            Ok(()) => return model.metrics().spawned.increment(1),
            Err(failure) => failure,
        };
        self.inputs.push_back(Input::StartFailed { worker, failure });
        self.inputs.push_back(Input::Ended { worker });
    }

    async fn try_spawn(
        &mut self,
        myself: &ActorRef<PoolMessage<C>>,
        worker: WorkerId,
        model: &Arc<Registered<C>>,
    ) -> Result<(), Failure> {
        let (orders, received) = std::sync::mpsc::channel();
        let gauge = Gauge::new(self.arguments.clock);
        let abandoned = Arc::new(AtomicBool::new(false));
        let pool = myself.get_derived();
        let name = self.arguments.name.as_ref().map(|pool| format!("{pool}/{}{worker}", model.id()));
        let spawned = Worker::spawn_linked(name, Worker::new(), (), myself.get_cell()).await;
        let (actor, _) = spawned.map_err(|error| Failure::failed(error.to_string()))?;
        let handle = WorkerHandle {
            actor: actor.clone(),
            orders,
            gauge: gauge.clone(),
            abandoned: abandoned.clone(),
            thread_ended: false,
        };
        let context = LoadContext {
            model: model.id().clone(),
            capability: C::NAME,
            key: model.key(),
            gauge,
            progress: model.entry.load.clone(),
            abandoned,
            events: self.arguments.events.clone(),
            caches: self.arguments.budgets.get(&model.policy.device).cloned(),
            clock: self.arguments.clock,
        };
        let name = thread_name::<C>(model.id(), worker);
        let arguments =
            ThreadArguments { worker, actor, model: model.clone(), context, orders: received, pool };
        let place = self.roster.enter(worker, name.clone(), model.clone());
        start(&name, place, arguments).map_err(Failure::failed)?;
        self.threads.insert(worker, name);
        self.workers.insert(worker, handle);
        Ok(())
    }

    /// Lets go of weights that were kept. Those that nobody else holds are dropped by a thread of their own.
    pub(super) fn release_weights(&mut self, key: ModelKey, thread: Option<WorkerId>) {
        let entry = self.weights_entry(key);
        entry.offered = None;
        let last = entry.retained.take().and_then(Arc::into_inner);
        let Some(worker) = thread else { return };
        let (Some(weights), Some(model)) = (last, self.models.get(&key).cloned()) else {
            return self.inputs.push_back(Input::Ended { worker });
        };
        let name = self.free_kept(worker, &model, weights);
        self.threads.insert(worker, name);
    }

    /// Has weights dropped by a thread of their own, and returns its name.
    fn free_kept(&self, worker: WorkerId, model: &Arc<Registered<C>>, weights: SharedWeights<C>) -> Arc<str> {
        let name = thread_name::<C>(model.id(), worker);
        let place = self.roster.enter(worker, name.clone(), model.clone());
        let footprint = self.scheduler.model(model.key()).and_then(|model| model.footprint);
        self.roster.charge(worker, Holds::Weights, footprint);
        // Without a thread the weights go to the reaper's, and the end is told all the same.
        if let Err(error) = free(&name, place, weights) {
            let model = model.id();
            tracing::error!(capability = C::NAME, %model, %error, "no thread to drop weights could be started");
        }
        name
    }

    /// Takes room that is free at once; else asks maintenance to make some, if that is wanted.
    fn reserve(
        &mut self,
        worker: WorkerId,
        key: ModelKey,
        (bytes, source): (Bytes, Source),
        urgency: Urgency,
    ) {
        let Some(model) = self.models.get(&key).cloned() else { return };
        let entry = self.weights_entry(key);
        let weights = match source {
            Source::Shared => entry.retained.clone().or_else(|| entry.shared.upgrade()),
            Source::Load => None,
        };
        let (device, now) = (model.policy.device.clone(), self.arguments.clock.now());
        let budget = self.arguments.budgets.get(&device);
        let none = Err(Ledger::new(Bytes::ZERO));
        let (lease, ledger) = match budget.map_or(none, |budget| budget.lease_at_once(now, bytes)) {
            Ok(lease) => (Some(lease), Ledger::new(Bytes::ZERO)),
            Err(ledger) => (None, ledger),
        };
        let found = lease.is_some();
        self.rooms.insert(worker, HeldRoom { lease, weights, ask: None });
        match (found, urgency) {
            (true, _) => self.inputs.push_back(Input::RoomGranted { worker }),
            (false, Urgency::MakeRoom { until }) => {
                let ask = RoomAsk { pool: self.arguments.index, worker };
                let question = move || MaintenanceMessage::Ask {
                    ask,
                    model: key,
                    device: device.clone(),
                    needed: bytes,
                    until,
                };
                self.ask_maintenance(question());
                if let Some(room) = self.rooms.get_mut(&worker) {
                    room.ask = Some(Box::new(question));
                }
            }
            (false, Urgency::IfFree) => {
                let (free, limit) = (ledger.free(), ledger.limit());
                self.inputs.push_back(Input::RoomDenied { worker, needed: bytes, free, limit });
            }
        }
    }

    fn cancel_reserve(&mut self, worker: WorkerId) {
        if let Some(HeldRoom { ask: Some(_), .. }) = self.rooms.remove(&worker) {
            let ask = RoomAsk { pool: self.arguments.index, worker };
            self.ask_maintenance(MaintenanceMessage::Withdraw { ask });
        }
    }

    fn load(&mut self, worker: WorkerId) {
        let Some(room) = self.rooms.remove(&worker) else { return };
        if let Some(lease) = room.lease {
            self.roster.charge(worker, Holds::Worker, self.footprint(worker));
            let causes = self.waiting_spans(worker);
            self.order(worker, Order::Load { lease, weights: room.weights, causes });
        }
    }

    /// The footprint of a worker's model, once known.
    fn footprint(&self, worker: WorkerId) -> Option<Footprint> {
        self.scheduler.model(self.scheduler.model_of(worker)?)?.footprint
    }

    /// The spans of the first requests that wait for the worker's model.
    fn waiting_spans(&self, worker: WorkerId) -> Vec<tracing::Span> {
        let model = self.scheduler.model_of(worker).and_then(|key| self.scheduler.model(key));
        let waiting = model.into_iter().flat_map(|model| model.queue.order()).take(LINKED_REQUESTS);
        waiting.filter_map(|request| Some(self.jobs.get(&request)?.job().parts.span.clone())).collect()
    }

    fn stop(&mut self, worker: WorkerId) {
        self.rooms.remove(&worker);
        self.let_go(worker);
    }

    /// Gives a worker up: its thread keeps what it has until it ends, if ever; its run is cut off from its
    /// callers.
    fn quarantine(&mut self, worker: WorkerId) {
        self.offer_weights(worker, None);
        self.stop(worker);
    }

    fn report_drained(&mut self, abandoned: usize) {
        if let Some(done) = self.drained.take() {
            let _ = done.send(PoolDrained { abandoned });
        }
    }
}

/// The weights that a pool which ends has kept go on threads of their own, so that the next pool knows of them.
impl<C: Capability> Drop for PoolState<C> {
    fn drop(&mut self) {
        for (key, entry) in std::mem::take(&mut self.weights) {
            let kept = entry.retained.and_then(Arc::into_inner);
            if let (Some(weights), Some(model)) = (kept, self.models.get(&key)) {
                self.free_kept(self.roster.next(), model, weights);
            }
        }
    }
}

fn thread_name<C: Capability>(model: &ModelId, worker: WorkerId) -> Arc<str> {
    format!("{}{worker} {}", model.short(), C::NAME).into()
}
