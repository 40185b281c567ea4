//! The way into a pool's mailbox, which stays the same when the pool is started again.

use std::sync::{PoisonError, RwLock};

use ractor::ActorRef;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::capability::Capability;
use crate::error::{Error, Result};
use crate::id::{ModelId, ModelKey, RequestId};
use crate::pool::PoolMessage;

/// Most calls of `preload`, `unload` and `pin` under way in one pool: they hold no slot, so this bounds the mailbox.
const CALLS: usize = 64;

/// What a pool's clients send through.
pub(crate) struct PoolGate<C: Capability> {
    actor: RwLock<State<C>>,
    calls: Semaphore,
}

enum State<C: Capability> {
    // ## Down <=> Up => Closed
    /// It has not started, or failed and is not back yet.
    Down,
    /// It takes messages.
    Up(ActorRef<PoolMessage<C>>),
    /// The system shuts down.
    Closed,
}

impl<C: Capability> PoolGate<C> {
    pub(crate) fn new() -> Self {
        Self { actor: RwLock::new(State::Down), calls: Semaphore::new(CALLS) }
    }

    pub(crate) fn up(&self, actor: ActorRef<PoolMessage<C>>) {
        self.set(State::Up(actor));
    }

    pub(crate) fn down(&self) {
        self.set(State::Down);
    }

    /// New requests get `ShuttingDown`; what was accepted is cancelled as before.
    pub(crate) fn close(&self) {
        self.set(State::Closed);
    }

    fn set(&self, new: State<C>) {
        // Assignments alone happen under this lock, so its poison means nothing.
        let mut state = self.actor.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Closed) {
            *state = new;
        }
    }

    pub(crate) fn send(&self, model: &ModelId, message: PoolMessage<C>) -> Result<()> {
        match &*self.actor.read().unwrap_or_else(PoisonError::into_inner) {
            State::Up(actor) => {
                actor.send_message(message).map_err(|_| Error::SendError { model: model.clone() })
            }
            State::Down => Err(Error::NoWorkers { model: model.clone() }),
            State::Closed => Err(Error::ShuttingDown),
        }
    }

    /// Tells the pool that a caller has gone. A pool that is gone holds no request of it.
    pub(crate) fn cancel(&self, key: ModelKey, request: RequestId) {
        if let State::Up(actor) = &*self.actor.read().unwrap_or_else(PoisonError::into_inner) {
            let _ = actor.send_message(PoolMessage::Cancel { key, request });
        }
    }

    pub(crate) async fn call_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.calls.acquire().await.ok()
    }
}
