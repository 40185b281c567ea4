//! The measurement of the machine's memory, on a thread of its own. What follows from it is left to budgets and to
//! maintenance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ProcessMemory;
use crate::error::Cause;
use crate::reaper::at_the_end_of_this_thread;

/// Time that a measurement has while the system runs: an actor waits for it.
const MEASUREMENT: Duration = Duration::from_millis(250);
/// Time that the first one has, before there is an actor.
const FIRST_MEASUREMENT: Duration = Duration::from_secs(30);
/// Wait that is none to speak of.
const QUICK: Duration = Duration::from_millis(20);
/// After a longer one nobody waits for so many times as long.
const PAUSE: u32 = 10;
/// Age up to which a measurement stands for those that nobody waits for.
const FRESH: Duration = Duration::from_secs(10);

/// Measures the memory of the process, by the system or by an application's own code. That runs on a thread of its own,
/// one at a time. Actors wait for it while it is quick. One that takes longer is waited for a tenth of the time at most;
/// between that the last one counts, and one that does not return is waited for once.
#[derive(Clone)]
pub(crate) struct MemoryProbe(Arc<Probe>);

struct Probe {
    measure: Box<dyn Fn() -> ProcessMemory + Send + Sync>,
    state: Mutex<Measurement>,
    changed: Condvar,
}

#[derive(Default)]
struct Measurement {
    /// The thread of the last measurement has not ended: its thread-locals may be an application's, too.
    thread: bool,
    under_way: bool,
    /// Somebody has waited in vain for that thread.
    late: bool,
    /// The moment from which somebody may wait again.
    patient_from: Option<Instant>,
    last: Option<(Instant, Result<ProcessMemory, Cause>)>,
}

impl MemoryProbe {
    pub(crate) fn new(measure: impl Fn() -> ProcessMemory + Send + Sync + 'static) -> Self {
        let (measure, state) = (Box::new(measure), Mutex::default());
        Self(Arc::new(Probe { measure, state, changed: Condvar::new() }))
    }

    /// # Errors
    /// The panic of an application's own code, or that it does not return.
    pub(crate) fn measure(&self) -> Result<ProcessMemory, Cause> {
        self.measure_within(MEASUREMENT)
    }

    /// Measures before there is an actor to wait for it.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub(crate) fn measure_first(&self) -> Result<ProcessMemory, Cause> {
        self.measure_within(FIRST_MEASUREMENT)
    }

    /// Whoever comes while a measurement is under way shares it.
    fn measure_within(&self, limit: Duration) -> Result<ProcessMemory, Cause> {
        let (began, mut state) = (Instant::now(), self.0.lock());
        let waits = !state.late && state.patient_from.is_none_or(|from| from <= began);
        if waits {
            state = self.0.wait(state, limit, |state| state.thread && !state.under_way);
        }
        if !state.thread {
            let probe = self.0.clone();
            let thread = std::thread::Builder::new().name("memory probe".to_owned());
            thread.spawn(move || probe.run()).map_err(Cause::from)?;
            (state.thread, state.under_way) = (true, true);
        }
        if waits {
            state = self.0.wait(state, limit, |state| state.under_way);
            let waited = began.elapsed();
            state.patient_from = (waited > QUICK).then(|| began + waited * (1 + PAUSE));
        }
        let fresh = state.last.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        let late = || Err(Cause::new("the measurement of the memory does not return"));
        fresh.map_or_else(late, |(_, measured)| measured.clone())
    }
}

impl Probe {
    fn lock(&self) -> MutexGuard<'_, Measurement> {
        // Assignments alone happen under this lock, so its poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the thread is so; for no longer than the limit, and for this thread never again after that.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, Measurement>,
        limit: Duration,
        is_so: impl Fn(&Measurement) -> bool,
    ) -> MutexGuard<'a, Measurement> {
        let waited = self.changed.wait_timeout_while(state, limit, |state| is_so(state));
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.late = is_so(&state);
        state
    }

    fn run(self: Arc<Self>) {
        at_the_end_of_this_thread(Ending(self.clone()));
        let measured = catch_unwind(AssertUnwindSafe(|| (self.measure)())).map_err(Cause::of_panic);
        let mut state = self.lock();
        (state.under_way, state.last) = (false, Some((Instant::now(), measured)));
        drop(state);
        self.changed.notify_all();
    }
}

/// The end of a measurement's thread.
struct Ending(Arc<Probe>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.thread, state.late) = (false, false);
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::Budget;
    use super::*;
    use crate::id::Bytes;

    #[test]
    fn a_slow_measurement_is_waited_for_a_tenth_of_the_time_and_the_last_one_counts_between() {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (gate, calls) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let probe = MemoryProbe::new(move || {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => std::thread::sleep(QUICK * 10),
                _ => drop(gate.lock().unwrap().recv()),
            }
            ProcessMemory::new(Bytes(100), Bytes(50))
        });
        for reading in 0..20 {
            assert_eq!(probe.measure().unwrap().used, Bytes(50), "{reading}");
        }
        assert!(!probe.0.lock().late, "nobody waited for the second, which goes on");
        assert!(calls.load(Ordering::SeqCst) <= 2);
        drop(open);
    }

    thread_local! {
        static HANGS: RefCell<Option<Hangs>> = const { RefCell::new(None) };
    }

    struct Hangs(std::sync::mpsc::Receiver<()>);

    impl Drop for Hangs {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    #[test]
    fn no_measurement_is_begun_before_the_thread_of_the_last_one_has_ended() {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (gate, calls) = (Mutex::new(Some(gate)), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let probe = MemoryProbe::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = gate.lock().unwrap().take() {
                HANGS.with(|hangs| *hangs.borrow_mut() = Some(Hangs(gate)));
            }
            ProcessMemory::new(Bytes(100), Bytes(50))
        });
        for _ in 0..5 {
            assert_eq!(probe.measure().unwrap().used, Bytes(50));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(open);
        let end = Instant::now() + Duration::from_secs(20);
        while calls.load(Ordering::SeqCst) == 1 {
            assert!(Instant::now() < end, "it does not work again");
            let _ = probe.measure();
        }
    }

    #[test]
    fn a_probe_that_hangs_is_called_once_and_works_again_when_it_returns() {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (gate, calls) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let probe = MemoryProbe::new(move || {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = gate.lock().unwrap().recv();
            }
            ProcessMemory::new(Bytes(100), Bytes(50))
        });
        let budget = Arc::new(Budget::of_the_host(Bytes(80), probe.clone()));
        for _ in 0..3 {
            assert!(probe.measure().is_err());
            assert_eq!(budget.read_for_a_load().free(), Bytes(80), "it is no reason to refuse");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(open);
        let end = Instant::now() + Duration::from_secs(20);
        while probe.measure().is_err() {
            assert!(Instant::now() < end, "it does not work again");
            std::thread::yield_now();
        }
        assert_eq!(budget.read_for_a_load().free(), Bytes(50));
    }
}
