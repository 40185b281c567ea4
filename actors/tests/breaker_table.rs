//! The breaker of a model: its states against everything that can happen to it, and the probe that decides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::time::Duration;
use timeline::{Core, KEY, at};

use model_actors::scheduler::{Breaker, CallId, Effect, Input, Outcome, Passage};
use model_actors::{BatchLimits, Cause, Event, Failure, PoolConfig, RequestId, RestartConfig, WorkerId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Closed,
    Open,
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    PassageAskedEarly,
    PassageAskedLate,
    Opened,
    Succeeded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Free,
    Probe,
    Refused,
    /// It is not asked for passage.
    Nothing,
}

#[rustfmt::skip]
const TABLE: [(Is, Happens, Is, Says); 12] = [
    (Is::Closed,   Happens::PassageAskedEarly, Is::Closed,   Says::Free),
    (Is::Closed,   Happens::PassageAskedLate,  Is::Closed,   Says::Free),
    (Is::Closed,   Happens::Opened,            Is::Open,     Says::Nothing),
    (Is::Closed,   Happens::Succeeded,         Is::Closed,   Says::Nothing),
    (Is::Open,     Happens::PassageAskedEarly, Is::Open,     Says::Refused),
    (Is::Open,     Happens::PassageAskedLate,  Is::HalfOpen, Says::Probe),
    (Is::Open,     Happens::Opened,            Is::Open,     Says::Nothing),
    (Is::Open,     Happens::Succeeded,         Is::Open,     Says::Nothing),
    (Is::HalfOpen, Happens::PassageAskedEarly, Is::HalfOpen, Says::Probe),
    (Is::HalfOpen, Happens::PassageAskedLate,  Is::HalfOpen, Says::Probe),
    (Is::HalfOpen, Happens::Opened,            Is::Open,     Says::Nothing),
    (Is::HalfOpen, Happens::Succeeded,         Is::Closed,   Says::Nothing),
];

fn breaker(state: Is) -> Breaker {
    match state {
        Is::Closed => Breaker::Closed,
        Is::Open => Breaker::Open { until: at(1, 0), cause: Cause::new("crashed") },
        Is::HalfOpen => Breaker::HalfOpen,
    }
}

fn state(breaker: &Breaker) -> Is {
    match breaker {
        Breaker::Closed => Is::Closed,
        Breaker::Open { .. } => Is::Open,
        Breaker::HalfOpen => Is::HalfOpen,
    }
}

fn says(passage: Passage) -> Says {
    match passage {
        Passage::Free => Says::Free,
        Passage::Probe => Says::Probe,
        Passage::Refused { retry_after, .. } => {
            assert_eq!(retry_after, Duration::from_secs(1));
            Says::Refused
        }
    }
}

#[test]
fn every_state_against_every_event() {
    for (before, happens, after, expected) in TABLE {
        let mut breaker = breaker(before);
        let answer = match happens {
            Happens::PassageAskedEarly => says(breaker.pass(at(0, 59))),
            Happens::PassageAskedLate => says(breaker.pass(at(1, 0))),
            Happens::Opened => {
                breaker.open(at(2, 0), Cause::new("again"));
                Says::Nothing
            }
            Happens::Succeeded => {
                assert_eq!(breaker.succeeded(), before == Is::HalfOpen, "closing is told once");
                Says::Nothing
            }
        };
        assert_eq!((state(&breaker), answer), (after, expected), "{before:?}, {happens:?}");
    }
}

/// No restarts: the first failure opens the breaker, at 1:00 for a minute.
fn opened_at_one() -> Core {
    let restart = RestartConfig::default().with_max_restarts(0);
    let batch = BatchLimits::default().with_requests(4);
    let mut core = Core::new(PoolConfig::default().with_restart(restart).with_batch(batch));
    core.starts_by_hand = true;
    core.now = at(1, 0);
    core.submit();
    let worker = WorkerId(1);
    core.tell(Input::StartFailed { worker, failure: Failure::failed("read error") });
    core.tell(Input::Ended { worker });
    core.starts_by_hand = false;
    assert_eq!(core.openings(), [at(1, 0)]);
    core
}

fn closed(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Emit(Event::BreakerClosed { .. })))
}

#[test]
fn until_its_time_has_passed_requests_are_refused_with_the_rest_of_it() {
    let mut core = opened_at_one();
    core.wait_until(at(1, 20));
    let (_, effects) = core.submit();
    let refusals: Vec<String> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Fail { error, .. } => Some(error.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(refusals, ["m (test) failed too often; retry in 40000 ms; last cause: read error"]);
    let effects = core.preload();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Return { result: Err(_), .. })));
    assert_eq!(core.starts().len(), 1, "nothing is tried");
}

