//! Threads that decode images. One that is not done when nobody waits for it any more, because its time is over or its
//! caller is gone, is given up: another takes its place at once, and it ends by itself. Those that were given up are
//! bounded too; beyond that a decoder keeps its place until it ends.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Result};

/// Places of decoders at work, and of as many that were given up.
#[derive(Debug)]
pub(crate) struct Decoders {
    at_work: Arc<Semaphore>,
    given_up: Arc<Semaphore>,
}

/// Place that a thread holds until it ends: one at work, or one among those that were given up.
type Place = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// Wait for a thread. Dropped before the thread has ended, it gives the thread up.
struct Wait {
    place: Place,
    given_up: Arc<Semaphore>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_some()
            && let Ok(other) = Arc::clone(&self.given_up).try_acquire_owned()
        {
            *place = Some(other);
        }
    }
}

impl Decoders {
    /// Creates places for so many decoders at work.
    pub(crate) fn new(count: usize) -> Self {
        Self { at_work: Arc::new(Semaphore::new(count)), given_up: Arc::new(Semaphore::new(count)) }
    }

    /// Runs work on a thread of its own once there is a place for it. Dropping the future gives the thread up.
    ///
    /// # Errors
    /// The work's own; [`Error::InvalidImage`] if it panics; [`Error::Compute`] if there is no thread for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.at_work).acquire_owned().await.map_err(|_| Error::Stopped)?;
        let place: Place = Arc::new(Mutex::new(Some(permit)));
        let wait = Wait { place: Arc::clone(&place), given_up: Arc::clone(&self.given_up) };
        let (sender, receiver) = oneshot::channel();
        let leave = Leave(place);
        let body = move || {
            let result = work();
            // Before the answer, so that whoever has it finds the place free.
            drop(leave);
            // Nobody may wait any more.
            drop(sender.send(result));
        };
        let thread = std::thread::Builder::new().name("image decoder".into()).spawn(body);
        thread.map_err(|error| {
            Error::compute(format!("no thread can be started to decode an image: {error}"))
        })?;
        let failed = |_| Error::InvalidImage { reason: "the decoder failed".to_owned() };
        let result = receiver.await.map_err(failed)?;
        drop(wait);
        result
    }
}

/// Leaves a thread's place at its end, also by a panic.
struct Leave(Place);

impl Drop for Leave {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn decoders_that_are_given_up_are_replaced_and_bounded() {
        let decoders = Decoders::new(1);
        let mut ends = Vec::new();
        for free in [1, 0] {
            let (end, ended) = channel::<()>();
            let (begin, begun) = oneshot::channel();
            let hang = decoders.run(move || {
                begin.send(()).map_err(|()| Error::Stopped)?;
                Ok(ended.recv().is_err())
            });
            tokio::select! {
                result = hang => assert!(!result.unwrap(), "it ended"),
                begun = begun => begun.unwrap(),
            }
            // The first is replaced; the second keeps its place, as one is given up already.
            assert_eq!(decoders.at_work.available_permits(), free);
            assert_eq!(decoders.given_up.available_permits(), 0);
            ends.push(end);
        }
        drop(ends);
        assert_eq!(decoders.run(|| Ok(7)).await.unwrap(), 7);
        let panics = decoders.run(|| -> Result<()> { panic!("planted") }).await;
        assert!(matches!(panics, Err(Error::InvalidImage { .. })), "{panics:?}");
        assert_eq!(decoders.run(|| Ok(7)).await.unwrap(), 7);
        assert_eq!(decoders.at_work.available_permits(), 1);
    }
}
