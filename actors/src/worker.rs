//! The worker: one loaded model on one OS thread (`worker/thread.rs`), and the actor that stands for it in the
//! supervision tree. The pool, which alone holds its handle, sends orders to the thread and pings to the actor, which
//! answers them at once even while the model runs; the thread reports what it has done to the pool. The actor fails
//! when its thread panics, so that the tree sees the crash; actor and thread both end when the handle is dropped.
//!
//! Orders do not pass through the actor: that would cost every batch a task switch and tell the actor nothing that
//! the thread's gauge does not. Both ways are bounded by what the pool grants: one start, the requests of the
//! worker's seats, one ping at a time.

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
pub(crate) enum WorkerMessage {
    /// How are you?
    Ping,
    /// The thread has panicked.
    Panicked(Cause),
}

crate::impl_message!(WorkerMessage);

pub(crate) struct WorkerArguments<C: Capability> {
    pub(crate) worker: WorkerId,
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
    type Msg = WorkerMessage;
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
    pub(crate) actor: ActorRef<WorkerMessage>,
    /// To the thread. Its end is the thread's end.
    pub(crate) orders: mpsc::Sender<Order<C>>,
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
