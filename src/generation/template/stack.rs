//! Threads with a large stack, on which templates are parsed, compiled, rendered and dropped. minijinja recurses in all
//! four as deep as a template nests, so on an ordinary stack a file of a few kilobytes would abort the process. A
//! thread that does not come to its end in time is given up; it ends by itself when its template does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of the stack. Only what is used of it takes memory; a template of the largest size whose bytes are all prefix
/// operators needs a fifth of it.
const STACK_BYTES: usize = 512 << 20;
/// Longest time for a template to be compiled, and to be rendered.
pub(super) const MAX_TIME: Duration = Duration::from_secs(10);
/// Most threads of the process that were given up and have not ended.
const MAX_GIVEN_UP: usize = 4;

static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

const RUNNING: u8 = 0;
const LEFT: u8 = 1;
const ENDED: u8 = 2;

/// Share of a thread in the count of those that were given up, which it leaves at its end, also by a panic.
struct Presence {
    state: Arc<AtomicU8>,
    given_up: &'static AtomicUsize,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.state.swap(ENDED, Ordering::AcqRel) == LEFT {
            self.given_up.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Runs work on a thread with a large stack and waits for it, at most [`MAX_TIME`].
///
/// # Errors
/// What is wrong with the template, if the work is not done in time or panics, or if no thread can be had for it.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    run_counted(&GIVEN_UP, MAX_TIME, work)
}

fn run_counted<T: Send + 'static>(
    given_up: &'static AtomicUsize,
    longest: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let running = given_up.load(Ordering::Acquire);
    if running >= MAX_GIVEN_UP {
        return Err(format!("has to wait for {running} others that were given up and have not ended"));
    }
    let (sender, receiver) = sync_channel(1);
    let state = Arc::new(AtomicU8::new(RUNNING));
    let presence = Presence { state: Arc::clone(&state), given_up };
    let body = move || {
        let _presence = presence;
        // The caller may have stopped waiting.
        drop(sender.send(work()));
    };
    let thread = Builder::new().name("chat template".into()).stack_size(STACK_BYTES).spawn(body);
    thread.map_err(|error| format!("cannot be given a thread: {error}"))?;
    match receiver.recv_timeout(longest) {
        Ok(done) => Ok(done),
        Err(RecvTimeoutError::Disconnected) => Err("made the template engine fail".to_owned()),
        Err(RecvTimeoutError::Timeout) => {
            if state.swap(LEFT, Ordering::AcqRel) == RUNNING {
                given_up.fetch_add(1, Ordering::AcqRel);
            }
            Err(format!("took longer than {} s", longest.as_secs_f64()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    #[test]
    fn work_that_panics_or_hangs_is_an_error_and_threads_given_up_are_bounded() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        assert_eq!(run_counted(&COUNT, MAX_TIME, || 7).unwrap(), 7);
        let error = run_counted(&COUNT, MAX_TIME, || -> u8 { panic!("planted") }).unwrap_err();
        assert!(error.contains("fail"), "{error}");

        let (ends, mut waits): (Vec<_>, Vec<_>) = (0..=MAX_GIVEN_UP).map(|_| channel::<()>()).unzip();
        let hang = |wait: Receiver<()>| run_counted(&COUNT, Duration::from_millis(1), move || wait.recv());
        for wait in waits.drain(..MAX_GIVEN_UP) {
            assert!(hang(wait).unwrap_err().contains("longer than"));
        }
        let refused = hang(waits.remove(0)).unwrap_err();
        assert!(refused.contains("have not ended"), "{refused}");

        drop(ends);
        while COUNT.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(run_counted(&COUNT, MAX_TIME, || 7).unwrap(), 7);
    }
}
