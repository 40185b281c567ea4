//! Tests of the reaper: where values are dropped, and that destructors which hang keep no others.

use std::sync::mpsc;

use super::*;

type Hang = Box<dyn FnMut() + Send>;

/// Runs code when it is dropped.
struct Last<F: FnMut() + Send + 'static>(F);

impl<F: FnMut() + Send + 'static> Drop for Last<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_destructor_that_hangs_or_panics_keeps_no_other_value() {
    let (open, gate) = mpsc::channel::<()>();
    reap(Last(move || {
        let _ = gate.recv();
    }));
    reap(Last(|| panic!("a destructor panics")));
    let (sender, dropped) = mpsc::channel();
    // Those that come while one hangs bring a further thread once it has hung for long.
    let end = Instant::now() + Duration::from_secs(20);
    while dropped.recv_timeout(PAUSE).is_err() {
        assert!(Instant::now() < end, "no value was dropped");
        let sender = sender.clone();
        reap(Last(move || drop(sender.send(std::thread::current().name().map(str::to_owned)))));
    }
    drop(open);
}

#[test]
fn a_value_of_a_worker_goes_on_the_workers_thread_and_elsewhere_on_the_reapers() {
    for (is_worker, expected) in [(true, "worker"), (false, "destructors")] {
        let (sender, dropped) = mpsc::channel();
        let name = move || drop(sender.send(std::thread::current().name().map(str::to_owned)));
        let value = Reaped::of_a_worker(Last(name));
        let thread = std::thread::Builder::new().name("worker".to_owned());
        let ends = thread.spawn(move || {
            if is_worker {
                this_is_a_workers_thread(());
            }
            drop(value);
        });
        ends.unwrap().join().unwrap();
        assert_eq!(dropped.recv().unwrap().as_deref(), Some(expected));
    }
}

/// A reaper of a test's own, so that no other test's values are in its way.
fn reaper() -> &'static Reaper {
    Box::leak(Box::new(Reaper::new()))
}

#[test]
fn values_right_behind_some_that_hang_are_dropped_with_none_after_them() {
    let reaper = reaper();
    let (open, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    for _ in 1..THREADS {
        let gate = gate.clone();
        reaper.take(Box::new(Last(move || {
            let _ = gate.lock().unwrap().recv();
        })));
    }
    let (sender, dropped) = mpsc::channel();
    reaper.take(Box::new(Last(move || sender.send(()).unwrap())));
    dropped.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(open);
}

thread_local! {
    static HANGS: RefCell<Option<Last<Hang>>> = const { RefCell::new(None) };
}

#[test]
fn threads_that_hang_as_they_end_are_bounded() {
    let reaper = reaper();
    let (open, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let reached = Arc::new(AtomicUsize::new(0));
    for ended in 1..=THREADS {
        let (gate, reached) = (gate.clone(), reached.clone());
        let noted = reached.clone();
        reaper.take(Box::new(Last(move || {
            let (gate, reached) = (gate.clone(), reached.clone());
            let hang: Hang = Box::new(move || {
                reached.fetch_add(1, Ordering::SeqCst);
                let _ = gate.lock().unwrap().recv();
            });
            HANGS.with(|hangs| *hangs.borrow_mut() = Some(Last(hang)));
        })));
        let end = Instant::now() + Duration::from_secs(20);
        while noted.load(Ordering::SeqCst) < ended {
            assert!(Instant::now() < end, "no thread ended");
            std::thread::sleep(PAUSE);
        }
    }
    let (sender, dropped) = mpsc::channel();
    reaper.take(Box::new(Last(move || sender.send(()).unwrap())));
    let (threads, ending) = {
        let state = reaper.lock();
        (state.threads, state.ending)
    };
    assert_eq!((threads, ending), (0, THREADS));
    drop(open);
    dropped.recv_timeout(Duration::from_secs(20)).unwrap();
}

/// Panics when it is dropped, with another of its kind.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Without the hook, whose backtrace can take as long as a destructor that hangs.
            std::panic::resume_unwind(Box::new(Self));
        }
    }
}

#[test]
fn a_panic_whose_value_panics_in_turn_ends_no_thread() {
    let reaper = reaper();
    let (sender, dropped) = mpsc::channel();
    for value in [true, false] {
        let sender = sender.clone();
        let name = move || {
            let _ = sender.send(std::thread::current().id());
        };
        reaper.take(if value { Box::new((Bomb, Last(name))) } else { Box::new(Last(name)) });
    }
    let limit = Duration::from_secs(20);
    assert_eq!(dropped.recv_timeout(limit).unwrap(), dropped.recv_timeout(limit).unwrap());
}

#[test]
fn a_backlog_brings_help_although_no_destructor_hangs() {
    let now = Instant::now();
    let mut state = State { threads: 1, busy: 1, taken_at: Some(now), ..State::NEW };
    assert!(!state.begins_thread(), "nothing waits");
    state.waiting.extend((0..BACKLOG - 1).map(|_| Box::new(()) as Box<dyn Send>));
    assert!(state.begins_thread() && !state.begins_thread(), "one stands by");
    assert!(!state.needs_help(now));
    assert!(state.needs_help(now + PATIENCE * 2));
    state.waiting.push_back(Box::new(()));
    assert!(state.needs_help(now));
}
