//! Wakers of callers' tasks. They are code of whatever executor a caller is on, and are called where something has come for
//! the caller: in a pool, in maintenance, on a worker's thread. Futures and streams that callers poll hand their wakers on
//! as [`CallersWaker`], so that one which panics costs nobody else anything. A waker may also poll or drop what it
//! wakes at once, so none is called under a lock that this needs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use crate::reaper::{Guarded, cause_of_panic};

/// The waker by which a caller's task was polled last, in a form that does not panic.
#[derive(Default)]
pub(crate) struct CallersWaker(Option<(Arc<Quiet>, Waker)>);

/// Its destructor is the caller's code as well.
struct Quiet(Guarded<Waker>);

impl Wake for Quiet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        quietly(|| self.0.wake_by_ref());
    }
}

impl CallersWaker {
    /// Waker to be handed on in place of this one.
    pub(crate) fn of(&mut self, waker: &Waker) -> Waker {
        if let Some((known, quiet)) = &self.0
            && known.0.will_wake(waker)
        {
            return quiet.clone();
        }
        let known = Arc::new(Quiet(Guarded::new(waker.clone())));
        let quiet = Waker::from(known.clone());
        self.0 = Some((known, quiet.clone()));
        quiet
    }
}

/// Waits for `work` on behalf of a caller.
pub(crate) async fn for_a_caller<T>(work: impl Future<Output = T>) -> T {
    let (mut work, mut waker) = (pin!(work), CallersWaker::default());
    std::future::poll_fn(|context| work.as_mut().poll(&mut Context::from_waker(&waker.of(context.waker()))))
        .await
}

/// Sends to receivers that callers have in hand, whose wakers are their own: a panic of one is told and goes no further.
pub(crate) fn quietly(send: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(send)) {
        // Not within the line, which drops what it is not asked for.
        let cause = cause_of_panic(panic);
        tracing::error!(%cause, "a caller's waker panicked");
    }
}
