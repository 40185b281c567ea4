//! The intake of a pool, in which requests gather on their way in. A mailbox message for each request costs
//! more than the scheduling of it, so only the first arrival sends one, and the pool takes all that have
//! gathered. The intake is bounded by the slots that its jobs hold, and the mailbox by the intake. It is open
//! while its pool runs; what a pool that ends has not taken is dropped, which tells the callers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capability::Capability;
use crate::catalogue::Registered;
use crate::id::{ModelKey, RequestId};
use crate::job::Accepted;

/// A client's message to its pool about a request.
pub(crate) enum Arrival<C: Capability> {
    /// Here it is; it holds a slot of its model's queue. The model comes along, since it may have been removed from the
    /// catalogue meanwhile.
    Submitted { model: Arc<Registered<C>>, accepted: Accepted<C> },
    /// Its caller has gone.
    Cancelled { key: ModelKey, request: RequestId },
}

/// The reception of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// It is the first since the pool took the others: the pool has to be told.
    First,
    /// The pool has been told already.
    Further,
    /// There is no pool.
    Closed,
}

/// The arrivals that the pool has not taken yet; `None` while no pool runs.
pub(crate) struct Intake<C: Capability>(Mutex<Option<Vec<Arrival<C>>>>);

impl<C: Capability> Default for Intake<C> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<C: Capability> Intake<C> {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Arrival<C>>>> {
        // Only pushes and takes happen under this lock, so its poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived; the next arrival sends a message again.
    pub(crate) fn take(&self) -> Vec<Arrival<C>> {
        match &mut *self.lock() {
            Some(arrivals) => {
                let capacity = arrivals.len();
                std::mem::replace(arrivals, Vec::with_capacity(capacity))
            }
            None => Vec::new(),
        }
    }

    pub(crate) fn push(&self, arrival: Arrival<C>) -> Entrance {
        match &mut *self.lock() {
            Some(arrivals) => {
                arrivals.push(arrival);
                if arrivals.len() == 1 { Entrance::First } else { Entrance::Further }
            }
            None => Entrance::Closed,
        }
    }
}

/// A running pool's hold on its intake. Closes it when dropped, however the pool ends.
pub(crate) struct OpenIntake<C: Capability>(Arc<Intake<C>>);

impl<C: Capability> OpenIntake<C> {
    pub(crate) fn open(intake: Arc<Intake<C>>) -> Self {
        *intake.lock() = Some(Vec::new());
        Self(intake)
    }

    pub(crate) fn take(&self) -> Vec<Arrival<C>> {
        self.0.take()
    }
}

impl<C: Capability> Drop for OpenIntake<C> {
    fn drop(&mut self) {
        let arrivals = self.0.lock().take();
        // Their callers are told after the lock is free.
        drop(arrivals);
    }
}
