//! Where requests gather on their way into a pool. A mailbox message for each request costs more than the scheduling
//! of it, so only the first arrival sends one, and the pool takes all that have gathered. The intake is bounded by
//! the slots that its jobs hold, and the mailbox by the intake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::id::{ModelKey, RequestId};
use crate::job::Accepted;

/// What a client tells its pool about a request.
pub(crate) enum Arrival<C: Capability> {
    /// Here it is; it holds a slot of its model's queue.
    Submitted { model: Arc<Registered<C>>, accepted: Accepted<C> },
    /// Its caller has gone.
    Cancelled { key: ModelKey, request: RequestId },
}

/// The arrivals that the pool has not taken yet.
pub(crate) struct Intake<C: Capability>(Mutex<Vec<Arrival<C>>>);

impl<C: Capability> Default for Intake<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Capability> Intake<C> {
    fn lock(&self) -> MutexGuard<'_, Vec<Arrival<C>>> {
        // Only pushes and takes happen under this lock, so its poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived; the next arrival sends a message again.
    pub(crate) fn take(&self) -> Vec<Arrival<C>> {
        let mut arrivals = self.lock();
        let capacity = arrivals.len();
        std::mem::replace(&mut arrivals, Vec::with_capacity(capacity))
    }

    /// True if it was empty, so that the pool has to be told.
    pub(crate) fn push(&self, arrival: Arrival<C>) -> bool {
        let mut arrivals = self.lock();
        arrivals.push(arrival);
        arrivals.len() == 1
    }
}
