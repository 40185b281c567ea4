//! A gate at which scripted models wait, shut until the test opens or drops it, so that no thread outlives
//! the test that hung it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<bool>,
    opened: Condvar,
    reached: AtomicBool,
}

/// The test's side. Opens when dropped.
///
/// ```
/// use model_actors::testing::Gate;
/// let gate = Gate::default();
/// let latch = gate.latch();
/// gate.open();
/// assert!(latch.wait(std::time::Duration::ZERO));
/// ```
#[derive(Debug, Default)]
pub struct Gate(Arc<Shared>);

/// The model's side.
///
/// ```
/// use model_actors::testing::{Act, Gate};
/// let gate = Gate::default();
/// let act = Act::Work(gate.latch()); // until the gate opens
/// # drop(act);
/// ```
#[derive(Debug, Clone)]
pub struct Latch(Arc<Shared>);

impl Gate {
    /// The latch at which the model waits.
    pub fn latch(&self) -> Latch {
        Latch(self.0.clone())
    }

    /// A model has come to it.
    pub fn was_reached(&self) -> bool {
        self.0.reached.load(Ordering::SeqCst)
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.opened.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Latch {
    /// Waits until the gate is open, at most so long. True if it is.
    pub fn wait(&self, limit: Duration) -> bool {
        self.0.reached.store(true, Ordering::SeqCst);
        let end = Instant::now() + limit;
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            open = self.0.opened.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
