//! The reaper: the thread on which values of users' types are dropped when no worker's thread does it, so that a
//! destructor that takes its time, hangs or panics holds up no actor and no caller. It starts with the first such
//! value and ends when there has been none for a while. A destructor that takes long gets company: up to
//! [`THREADS`] at a time, so that one that hangs keeps no other value. Who owns a value, and when it goes, is decided
//! elsewhere; whoever owns it keeps it as [`Reaped`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::needs_drop;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::Cause;

/// Name of the threads.
pub(crate) const DESTRUCTORS: &str = "destructors";
/// Maximum number of threads, one of which works unless destructors hang or are slow.
const THREADS: usize = 4;
/// Maximum number of values that wait. With all threads hanging in destructors, further values are not dropped at all.
const WAITING: usize = 1 << 16;
/// Time after which a thread that stands by takes the values behind destructors at work.
const PATIENCE: Duration = Duration::from_millis(500);
/// Number of values that wait at which it does so at once.
const BACKLOG: usize = 1 << 10;
/// Stack of a thread in bytes, unless an application wants another.
const USUAL_STACK: usize = 2 << 20;
/// Pause of a thread that stands by between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Time without a value after which a thread ends.
const LINGER: Duration = Duration::from_secs(1);
/// Pause after the last value before the thread goes to sleep, so that it need not be woken for each of many.
const PAUSE: Duration = Duration::from_millis(1);

thread_local! {
    /// The value that goes at the end of this thread. Thread-locals go in the reverse order of their first use.
    static LAST: RefCell<Last> = const { RefCell::new(Last(None)) };
    static DROPS_ON_THE_SPOT: Cell<bool> = const { Cell::new(false) };
}

/// Notes that this thread is a worker's, before it does anything else: what it holds may be dropped on it. Its `place` is
/// left once everything of it is gone, the thread-locals of model code included.
pub(crate) fn this_is_a_workers_thread<T: Send + 'static>(place: T) {
    at_the_end_of_this_thread(Elsewhere(Some(place)));
    DROPS_ON_THE_SPOT.set(true);
}

/// Keeps a value until all other thread-locals of this thread are gone, if this comes before their first use. Its
/// destructor must get by without thread-locals.
pub(crate) fn at_the_end_of_this_thread<T: Send + 'static>(value: T) {
    LAST.with(|last| last.borrow_mut().0 = Some(Box::new(value)));
}

struct Last(Option<Box<dyn Send>>);

impl Drop for Last {
    fn drop(&mut self) {
        // A panic at this place would end the process, and so would one of what it was raised with.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(self.0.take()))) {
            std::mem::forget(panic);
        }
    }
}

/// A value that goes on another thread, one that no destructor of a user's holds up.
struct Elsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        ENDS.take(Box::new(self.0.take()));
    }
}

/// The place where a value is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The reaper's thread, whoever drops it.
    Reaper,
    /// The thread that drops it if that is a worker's, so that the end of the worker tells of its end.
    Worker,
}

/// A value of a user's type, whose destructor runs neither in an actor nor in another's task.
pub(crate) struct Reaped<T: Send + 'static> {
    /// Taken in `drop` alone.
    value: Option<T>,
    place: Place,
    drops: Option<Arc<Drops>>,
}

impl<T: Send + 'static> Reaped<T> {
    /// A value that is dropped on the reaper's thread.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), place: Place::Reaper, drops: None }
    }

    /// As [`Self::new`]; its owner counts it from then on until it is gone.
    pub(crate) fn counted(value: T, drops: Arc<Drops>) -> Self {
        Self { value: Some(value), place: Place::Reaper, drops: Some(drops) }
    }

    /// A value that is dropped by the worker's thread that holds it last; on the reaper's if none does.
    pub(crate) fn of_a_worker(value: T) -> Self {
        Self { value: Some(value), place: Place::Worker, drops: None }
    }
}

impl<T: Send + 'static> Deref for Reaped<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("the value is there until it is dropped"),
        }
    }
}

impl<T: Send + 'static> Drop for Reaped<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take().filter(|_| needs_drop::<T>()) else { return };
        match self.place {
            Place::Worker if DROPS_ON_THE_SPOT.get() => drop_guarded(value),
            // In this order they are dropped.
            Place::Worker | Place::Reaper => reap((value, self.drops.take().map(Drops::begin))),
        }
    }
}

/// A value of a user's type that stays on its thread. It goes quietly: a panic of its destructor is told and goes no
/// further, so that it cannot meet another panic, which would end the process.
pub(crate) struct Guarded<T>(Option<T>);

impl<T> Guarded<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("the value is there until it is dropped"),
        }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.0 {
            Some(value) => value,
            None => unreachable!("the value is there until it is dropped"),
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        drop_guarded(self.0.take());
    }
}

/// Drops a value on the reaper's thread.
pub(crate) fn reap<T: Send + 'static>(value: T) {
    if needs_drop::<T>() {
        REAPER.take(Box::new(value));
    }
}

/// Drops a value here; a panic of its destructor is told and goes no further.
pub(crate) fn drop_guarded<T>(value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // Not within the line, which drops what it is not asked for: a panic in that would end the thread.
        let cause = Cause::of_panic(panic);
        tracing::error!(%cause, "a destructor panicked");
    }
}

