//! The timer of an actor: at most one is pending, it can be set earlier and never later, and it is dropped
//! with its owner.

use tokio::task::AbortHandle;

use crate::id::Time;
use crate::progress::Clock;

/// Calls back at a moment, unless it is dropped before.
pub(crate) struct Alarm {
    at: Time,
    task: Option<AbortHandle>,
}

impl Alarm {
    pub(crate) fn unset() -> Self {
        Self { at: Time::NEVER, task: None }
    }

    /// Makes sure that `ring` is called at `at` or earlier. An alarm that is set for an earlier moment stays.
    pub(crate) fn set(&mut self, clock: Clock, at: Time, ring: impl FnOnce() + Send + 'static) {
        if at >= self.at {
            return;
        }
        self.cancel();
        self.at = at;
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(clock.instant(at)).await;
            ring();
        });
        self.task = Some(task.abort_handle());
    }

    /// It has rung.
    pub(crate) fn rang(&mut self) {
        *self = Self::unset();
    }

    fn cancel(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.cancel();
    }
}
