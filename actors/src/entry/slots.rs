//! The slots of one lane, as a semaphore whose waiters are served by rank: the more urgent first, and of the same
//! urgency the one that came first. A slot that comes back goes to the first waiter, so nobody who comes later takes
//! it before. A waiter that goes away costs none.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{TryAcquireError, oneshot};

/// The lane takes nobody any more.
#[derive(Debug)]
pub(crate) struct Closed;

/// The place of a waiter: its rank, and the order of arrival among equals.
type Place = (i128, u64);

pub(super) struct Slots(Mutex<State>);

struct State {
    free: usize,
    closed: bool,
    /// Whoever waits, which happens only while no slot is free.
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
    next: u64,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self(Mutex::new(State { free: capacity, closed: false, waiting: BTreeMap::new(), next: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half way, so its poison means nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of free slots.
    pub(super) fn free(&self) -> usize {
        self.lock().free
    }

    /// Looks whether a slot could be taken now. Takes none.
    pub(super) fn vacancy(&self) -> Result<(), TryAcquireError> {
        let state = self.lock();
        match state.free {
            _ if state.closed => Err(TryAcquireError::Closed),
            0 => Err(TryAcquireError::NoPermits),
            _ => Ok(()),
        }
    }

    /// Takes a slot if one is free, and returns how many are left.
    pub(super) fn try_take(&self) -> Result<usize, TryAcquireError> {
        let mut state = self.lock();
        if state.closed {
            return Err(TryAcquireError::Closed);
        }
        state.free = state.free.checked_sub(1).ok_or(TryAcquireError::NoPermits)?;
        Ok(state.free)
    }

    /// Waits for a slot and takes it; the smallest rank is served first.
    pub(super) async fn take(&self, rank: i128) -> Result<(), Closed> {
        let (sender, granted) = oneshot::channel();
        let place = {
            let mut state = self.lock();
            if state.closed {
                return Err(Closed);
            }
            if let Some(left) = state.free.checked_sub(1) {
                state.free = left;
                return Ok(());
            }
            state.next += 1;
            let place = (rank, state.next);
            state.waiting.insert(place, sender);
            place
        };
        let mut waiter = Waiter { slots: self, place, granted };
        (&mut waiter.granted).await.map_err(|_| Closed)
    }

    /// Gives a slot back, to the first waiter that is still there.
    pub(super) fn give_back(&self) {
        loop {
            let first = {
                let mut state = self.lock();
                let Some((_, first)) = state.waiting.pop_first() else {
                    state.free += 1;
                    return;
                };
                first
            };
            if first.send(()).is_ok() {
                return;
            }
        }
    }

    /// Refuses everybody who waits or comes later.
    pub(super) fn close(&self) {
        let refused = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        // They are woken after the lock is free.
        drop(refused);
    }
}

/// Somebody who waits for a slot. Gives up its place, or a slot that came too late, when it is dropped.
struct Waiter<'a> {
    slots: &'a Slots,
    place: Place,
    granted: oneshot::Receiver<()>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.slots.lock().waiting.remove(&self.place);
        // First the channel is closed, then looked into, so that no slot is granted in between. One that was
        // received is there no more.
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            self.slots.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_smallest_rank_is_served_first_and_of_equals_the_first() {
        let slots = Slots::new(1);
        assert_eq!(slots.try_take().unwrap(), 0);
        let (mut late, mut early, mut second) =
            (pin!(slots.take(5)), pin!(slots.take(-5)), pin!(slots.take(-5)));
        assert!(poll(late.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        slots.give_back();
        assert_eq!(slots.free(), 0, "it went to a waiter, and nobody can take it in between");
        assert!(poll(late.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_ready());
        slots.give_back();
        assert!(poll(second.as_mut()).is_ready() && poll(late.as_mut()).is_pending());
        slots.close();
        assert!(matches!(poll(late.as_mut()), Poll::Ready(Err(Closed))));
    }

    #[test]
    fn a_waiter_that_goes_away_loses_no_slot_before_or_after_it_got_one() {
        let slots = Slots::new(1);
        slots.try_take().unwrap();
        for granted in [false, true] {
            let mut gone = Box::pin(slots.take(0));
            assert!(poll(gone.as_mut()).is_pending());
            if granted {
                slots.give_back();
                drop(gone);
            } else {
                drop(gone);
                slots.give_back();
            }
            assert_eq!(slots.try_take().unwrap(), 0);
        }
    }
}