/// The message of a panic. What the panic was raised with is of a user's type too, and is dropped on the reaper's thread.
pub(crate) fn cause_of_panic(panic: Box<dyn Any + Send>) -> Cause {
    let cause = Cause::of_payload(&*panic);
    reap(panic);
    cause
}

static REAPER: Reaper = Reaper::new();
/// Drops the places of threads that have ended, and nothing of users.
static ENDS: Reaper = Reaper::new();

struct Reaper {
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    waiting: VecDeque<Box<dyn Send>>,
    threads: usize,
    /// Those of them that are dropping a value.
    busy: usize,
    /// Threads that take no more values and have not ended: destructors of their thread-locals are users' as well.
    ending: usize,
    asleep: usize,
    /// The last moment at which a thread took a value to drop it.
    taken_at: Option<Instant>,
}

impl State {
    const NEW: Self =
        Self { waiting: VecDeque::new(), threads: 0, busy: 0, ending: 0, asleep: 0, taken_at: None };

    /// Returns true, and counts a further thread, if all of them are busy while values wait.
    fn begins_thread(&mut self) -> bool {
        let is_full = self.threads + self.ending >= THREADS;
        let begins = !self.waiting.is_empty() && self.busy == self.threads && !is_full;
        self.threads += usize::from(begins);
        begins
    }

    /// True if those at work do not get through what waits.
    fn needs_help(&self, now: Instant) -> bool {
        let hangs = self.taken_at.is_some_and(|taken_at| now.duration_since(taken_at) > PATIENCE);
        hangs || self.waiting.len() >= BACKLOG
    }
}

impl Reaper {
    const fn new() -> Self {
        Self { state: Mutex::new(State::NEW), arrived: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No value is dropped under this lock, so nothing under it can panic and its poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, value: Box<dyn Send>) {
        let mut state = self.lock();
        if state.waiting.len() >= WAITING {
            drop(state);
            tracing::error!(
                "destructors hang or take too long, and too many values wait: one is not dropped and its memory is lost"
            );
            return std::mem::forget(value);
        }
        state.waiting.push_back(value);
        let (begins, wakes) = (state.begins_thread(), state.asleep > 0);
        drop(state);
        if begins {
            self.start();
        } else if wakes {
            self.arrived.notify_one();
        }
    }

    fn start(&'static self) {
        let start = |thread: Builder| thread.name(DESTRUCTORS.to_owned()).spawn(|| self.serve());
        // Without room for the stack that the application wants, the usual one may do.
        let started = start(Builder::new()).or_else(|_| start(Builder::new().stack_size(USUAL_STACK)));
        if let Err(error) = started {
            // The next value tries again.
            self.lock().threads -= 1;
            tracing::error!(%error, "no thread for destructors could be started");
        }
    }

    fn serve(&'static self) {
        at_the_end_of_this_thread(Ending(self));
        // The parts of a value that is dropped here go with it.
        DROPS_ON_THE_SPOT.set(true);
        self.stand_by();
        while let Some(value) = self.next() {
            drop_guarded(value);
            self.lock().busy -= 1;
        }
    }

    /// Leaves the values that wait to the threads at work, as long as these get through them.
    fn stand_by(&self) {
        let is_needed =
            |state: &State| state.busy == 0 || state.waiting.is_empty() || state.needs_help(Instant::now());
        while !is_needed(&self.lock()) {
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for the next value; `None` if there is none for long.
    fn next(&'static self) -> Option<Box<dyn Send>> {
        if let Some(value) = self.take_next(self.lock()) {
            return Some(value);
        }
        std::thread::sleep(PAUSE);
        let mut state = self.lock();
        let end = Instant::now() + LINGER;
        while state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.threads -= 1;
                state.ending += 1;
                return None;
            }
            state.asleep += 1;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.asleep -= 1;
        }
        self.take_next(state)
    }

    fn take_next(&'static self, mut state: MutexGuard<'_, State>) -> Option<Box<dyn Send>> {
        let value = state.waiting.pop_front()?;
        state.busy += 1;
        state.taken_at = Some(Instant::now());
        // Somebody has to look after those that wait behind it.
        let begins = state.begins_thread();
        drop(state);
        if begins {
            self.start();
        }
        Some(value)
    }
}

/// The end of a thread of the reaper's.
struct Ending(&'static Reaper);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ending -= 1;
        let begins = state.begins_thread();
        drop(state);
        if begins {
            self.0.start();
        }
    }
}

/// The values of one owner whose destructors have been called for and have not returned.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    count: AtomicUsize,
    ended: Notify,
}

impl Drops {
    fn begin(self: Arc<Self>) -> Dropping {
        self.count.fetch_add(1, Ordering::AcqRel);
        Dropping(self)
    }

    pub(crate) fn are_over(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Waits until they have returned.
    pub(crate) async fn over(&self) {
        loop {
            // First it is listened, then looked: an end in between is heard.
            let ended = self.ended.notified();
            if self.are_over() {
                return;
            }
            ended.await;
        }
    }
}

/// Counts a value until it is dropped.
struct Dropping(Arc<Drops>);

impl Drop for Dropping {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
