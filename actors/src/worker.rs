//! The worker actor: one loaded model on one OS thread, linked under its pool, which alone holds its handle. The
//! pool sends it orders, which it passes to the thread (`worker/thread.rs`), and pings, which it answers at once even
//! while the model runs. It ends when its handle is dropped, and fails when its thread panics, so that the tree sees
//! the crash. The thread reports what it has done to the pool directly.
//!
//! Its mailbox is bounded by what its pool grants: one start, the requests of its seats, one ping at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef, SupervisionEvent};

use crate::capability::Capability;
use crate::error::Cause;
use crate::id::{Time, WorkerId};
use crate::progress::Gauge;

pub(crate) mod thread;

pub(crate) use thread::{Order, Report, SharedWeights};

/// What the pool, and the worker's own thread, tell it.
pub(crate) enum WorkerMessage<C: Capability> {
    /// For the thread.
    Order(Order<C>),
    /// How are you?
    Ping,
    /// The thread has panicked.
    Panicked(Cause),
}

crate::impl_message!(WorkerMessage<C>);

pub(crate) struct WorkerArguments<C: Capability> {
    pub(crate) worker: WorkerId,
    /// To the thread. Its end is the thread's end.
    pub(crate) orders: mpsc::Sender<Order<C>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) pool: DerivedActorRef<Report<C>>,
}

pub(crate) struct Worker<C>(std::marker::PhantomData<fn() -> C>);

impl<C> Worker<C> {
    pub(crate) fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<C: Capability> Actor for Worker<C> {
    type Msg = WorkerMessage<C>;
    type State = WorkerArguments<C>;
    type Arguments = WorkerArguments<C>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(arguments)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMessage::Order(order) => {
                // A thread that is gone has reported its end; the pool reruns what the order held.
                let _ = state.orders.send(order);
                Ok(())
            }
            WorkerMessage::Ping => {
                answer_ping(state);
                Ok(())
            }
            WorkerMessage::Panicked(cause) => Err(cause.to_string().into()),
        }
    }

    /// A worker has no children; nothing that happens elsewhere ends it.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        _event: SupervisionEvent,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

fn answer_ping<C: Capability>(state: &WorkerArguments<C>) {
    let report = Report::Pong { worker: state.worker, last_progress: state.gauge.last_tick() };
    // A pool that is gone asks no more.
    let _ = state.pool.send_message(report);
}

/// The only handle of a worker, in its pool's state and nowhere else. Dropping it ends the worker.
pub(crate) struct WorkerHandle<C: Capability> {
    pub(crate) actor: ActorRef<WorkerMessage<C>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) abandoned: Arc<AtomicBool>,
}

impl<C: Capability> WorkerHandle<C> {
    /// The last progress that its thread made.
    pub(crate) fn last_progress(&self) -> Time {
        self.gauge.last_tick()
    }
}

impl<C: Capability> Drop for WorkerHandle<C> {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Release);
        self.actor.stop(None);
    }
}
