//! Threads with a large stack, on which what comes from outside is compiled, run and dropped by libraries that recurse: chat
//! templates, schemas, expressions and grammars. minijinja recurses in all as deep as a template nests, so on an ordinary
//! stack a file of a few kilobytes would abort the process. A thread that does not come to its end in time is given up; it
//! ends by itself when its work does. A template that has such a thread is not run until then; constraints, which come from
//! many callers, are compiled as long as they have places. Each takes few of the process's threads, so that others run.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of the stack. Only what is used of it takes memory; a template of the largest size whose bytes are all prefix
/// operators needs a fifth of it.
const STACK_BYTES: usize = 512 << 20;
/// Longest time for a piece of work: a template to be compiled or rendered, a grammar to be compiled.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(10);
/// Longest wait for a thread while all are taken; most work takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Maximum number of threads of one model for one kind of work, those that were given up included.
const MAX_OWN: usize = 8;
/// Maximum number of threads of the process, those that were given up included.
const MAX_THREADS: usize = 64;

static PROCESS: Places = Places::new(MAX_THREADS);

/// Failure of work on a thread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The work is at fault, or what it is given.
    Work(String),
    /// There is no thread for it at present, which is nobody's fault who asks.
    Busy(String),
}

/// Places for threads.
#[derive(Debug)]
struct Places {
    most: usize,
    counts: Mutex<Counts>,
    left: Condvar,
}

#[derive(Debug)]
struct Counts {
    taken: usize,
    /// Places of threads that were given up, which are among those taken.
    given_up: usize,
}

impl Places {
    const fn new(most: usize) -> Self {
        Self { most, counts: Mutex::new(Counts { taken: 0, given_up: 0 }), left: Condvar::new() }
    }

    /// Takes a place, for which it waits so long. True if there is one.
    fn take(&self, patience: Duration) -> bool {
        let all_taken = |counts: &mut Counts| counts.taken >= self.most;
        let waited = self.left.wait_timeout_while(lock(&self.counts), patience, all_taken);
        let (mut counts, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let free = counts.taken < self.most;
        counts.taken += usize::from(free);
        free
    }

    fn leave(&self, was_given_up: bool) {
        let mut counts = lock(&self.counts);
        counts.taken -= 1;
        counts.given_up -= usize::from(was_given_up);
        drop(counts);
        self.left.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State of a thread, under whose lock it is given up or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    GivenUp,
}

/// A thread's place among those of its kind and one among the process's, left when it is dropped, also by a panic.
struct Place {
    own: Arc<Places>,
    process: &'static Places,
    state: Arc<Mutex<Option<State>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = lock(&self.state).take();
        self.own.leave(state == Some(State::GivenUp));
        self.process.leave(false);
    }
}

/// Threads of one model for one kind of work. A clone shares them.
#[derive(Debug, Clone)]
pub(crate) struct Threads {
    name: &'static str,
    own: Arc<Places>,
    process: &'static Places,
    longest: Duration,
    patience: Duration,
    /// Number of threads that were given up with which no more work is done.
    too_many: usize,
}

impl Threads {
    /// Threads of this name, of which none works while one that was given up does.
    pub(crate) fn new(name: &'static str) -> Self {
        let own = Arc::new(Places::new(MAX_OWN));
        Self { name, own, process: &PROCESS, longest: MAX_TIME, patience: PATIENCE, too_many: 1 }
    }

    /// Threads of this name for work of many callers: those that were given up take places, and no more.
    pub(crate) fn of_many(name: &'static str) -> Self {
        Self { too_many: MAX_OWN, ..Self::new(name) }
    }

