//! The gate of a pool: the clients' way to it, which stays the same when the pool is started again. Requests
//! gather in an intake, and only the first of them sends the pool a message. Restarting the pool is left to
//! the system.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ractor::ActorRef;

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::error::{Error, Result};
use crate::id::{ModelId, ModelKey, RequestId};
use crate::intake::{Arrival, Entrance, Intake};
use crate::job::Accepted;
use crate::pool::PoolMessage;

/// Sends requests and calls to a pool, whichever actor it is at the moment.
pub(crate) struct PoolGate<C: Capability> {
    actor: RwLock<State<C>>,
    intake: Arc<Intake<C>>,
}

enum State<C: Capability> {
    // ## (Down <=> Up) => Closed
    /// It has not started, or failed and is not back yet.
    Down,
    /// It takes messages.
    Up(ActorRef<PoolMessage<C>>),
    /// The system shuts down, or has failed. What was accepted before can still be cancelled.
    Closed { actor: Option<ActorRef<PoolMessage<C>>>, error: Error },
}

impl<C: Capability> State<C> {
    fn actor(&self) -> Option<&ActorRef<PoolMessage<C>>> {
        match self {
            Self::Up(actor) => Some(actor),
            Self::Closed { actor, .. } => actor.as_ref(),
            Self::Down => None,
        }
    }
}

impl<C: Capability> PoolGate<C> {
    pub(crate) fn new() -> Self {
        Self { actor: RwLock::new(State::Down), intake: Arc::default() }
    }

    pub(crate) fn up(&self, actor: ActorRef<PoolMessage<C>>) {
        self.set(State::Up(actor));
    }

    pub(crate) fn down(&self) {
        self.set(State::Down);
    }

    pub(crate) fn intake(&self) -> Arc<Intake<C>> {
        self.intake.clone()
    }

    /// Refuses new requests with this error. The first one stays.
    pub(crate) fn close(&self, error: &Error) {
        let actor = self.read().actor().cloned();
        self.set(State::Closed { actor, error: error.clone() });
    }

    /// The error of a caller who comes after the gate was closed, or who was waiting when it was.
    pub(crate) fn closed(&self) -> Error {
        match &*self.read() {
            State::Closed { error, .. } => error.clone(),
            State::Up(_) | State::Down => Error::ShuttingDown,
        }
    }

    fn set(&self, new: State<C>) {
        let mut state = self.write();
        if !matches!(*state, State::Closed { .. }) {
            *state = new;
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<C>> {
        // Assignments alone happen under this lock, so its poison means nothing.
        self.actor.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State<C>> {
        self.actor.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn submit(&self, model: Arc<Registered<C>>, accepted: Accepted<C>) -> Result<()> {
        let id = accepted.job().model().clone();
        #[cfg(feature = "cluster")]
        accepted.job().begin_work();
        let entered =
            self.with_actor(&id, |actor| match self.intake.push(Arrival::Submitted { model, accepted }) {
                Entrance::First => actor.send_message(PoolMessage::Arrivals).is_ok(),
                Entrance::Further => true,
                Entrance::Closed => false,
            })?;
        entered.then_some(()).ok_or(Error::SendError { capability: C::NAME.into(), model: id })
    }

    /// Tells the pool something that concerns no caller who waits. False if there is no pool to tell.
    pub(crate) fn notify(&self, message: PoolMessage<C>) -> bool {
        self.read().actor().is_some_and(|actor| actor.send_message(message).is_ok())
    }

    /// Tells the pool that a caller has gone. A pool that is gone holds no request of it.
    pub(crate) fn cancel(&self, key: ModelKey, request: RequestId) {
        if let Some(actor) = self.read().actor()
            && self.intake.push(Arrival::Cancelled { key, request }) == Entrance::First
        {
            let _ = actor.send_message(PoolMessage::Arrivals);
        }
    }

    pub(crate) fn send(&self, model: &ModelId, message: PoolMessage<C>) -> Result<()> {
        self.with_actor(model, |actor| actor.send_message(message).is_ok())?
            .then_some(())
            .ok_or_else(|| Error::SendError { capability: C::NAME.into(), model: model.clone() })
    }

    fn with_actor<T>(&self, model: &ModelId, send: impl FnOnce(&ActorRef<PoolMessage<C>>) -> T) -> Result<T> {
        match &*self.read() {
            State::Up(actor) => Ok(send(actor)),
            State::Down => Err(Error::NoWorkers { capability: C::NAME.into(), model: model.clone() }),
            State::Closed { error, .. } => Err(error.clone()),
        }
    }
}