#[test]
fn the_probe_runs_alone_and_its_success_closes_the_breaker() {
    let mut core = opened_at_one();
    core.wait_until(at(2, 0));
    let probe = core.submit().0;
    let others: Vec<RequestId> = (0..3).map(|_| core.submit().0).collect();
    let worker = core.runs_of(probe)[0];
    assert_eq!(core.starts().len(), 2, "one worker, though a cold start is two");
    assert!(others.iter().all(|other| core.runs_of(*other).is_empty()), "one request at a time");
    let effects = core.finish(worker, probe);
    assert!(closed(&effects), "{effects:?}");
    assert!(others.iter().all(|other| core.runs_of(*other).len() == 1), "the others run together now");
}

#[test]
fn a_probe_whose_own_input_is_at_fault_leaves_the_question_open() {
    let mut core = opened_at_one();
    core.wait_until(at(2, 0));
    let (bad, good) = (core.submit().0, core.submit().0);
    let worker = core.runs_of(bad)[0];
    let outcomes = vec![(bad, Outcome::Failed(Failure::invalid_input("not a picture")))];
    let effects = core.tell(Input::Finished { worker, outcomes });
    assert!(!closed(&effects));
    assert_eq!(core.failure_of(bad), Some("invalid_input"));
    assert!(closed(&core.finish(worker, good)), "the next one is the probe");
}

#[test]
fn a_probe_that_fails_opens_it_again_for_as_long() {
    let mut core = opened_at_one();
    core.wait_until(at(2, 0));
    core.starts_by_hand = true;
    let probe = core.submit().0;
    let waiting = core.submit().0;
    let worker = core.starts().last().unwrap().1;
    core.tell(Input::StartFailed { worker, failure: Failure::failed("read error") });
    core.tell(Input::Ended { worker });
    core.starts_by_hand = false;
    assert_eq!(core.openings(), [at(1, 0), at(2, 0)]);
    assert_eq!(core.failure_of(probe), Some("circuit_open"));
    assert_eq!(core.failure_of(waiting), Some("circuit_open"));
    core.wait_until(at(2, 59));
    let early = core.submit().0;
    assert_eq!(core.failure_of(early), Some("circuit_open"));
    core.wait_until(at(3, 0));
    let late = core.submit().0;
    assert_eq!(core.failure_of(late), None);
}

#[test]
fn a_preload_may_be_the_probe_and_its_start_is_the_success() {
    let mut core = opened_at_one();
    core.wait_until(at(2, 0));
    let effects = core.tell(Input::Preload { key: KEY, call: CallId(1) });
    assert!(closed(&effects), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Return { result: Ok(()), .. })));
}

/// Two workers, of which one dies beyond the budget, at 1:00.
fn one_of_two_dead() -> Core {
    let restart = RestartConfig::default().with_max_restarts(0);
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default().with_max_workers(2).with_cold_start_workers(2);
    let mut core = Core::new(config.with_restart(restart).with_batch(batch));
    core.preload();
    core.now = at(1, 0);
    core.tell(Input::Died { worker: WorkerId(1), cause: Cause::new("killed"), fates: Vec::new() });
    core.tell(Input::Ended { worker: WorkerId(1) });
    assert_eq!((core.openings(), core.starts().len()), (vec![at(1, 0)], 2));
    core
}

#[test]
fn workers_that_are_well_serve_behind_an_open_breaker() {
    let mut core = one_of_two_dead();
    let (first, second) = (core.submit().0, core.submit().0);
    assert_eq!(core.runs_of(first), [WorkerId(2)]);
    core.finish(WorkerId(2), first);
    assert_eq!(core.runs_of(second), [WorkerId(2)]);
    assert_eq!((core.failure_of(second), core.starts().len()), (None, 2), "and nothing is started");
}

#[test]
fn requests_that_wait_for_the_well_ones_are_kept_when_the_breaker_opens() {
    let restart = RestartConfig::default().with_max_restarts(0);
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default().with_max_workers(2).with_cold_start_workers(1);
    let mut core = Core::new(config.with_restart(restart).with_batch(batch));
    core.preload();
    core.starts_by_hand = true;
    let requests: Vec<RequestId> = (0..3).map(|_| core.submit().0).collect();
    let failure = Failure::failed("read error");
    core.tell(Input::StartFailed { worker: WorkerId(2), failure });
    assert_eq!(core.openings().len(), 1);
    for request in requests {
        assert_eq!(core.runs_of(request), [WorkerId(1)]);
        core.finish(WorkerId(1), request);
    }
}

#[test]
fn once_its_time_has_passed_a_further_worker_is_started_beside_the_well_ones() {
    let mut core = one_of_two_dead();
    core.submit();
    core.submit();
    core.wait_until(at(1, 59));
    assert_eq!(core.starts().len(), 2);
    core.wait_until(at(2, 0));
    assert_eq!(core.starts().len(), 3, "by itself, as a request waits");
}