    /// Runs work on a thread with a large stack and waits for it, at most [`MAX_TIME`].
    ///
    /// # Errors
    /// The work's own; the same if it panics or is not done in time. [`Failure::Busy`] if
    /// no thread can be had for it.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.place().map_err(Failure::Busy)?;
        let state = Arc::clone(&place.state);
        let (sender, receiver) = sync_channel(1);
        let body = move || {
            let result = work();
            // Before the answer, so that whoever has it finds the place free.
            drop(place);
            // The caller may have stopped waiting.
            drop(sender.send(result));
        };
        let thread = Builder::new().name(self.name.into()).stack_size(STACK_BYTES).spawn(body);
        thread.map_err(|error| Failure::Busy(format!("no thread can be started for it: {error}")))?;
        match receiver.recv_timeout(self.longest) {
            Ok(done) => done.map_err(Failure::Work),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Work("made its engine fail".to_owned())),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(state) = lock(&state).as_mut() {
                    *state = State::GivenUp;
                    lock(&self.own.counts).given_up += 1;
                }
                Err(Failure::Work(format!("took longer than {} s", self.longest.as_secs_f64())))
            }
        }
    }

    fn place(&self) -> Result<Place, String> {
        let given_up = lock(&self.own.counts).given_up;
        if given_up >= self.too_many {
            return Err(format!("{given_up} earlier runs of it took too long and have not ended"));
        }
        if !self.own.take(self.patience) {
            return Err(format!("{} others of it run", self.own.most));
        }
        if !self.process.take(self.patience) {
            self.own.leave(false);
            return Err(format!("{} others run", self.process.most));
        }
        let state = Arc::new(Mutex::new(Some(State::Running)));
        Ok(Place { own: Arc::clone(&self.own), process: self.process, state })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn threads(process: &'static Places, own: usize, longest: Duration) -> Threads {
        let own = Arc::new(Places::new(own));
        let patience = Duration::from_millis(1);
        Threads { name: "test", own, process, longest, patience, too_many: 1 }
    }

    fn hang(threads: &Threads, wait: Receiver<()>) -> Failure {
        threads.run(move || Ok(wait.recv().is_ok())).unwrap_err()
    }

    /// Waits until places are free again.
    fn assert_left(places: &Places) {
        let counts = lock(&places.counts);
        let (counts, waited) =
            places.left.wait_timeout_while(counts, MAX_TIME, |counts| counts.taken > 0).unwrap();
        assert!(!waited.timed_out() && counts.given_up == 0, "{counts:?}");
    }

    #[test]
    fn work_that_panics_or_hangs_is_an_error_of_its_kind_alone() {
        static PLACES: Places = Places::new(3);
        let other = threads(&PLACES, 1, MAX_TIME);
        assert_eq!(other.run(|| Ok(7)), Ok(7));
        let failed = other.run(|| -> Result<u8, String> { panic!("planted") }).unwrap_err();
        assert!(matches!(&failed, Failure::Work(reason) if reason.contains("fail")), "{failed:?}");

        let hostile = threads(&PLACES, 1, Duration::from_millis(1));
        let (end, wait) = channel();
        let late = hang(&hostile, wait);
        assert!(matches!(&late, Failure::Work(reason) if reason.contains("longer than")), "{late:?}");
        let refused = hostile.run(|| Ok(7)).unwrap_err();
        assert!(matches!(&refused, Failure::Busy(reason) if reason.contains("not ended")), "{refused:?}");
        let of_many =
            Threads { own: Arc::new(Places::new(2)), too_many: 2, longest: MAX_TIME, ..hostile.clone() };
        let (other_end, wait) = channel();
        hang(&Threads { longest: Duration::from_millis(1), ..of_many.clone() }, wait);
        assert_eq!(of_many.run(|| Ok(7)), Ok(7));
        drop(other_end);
        assert_eq!(other.run(|| Ok(7)), Ok(7));

        drop(end);
        assert_left(&hostile.own);
        assert_eq!(threads(&PLACES, 1, MAX_TIME).run(|| Ok(7)), Ok(7));
        assert_eq!(Threads { longest: MAX_TIME, ..hostile }.run(|| Ok(7)), Ok(7));
    }

    #[test]
    fn threads_are_bounded_and_a_shortage_is_nobodys_fault() {
        static PLACES: Places = Places::new(2);
        let hung = || {
            let (end, wait) = channel();
            let threads = threads(&PLACES, 1, Duration::from_millis(1));
            assert!(matches!(hang(&threads, wait), Failure::Work(_)));
            end
        };
        let ends = [hung(), hung()];
        let other = threads(&PLACES, 1, MAX_TIME);
        let busy = other.run(|| Ok(7)).unwrap_err();
        assert_eq!(lock(&other.own.counts).taken, 0);
        assert!(matches!(busy, Failure::Busy(_)), "{busy:?}");
        drop(ends);
        assert_left(&PLACES);
        assert_eq!(other.run(|| Ok(7)), Ok(7));
    }

    #[test]
    fn one_kind_of_work_takes_no_more_than_its_threads() {
        static PLACES: Places = Places::new(3);
        let threads = threads(&PLACES, 2, MAX_TIME);
        let (ends, waits): (Vec<_>, Vec<_>) = [(); 2].map(|()| channel::<()>()).into_iter().unzip();
        std::thread::scope(|scope| {
            let (begin, begun) = channel();
            for wait in waits {
                let (threads, begin) = (&threads, begin.clone());
                scope.spawn(move || {
                    threads.run(move || {
                        begin.send(()).map_err(|error| error.to_string())?;
                        Ok(wait.recv().is_ok())
                    })
                });
            }
            begun.recv().unwrap();
            begun.recv().unwrap();
            let busy = threads.run(|| Ok(7));
            drop(ends);
            assert!(matches!(busy, Err(Failure::Busy(_))), "{busy:?}");
        });
        assert_left(&PLACES);
    }
}
