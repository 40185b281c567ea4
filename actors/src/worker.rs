//! The worker of a pool: one loaded model, as one thing in two parts. The thread (`worker/thread.rs`) is the
//! only place where model code runs; the actor stands for it in the supervision tree and does nothing but
//! end.
//!
//! The worker's mailbox is its thread's channel of [`Order`]s. Only the pool holds the sender, in the
//! [`WorkerHandle`], so the channel is bounded by what the pool grants: one start, the requests of the
//! worker's seats, and one ping. Orders do not pass through the actor, which would cost each batch a task
//! switch. The actor's own mailbox takes nothing but a [`Crash`]: one from the thread at most and one from
//! the pool.
//!
//! Each event takes one way:
//!
//! | event | way |
//! |---|---|
//! | an order to start, run or answer a ping | pool to thread, as an [`Order`] |
//! | the outcome of an order; the end of the thread, its memory given back | thread to pool, as a [`Report`] |
//! | progress, the answer to a ping included | thread to [`Gauge`], which the pool reads |
//! | a crash: a panic, a kill or a stop of the actor, a thread that ends untold | actor ends, supervision tells the pool |
//! | the end of a worker that is not wanted any more | pool drops the handle; actor and thread end |
//!
//! So the supervision event alone decides about a crash, and a worker that is killed or stopped, by whomever,
//! is replaced as one that panicked.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::capability::Capability;
use crate::error::Cause;
use crate::id::Time;
use crate::progress::Gauge;

pub(crate) mod thread;

pub(crate) use thread::{Order, Report, SharedWeights};

/// Cause of a worker's unexpected end: the one message that its actor takes, and the error that it fails with.
pub(crate) struct Crash<C: Capability> {
    pub(crate) cause: Cause,
    /// The weights that a thread which panicked holds on to for the replacement.
    pub(crate) weights: Option<Arc<SharedWeights<C>>>,
}

crate::impl_message!(Crash<C>);

impl<C: Capability> Crash<C> {
    pub(crate) fn new(cause: impl Into<String>) -> Self {
        Self { cause: Cause::new(cause.into()), weights: None }
    }

    /// Reads the end of an actor from a supervision event; other events have none.
    pub(crate) fn of(event: SupervisionEvent) -> Option<(ActorId, Self)> {
        match event {
            SupervisionEvent::ActorFailed(actor, error) => {
                let crash = match error.downcast::<Self>() {
                    Ok(crash) => *crash,
                    Err(error) => Self::new(format!("its actor failed: {error}")),
                };
                Some((actor.get_id(), crash))
            }
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                let reason = reason.as_deref().unwrap_or("stopped");
                Some((actor.get_id(), Self::new(format!("its actor ended: {reason}"))))
            }
            _ => None,
        }
    }
}

impl<C: Capability> fmt::Debug for Crash<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Crash").field("cause", &self.cause).finish_non_exhaustive()
    }
}

impl<C: Capability> fmt::Display for Crash<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(formatter)
    }
}

impl<C: Capability> std::error::Error for Crash<C> {}

/// The actor of a worker.
pub(crate) struct Worker<C>(PhantomData<fn() -> C>);

impl<C> Worker<C> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<C: Capability> Actor for Worker<C> {
    type Msg = Crash<C>;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        _arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        crash: Self::Msg,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Err(Box::new(crash))
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

/// The only handle of a worker, in its pool's state and nowhere else. Dropping it ends the worker.
pub(crate) struct WorkerHandle<C: Capability> {
    pub(crate) actor: ActorRef<Crash<C>>,
    /// The worker's mailbox. The thread ends once this is dropped.
    pub(crate) orders: mpsc::Sender<Order<C>>,
    pub(crate) gauge: Arc<Gauge>,
    /// Tells a load under way to give up.
    pub(crate) abandoned: Arc<AtomicBool>,
    /// The thread has ended untold; the crash of the actor is on its way.
    pub(crate) thread_ended: bool,
}

impl<C: Capability> WorkerHandle<C> {
    /// The last progress that the thread made.
    pub(crate) fn last_progress(&self) -> Time {
        self.gauge.last_tick()
    }

    /// Has the actor fail, so that supervision tells of the crash.
    pub(crate) fn fail(&self, crash: Crash<C>) {
        // An actor that is gone is known to supervision already.
        let _ = self.actor.send_message(crash);
    }
}

impl<C: Capability> Drop for WorkerHandle<C> {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Release);
        self.actor.stop(None);
    }
}
