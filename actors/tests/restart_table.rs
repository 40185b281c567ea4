//! Truth table of the restart policy: the cross product of the kinds of failure and the budget that is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::fmt;
use std::time::Duration;
use timeline::{Core, at};

use model_actors::scheduler::{Effect, Fate, Input};
use model_actors::{
    BatchLimits, Cause, Failure, Footprint, PoolConfig, RequestId, RestartConfig, StallLimits, Time, WorkerId,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Sizing,
    Loading,
    LoadingForGood,
    LoadingOutOfMemory,
    LoadingSilently,
    Idle,
    Running,
    RunningAfterOutput,
    RunningSilently,
    IdleSilently,
    EndsWithoutAWord,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    OneRestart,
    None,
}

/// The consequence for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// A new one, once the backoff has passed and not before.
    Restart,
    /// Nothing: nobody wants it any more.
    Nothing,
    /// The breaker opens.
    Breaker,
}

/// The consequence for a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// It waits for the next worker, or runs there.
    Survives,
    /// It is answered with this.
    With(&'static str),
}

impl fmt::Debug for Ends {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Survives => formatter.write_str("Survives"),
            Self::With(reason) => write!(formatter, "With({reason:?})"),
        }
    }
}

use Ends::{Survives, With};
use Fails::*;
use Left::OneRestart;

