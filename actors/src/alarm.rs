//! Timers. An actor's alarm: at most one is pending, it can be set earlier and never later, and it is dropped with
//! its owner. A caller's deadline: it is kept by the system's own runtime, whatever executor the caller is on.

use std::panic::catch_unwind;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use crate::error::Cause;
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

/// Keeps the deadlines of callers on the runtime that the system was started on. A caller may be on another one,
/// or on an executor that is not tokio's and has no timers.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines {
    clock: Clock,
    runtime: Handle,
}

/// The reason why a wait is over without what it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// The deadline came first.
    Deadline,
    /// The system's runtime ended, and with it every actor.
    RuntimeEnded,
}

impl Deadlines {
    /// Deadlines on the runtime that this is called on.
    ///
    /// # Errors
    /// Without a tokio runtime, or with one that has no timers.
    pub(crate) fn on_this_runtime(clock: Clock) -> Result<Self, Cause> {
        let runtime = Handle::try_current().map_err(|error| Cause::of(&error))?;
        // The runtime says so in no other way than by this panic.
        catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).map_err(|panic| {
            let cause = Cause::of_panic(panic);
            Cause::new(format!(
                "the runtime has no timers; build it with enable_time or enable_all ({cause})"
            ))
        })?;
        Ok(Self { clock, runtime })
    }

    /// Waits for `work` until the deadline. What is there at once needs no timer.
    pub(crate) async fn until<T>(&self, deadline: Time, work: impl Future<Output = T>) -> Result<T, Overdue> {
        let (mut work, mut timer) = (pin!(work), None);
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            let timer = timer.get_or_insert_with(|| self.timer(deadline));
            Pin::new(&mut timer.0).poll(context).map(|rang| match rang {
                Ok(()) => Err(Overdue::Deadline),
                Err(_) => Err(Overdue::RuntimeEnded),
            })
        })
        .await
    }

    /// Whether the runtime takes no tasks any more.
    pub(crate) fn runtime_ended(&self) -> bool {
        // A runtime that has ended cancels a task as it is spawned; this one cannot end in another way.
        let task = self.runtime.spawn(std::future::pending::<()>());
        let ended = task.is_finished();
        task.abort();
        ended
    }

    fn timer(&self, at: Time) -> Timer {
        let at = self.clock.instant(at);
        Timer(self.runtime.spawn(async move { tokio::time::sleep_until(at).await }))
    }
}

/// A task that ends at its moment, or when this is dropped.
struct Timer(JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}