#[rustfmt::skip]
const TABLE: [(Fails, Left, Then, Ends, Ends); 22] = [
    // fails                left          then             first request             second, behind it
    (Sizing,             OneRestart, Then::Restart, Survives,                 Survives),
    (Sizing,             Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (Loading,            OneRestart, Then::Restart, Survives,                 Survives),
    (Loading,            Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (LoadingForGood,     OneRestart, Then::Nothing, With("spawn_failed"),     With("spawn_failed")),
    (LoadingForGood,     Left::None, Then::Nothing, With("spawn_failed"),     With("spawn_failed")),
    (LoadingOutOfMemory, OneRestart, Then::Restart, Survives,                 Survives),
    (LoadingOutOfMemory, Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (LoadingSilently,    OneRestart, Then::Restart, Survives,                 Survives),
    (LoadingSilently,    Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (Idle,               OneRestart, Then::Restart, Survives,                 Survives),
    (Idle,               Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (Running,            OneRestart, Then::Restart, Survives,                 Survives),
    // The request that ran may be the cause, which a rerun shows; one that cannot be run again is taken for it.
    (Running,            Left::None, Then::Restart, Survives,                 Survives),
    (RunningAfterOutput, OneRestart, Then::Restart, With("worker_crashed"),   Survives),
    (RunningAfterOutput, Left::None, Then::Restart, With("worker_crashed"),   Survives),
    (RunningSilently,    OneRestart, Then::Restart, With("worker_stuck"),     Survives),
    (RunningSilently,    Left::None, Then::Restart, With("worker_stuck"),     Survives),
    (IdleSilently,       OneRestart, Then::Restart, Survives,                 Survives),
    (IdleSilently,       Left::None, Then::Breaker, With("circuit_open"),     With("circuit_open")),
    (EndsWithoutAWord,   OneRestart, Then::Restart, With("worker_crashed"),   Survives),
    (EndsWithoutAWord,   Left::None, Then::Restart, With("worker_crashed"),   Survives),
];

#[test]
fn every_failure_with_and_without_budget() {
    for (fails, left, then, first, second) in TABLE {
        let seen = observe(fails, left);
        assert_eq!(seen, (then, first, second), "{fails:?} with {left:?}");
    }
}

#[test]
fn the_table_is_complete() {
    let kinds = [
        Sizing,
        Loading,
        LoadingForGood,
        LoadingOutOfMemory,
        LoadingSilently,
        Idle,
        Running,
        RunningAfterOutput,
        RunningSilently,
        IdleSilently,
        EndsWithoutAWord,
    ];
    for fails in kinds {
        for left in [OneRestart, Left::None] {
            assert!(TABLE.iter().any(|row| (row.0, row.1) == (fails, left)), "{fails:?} with {left:?}");
        }
    }
}

/// One worker at most, one request a batch, one restart in 1,000 s, so that the second failure is one too many.
fn core() -> Core {
    let restart = RestartConfig::default().with_max_restarts(1).with_window(Duration::from_secs(1000));
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default()
        .with_max_workers(1)
        .with_cold_start_workers(1)
        .with_restart(restart)
        .with_batch(batch);
    let mut core = Core::new(config);
    core.starts_by_hand = true;
    core
}

fn observe(fails: Fails, left: Left) -> (Then, Ends, Ends) {
    let mut core = core();
    core.now = at(1, 0);
    let mut requests: Vec<RequestId> = Vec::new();
    // Idle workers fail with nobody waiting; the requests come right after that.
    let idle = matches!(fails, Idle | IdleSilently);
    if idle {
        core.preload();
    } else {
        requests.extend([core.submit().0, core.submit().0]);
    }
    if left == Left::None {
        let worker = last_worker(&core);
        core.tell(Input::StartFailed { worker, failure: Failure::failed("earlier") });
        core.tell(Input::Ended { worker });
        core.wait_until(core.now + Duration::from_secs(1));
    }
    let starts = core.starts().len();
    fail(&mut core, fails, &requests);
    let failed_at = core.now;
    if idle {
        requests.extend([core.submit().0, core.submit().0]);
    }
    core.wait_until(core.now + Duration::from_secs(5));
    let then = match (core.openings().is_empty(), core.starts().get(starts)) {
        (false, started) => {
            assert_eq!(started, None, "{fails:?}: started behind an open breaker");
            Then::Breaker
        }
        (true, None) => Then::Nothing,
        (true, Some((started, _))) => {
            let wait = started.since(failed_at);
            assert!(wait >= Duration::from_millis(200) && wait <= Duration::from_millis(300), "{wait:?}");
            Then::Restart
        }
    };
    let ends = |request| core.failure_of(request).map_or(Survives, With);
    (then, ends(requests[0]), ends(requests[1]))
}

fn last_worker(core: &Core) -> WorkerId {
    core.starts().last().unwrap().1
}

/// Brings the worker to where it fails, and has it fail.
fn fail(core: &mut Core, fails: Fails, requests: &[RequestId]) {
    let (worker, footprint) = (last_worker(core), Footprint::default());
    let start_failed = |failure| Input::StartFailed { worker, failure };
    if fails == Sizing {
        core.tell(start_failed(Failure::failed("connection reset")));
        return;
    }
    core.tell(Input::Sized { worker, footprint });
    core.tell(Input::RoomGranted { worker });
    match fails {
        Loading => drop(core.tell(start_failed(Failure::failed("read error")))),
        LoadingForGood => drop(core.tell(start_failed(Failure::permanent("no such file")))),
        LoadingOutOfMemory => {
            let effects = core.tell(start_failed(Failure::out_of_memory("allocation failed")));
            assert!(effects.iter().any(|effect| matches!(effect, Effect::Relieve { .. })));
        }
        LoadingSilently => silent_until_given_up(core, StallLimits::default().load),
        _ => {
            core.tell(Input::Started { worker, footprint });
            fail_when_ready(core, fails, worker, requests);
        }
    }
}

fn fail_when_ready(core: &mut Core, fails: Fails, worker: WorkerId, requests: &[RequestId]) {
    let fates = |fate| requests.iter().map(|request| (*request, fate)).collect();
    let cause = Cause::new("killed");
    match fails {
        Idle => drop(core.tell(Input::Died { worker, cause, fates: Vec::new() })),
        IdleSilently => {
            let last_progress = core.now;
            core.wait_until(core.now + Duration::from_secs(1));
            let effects = core.tell(Input::HealthCheck);
            assert!(effects.iter().any(|effect| matches!(effect, Effect::Ping { .. })), "{effects:?}");
            silent_since(core, last_progress, Duration::from_secs(5));
        }
        Running => drop(core.tell(Input::Died { worker, cause, fates: fates(Fate::Untouched) })),
        RunningAfterOutput => drop(core.tell(Input::Died { worker, cause, fates: fates(Fate::Emitted) })),
        RunningSilently => silent_until_given_up(core, StallLimits::default().run),
        EndsWithoutAWord => drop(core.tell(Input::Ended { worker })),
        _ => unreachable!("{fails:?} is a failure to start"),
    }
}

/// Time passes, and the gauge shows no progress from now on.
fn silent_until_given_up(core: &mut Core, limit: Duration) {
    silent_since(core, core.now, limit);
}

fn silent_since(core: &mut Core, last_progress: Time, limit: Duration) {
    core.last_progress = Some(last_progress);
    let given_up =
        |core: &Core| core.log.iter().any(|(_, effect)| matches!(effect, Effect::Quarantine { .. }));
    let end = core.now + limit;
    core.wait_until(core.now + limit.mul_f64(0.99));
    assert!(!given_up(core), "before its stall limit");
    core.wait_until(end);
    assert!(given_up(core), "{:?}", core.log);
    core.last_progress = None;
}
