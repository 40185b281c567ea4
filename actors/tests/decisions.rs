//! Decisions of the scheduler at their edges, each of which a small slip would turn: who joins a run, what a probe lets
//! through, what a start that fails or finds no room means for those who wait.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::time::Duration;

use timeline::{Core, KEY, at};

use model_actors::maintenance::eviction::PoolIndex;
use model_actors::scheduler::{Batching, CallId, Effect, Fate, Input, Outcome, Ticket, Urgency};
use model_actors::{
    BatchKey, BatchLimits, Bytes, Cause, Cost, Device, Error, EvictionReason, Failure, Footprint, PoolConfig,
    PressureLevel, RequestId, RestartConfig, Time, WorkerId,
};

fn one_worker() -> PoolConfig {
    PoolConfig::default().with_cold_start_workers(1).with_max_workers(1)
}

fn workers(cold_start: usize, most: usize) -> PoolConfig {
    PoolConfig::default().with_cold_start_workers(cold_start).with_max_workers(most)
}

/// Breaks at the first failure, for a minute.
fn brittle(config: PoolConfig) -> PoolConfig {
    config.with_restart(RestartConfig::default().with_max_restarts(0))
}

fn ticket(request: u64) -> Ticket {
    Ticket::new(RequestId(request), Time::NEVER)
}

fn submit(core: &mut Core, tickets: impl IntoIterator<Item = Ticket>) -> Vec<Effect> {
    core.tell(Input::Submit { tickets: tickets.into_iter().map(|ticket| (KEY, ticket)).collect() })
}

/// The sizes of the runs and joins in the order in which they began.
fn runs(effects: &[Effect]) -> Vec<Vec<u64>> {
    let run = |effect: &Effect| match effect {
        Effect::Run { requests, .. } => Some(requests.iter().map(|request| request.0).collect()),
        _ => None,
    };
    effects.iter().filter_map(run).collect()
}

fn fail(core: &mut Core, worker: WorkerId, requests: &[u64], failure: &Failure) -> Vec<Effect> {
    let failed = |request: &u64| (RequestId(*request), Outcome::Failed(failure.clone()));
    core.tell(Input::Finished { worker, outcomes: requests.iter().map(failed).collect() })
}

fn the_worker(core: &Core) -> WorkerId {
    core.starts().last().unwrap().1
}

fn out_of_memory() -> Failure {
    Failure::out_of_memory("no page left")
}

// ## Joining a run

fn continuous(limits: BatchLimits) -> Core {
    let mut core = Core::batching(one_worker().with_batch(limits), Batching::Continuous);
    core.preload();
    core
}

#[test]
fn a_run_is_joined_up_to_its_seats() {
    let mut core = continuous(BatchLimits::default().with_requests(3));
    assert_eq!(runs(&submit(&mut core, [ticket(1)])), [[1]]);
    assert_eq!(runs(&submit(&mut core, [2, 3, 4].map(ticket))), [[2, 3]]);
    let worker = the_worker(&core);
    assert_eq!(runs(&core.finish(worker, RequestId(1))), [[4]], "a seat is free");
}

#[test]
fn a_run_is_joined_up_to_its_cost() {
    let mut core = continuous(BatchLimits::default().with_cost(100));
    let costing = |request, cost| Ticket { cost: Cost(cost), ..ticket(request) };
    assert_eq!(runs(&submit(&mut core, [costing(1, 60)])), [[1]]);
    assert!(runs(&submit(&mut core, [costing(2, 60)])).is_empty(), "both would cost 120");
    let worker = the_worker(&core);
    assert_eq!(runs(&core.finish(worker, RequestId(1))), [[2]]);
}

#[test]
fn a_run_of_another_key_is_not_joined_and_nobody_overtakes_who_waits_for_its_end() {
    let mut core = continuous(BatchLimits::default());
    assert_eq!(runs(&submit(&mut core, [ticket(1)])), [[1]]);
    assert!(runs(&submit(&mut core, [Ticket { key: BatchKey(1), ..ticket(2) }])).is_empty());
    assert!(runs(&submit(&mut core, [ticket(3)])).is_empty(), "it would keep 2 waiting");
}

#[test]
fn nobody_joins_a_run_that_ran_out_of_memory_before() {
    let mut core = continuous(BatchLimits::default());
    submit(&mut core, [ticket(1)]);
    let worker = the_worker(&core);
    fail(&mut core, worker, &[1], &out_of_memory());
    core.wait_until(at(0, 1));
    assert_eq!(core.runs_of(RequestId(1)).len(), 2, "once more, after a second");
    assert!(runs(&submit(&mut core, [ticket(2)])).is_empty());
}

// ## Probes and breakers

#[test]
fn a_half_open_breaker_lets_one_request_through_at_a_time() {
    let mut core = Core::new(brittle(one_worker()));
    core.starts_by_hand = true;
    submit(&mut core, [ticket(1)]);
    let worker = the_worker(&core);
    core.tell(Input::StartFailed { worker, failure: Failure::failed("no") });
    assert_eq!(core.openings().len(), 1);
    core.starts_by_hand = false;
    core.wait_until(at(1, 0));
    assert_eq!(runs(&submit(&mut core, [2, 3, 4].map(ticket))), [[2]], "the probe");
    let worker = the_worker(&core);
    assert_eq!(runs(&core.finish(worker, RequestId(2))), [[3, 4]], "it succeeded");
}

#[test]
fn of_requests_that_run_again_together_one_is_the_probe() {
    let mut core = Core::batching(brittle(workers(2, 2)), Batching::Continuous);
    core.preload();
    submit(&mut core, [ticket(1), ticket(2)]);
    submit(&mut core, [ticket(3)]);
    let workers = [1, 2, 3].map(|request| core.runs_of(RequestId(request))[0]);
    assert_eq!(workers[0], workers[2], "it joined the first run");
    core.finish(workers[1], RequestId(2));
    core.tell(Input::Died { worker: workers[1], cause: Cause::new("killed"), fates: Vec::new() });
    core.tell(Input::Ended { worker: workers[1] });
    assert_eq!(core.openings().len(), 1);
    // The breaker's time has passed, and nothing has happened since.
    core.now = at(2, 0);
    let fates = [1, 3].map(|request| (RequestId(request), Fate::Untouched)).into();
    core.tell(Input::Died { worker: workers[0], cause: Cause::new("crashed"), fates });
    core.tell(Input::Ended { worker: workers[0] });
    core.wait_until(at(2, 1));
    assert_eq!([1, 3].map(|request| core.runs_of(RequestId(request)).len()), [2, 1], "the probe");
    let worker = the_worker(&core);
    core.finish(worker, RequestId(1));
    assert_eq!(core.runs_of(RequestId(3)).len(), 2);
}

#[test]
fn a_breaker_that_opens_gives_up_the_starts_under_way() {
    let mut core = Core::new(brittle(workers(3, 3)));
    core.starts_by_hand = true;
    core.threads_linger = true;
    submit(&mut core, [ticket(1)]);
    let (first, footprint) = (the_worker(&core), Footprint::default());
    core.tell(Input::Sized { worker: first, footprint });
    core.tell(Input::RoomGranted { worker: first });
    core.tell(Input::Started { worker: first, footprint });
    let starting: Vec<WorkerId> = core.starts()[1..].iter().map(|(_, worker)| *worker).collect();
    for worker in &starting {
        core.tell(Input::RoomGranted { worker: *worker });
    }
    core.tell(Input::StartFailed { worker: starting[0], failure: Failure::failed("no") });
    assert_eq!(core.openings().len(), 1);
    assert_eq!(core.stops(EvictionReason::Unload), [(Time::ZERO, starting[1])]);
}

// ## Failures and deadlines

#[test]
fn what_failed_past_its_deadline_is_answered_that_its_time_ran_out() {
    let mut core = Core::new(one_worker());
    core.preload();
    let deadline = at(0, 5);
    let late = |request| Ticket { deadline, ..ticket(request) };
    submit(&mut core, [late(1), late(2)]);
    let worker = the_worker(&core);
    // The alarm has not rung yet.
    core.now = deadline;
    fail(&mut core, worker, &[1, 2], &Failure::failed("no"));
    assert_eq!([1, 2].map(|request| core.failure_of(RequestId(request))), [Some("timeout"); 2]);
    assert_eq!(core.runs_of(RequestId(1)).len(), 1, "it is not run again");
    submit(&mut core, [Ticket { deadline: at(0, 9), ..ticket(3) }]);
    core.now = at(0, 9);
    fail(&mut core, worker, &[3], &Failure::failed("no"));
    assert_eq!(core.failure_of(RequestId(3)), Some("timeout"), "it ran alone");
}

#[test]
fn a_load_that_ran_out_of_memory_is_tried_once_more_and_no_more() {
    let mut core = Core::new(one_worker());
    core.starts_by_hand = true;
    submit(&mut core, [ticket(1)]);
    let load = |core: &mut Core| {
        let worker = the_worker(core);
        core.tell(Input::Sized { worker, footprint: Footprint::default() });
        core.tell(Input::RoomGranted { worker });
        core.tell(Input::StartFailed { worker, failure: out_of_memory() });
        core.tell(Input::Ended { worker });
        worker
    };
    let first = load(&mut core);
    assert_eq!(core.failure_of(RequestId(1)), None);
    core.wait_until(at(0, 30));
    assert_ne!(load(&mut core), first, "a second one was tried");
    assert!(core.failure_of(RequestId(1)).is_some());
    core.wait_until(at(1, 30));
    assert_eq!(core.starts().len(), 2);
    // A request that comes later has two of its own.
    submit(&mut core, [ticket(2)]);
    load(&mut core);
    assert_eq!(core.failure_of(RequestId(2)), None);
}

#[test]
fn a_batch_limit_that_memory_set_is_back_after_a_load() {
    let mut core = Core::new(one_worker().with_batch(BatchLimits::default().with_requests(4)));
    core.preload();
    submit(&mut core, (1..=4).map(ticket));
    let worker = the_worker(&core);
    let effects = fail(&mut core, worker, &[1, 2, 3, 4], &out_of_memory());
    assert_eq!(runs(&effects), [[1, 2]]);
    for pair in [[1, 2], [3, 4]] {
        for request in pair {
            core.finish(worker, RequestId(request));
        }
    }
    assert_eq!(runs(&submit(&mut core, (5..=8).map(ticket))), [[5, 6]], "two at a time now");
    for request in 5..=8 {
        core.finish(worker, RequestId(request));
    }
    core.tell(Input::Unload { key: KEY, call: CallId(1), deadline: at(1, 0) });
    core.preload();
    assert_eq!(runs(&submit(&mut core, (9..=12).map(ticket))), [[9, 10, 11, 12]]);
}

// ## Starts, room and unloads

#[test]
fn an_unload_gives_up_the_starts_under_way() {
    let mut core = Core::new(one_worker());
    core.starts_by_hand = true;
    core.threads_linger = true;
    core.preload();
    let worker = the_worker(&core);
    core.tell(Input::Sized { worker, footprint: Footprint::default() });
    core.tell(Input::RoomGranted { worker });
    core.tell(Input::Unload { key: KEY, call: CallId(1), deadline: at(1, 0) });
    assert_eq!(core.stops(EvictionReason::Unload), [(Time::ZERO, worker)]);
}

#[test]
fn an_unload_does_not_wait_for_a_stuck_thread() {
    let mut core = Core::new(one_worker());
    core.preload();
    submit(&mut core, [ticket(1)]);
    core.last_progress = Some(Time::ZERO);
    core.threads_linger = true;
    core.starts_by_hand = true;
    let stalled = core.scheduler.alarm();
    core.wait_until(stalled + Duration::from_secs(1));
    assert_eq!(core.failure_of(RequestId(1)), Some("worker_stuck"));
    let now = core.now;
    let effects = core.tell(Input::Unload { key: KEY, call: CallId(1), deadline: at(60, 0) });
    let returned = effects.iter().find_map(|effect| match effect {
        Effect::Return { call: CallId(1), result } => Some(result.clone()),
        _ => None,
    });
    assert!(matches!(returned, Some(Err(Error::UnloadIncomplete { .. }))), "{returned:?}");
    assert_eq!(core.now, now);
}

/// A further worker that found no room: (the core, the busy worker, the moment).
fn denied_scale_up() -> (Core, WorkerId) {
    let mut core = Core::new(workers(1, 2));
    core.preload();
    let busy = the_worker(&core);
    submit(&mut core, [ticket(1)]);
    core.starts_by_hand = true;
    submit(&mut core, [ticket(2)]);
    let worker = the_worker(&core);
    assert_ne!(worker, busy);
    let is_free = |(_, effect): &(Time, Effect)| matches!(effect, Effect::Reserve { worker: of, urgency: Urgency::IfFree, .. } if *of == worker);
    assert!(core.log.iter().any(is_free), "no room is made for a further worker");
    core.tell(Input::RoomDenied { worker, needed: Bytes(1), free: Bytes(0), limit: Bytes(1) });
    (core, busy)
}

#[test]
fn a_further_worker_that_finds_no_room_fails_nobody() {
    let (mut core, busy) = denied_scale_up();
    assert_eq!(core.failure_of(RequestId(2)), None);
    core.finish(busy, RequestId(1));
    assert_eq!(core.runs_of(RequestId(2)), [busy]);
}

#[test]
fn a_further_worker_is_tried_again_after_a_pause_with_no_other_cause() {
    let (mut core, _) = denied_scale_up();
    assert_eq!(core.starts().len(), 2);
    core.wait_until(Time::after_start(Duration::from_millis(999)));
    assert_eq!(core.starts().len(), 2, "not before its pause");
    core.wait_until(at(0, 1));
    assert_eq!(core.starts().len(), 3);
}

#[test]
fn a_worker_whose_sibling_starts_is_not_evicted() {
    let mut core = Core::new(workers(1, 2));
    core.preload();
    let first = the_worker(&core);
    submit(&mut core, [ticket(1)]);
    core.starts_by_hand = true;
    submit(&mut core, [ticket(2)]);
    let second = the_worker(&core);
    core.tell(Input::RoomGranted { worker: second });
    core.finish(first, RequestId(1));
    core.finish(first, RequestId(2));
    let idle = |core: &Core| -> usize {
        core.scheduler.offers(core.now, PoolIndex(0)).iter().map(|offer| offer.idle.len()).sum()
    };
    assert_eq!(idle(&core), 0, "the sibling needs its weights");
    core.tell(Input::Evict { worker: first, reason: EvictionReason::MakeRoom });
    assert!(core.stops(EvictionReason::MakeRoom).is_empty());
    core.tell(Input::Started { worker: second, footprint: Footprint::default() });
    assert_eq!(idle(&core), 2);
}

#[test]
fn a_probe_starts_one_worker_whatever_a_cold_start_has() {
    let mut core = Core::new(brittle(workers(2, 2)));
    core.starts_by_hand = true;
    submit(&mut core, [ticket(1)]);
    let worker = the_worker(&core);
    core.tell(Input::StartFailed { worker, failure: Failure::failed("no") });
    core.starts_by_hand = false;
    core.wait_until(at(1, 0));
    let before = core.starts().len();
    submit(&mut core, [ticket(2)]);
    let worker = the_worker(&core);
    core.finish(worker, RequestId(2));
    assert_eq!(core.starts().len() - before, 1, "nor once it has succeeded");
}

#[test]
fn under_memory_pressure_no_further_worker_is_tried() {
    let mut core = Core::new(workers(1, 2));
    core.preload();
    let (device, level) = (Device::host(), PressureLevel::Elevated);
    core.tell(Input::Pressure { device: device.clone(), level });
    submit(&mut core, [ticket(1)]);
    submit(&mut core, [ticket(2)]);
    assert_eq!(core.starts().len(), 1);
    core.tell(Input::Pressure { device, level: PressureLevel::Normal });
    submit(&mut core, [ticket(3)]);
    assert_eq!(core.starts().len(), 2);
}

#[test]
fn a_pinned_model_offers_none_of_its_workers_and_keeps_them() {
    let mut core = Core::new(one_worker());
    core.preload();
    let worker = the_worker(&core);
    core.tell(Input::Pin { key: KEY, pinned: true });
    assert!(core.scheduler.offers(core.now, PoolIndex(0)).iter().all(|offer| offer.idle.is_empty()));
    core.tell(Input::Evict { worker, reason: EvictionReason::MakeRoom });
    assert!(core.stops(EvictionReason::MakeRoom).is_empty());
}

#[test]
fn the_weights_of_the_only_worker_are_kept_for_its_replacement() {
    for (workers, kept) in [(1, 1), (2, 0)] {
        let mut core = Core::new(self::workers(workers, workers));
        core.preload();
        submit(&mut core, [ticket(1)]);
        let [worker] = core.runs_of(RequestId(1))[..] else { panic!("it runs once") };
        let fates = vec![(RequestId(1), Fate::Untouched)];
        let effects = core.tell(Input::Died { worker, cause: Cause::new("crashed"), fates });
        let kept_now = effects.iter().filter(|effect| matches!(effect, Effect::RetainWeights { .. }));
        assert_eq!(kept_now.count(), kept, "{workers}: a sibling holds them");
    }
}

#[test]
fn nothing_new_is_taken_once_the_shutdown_has_begun() {
    let mut core = Core::new(one_worker());
    core.preload();
    submit(&mut core, [ticket(1)]);
    core.tell(Input::Shutdown { deadline: at(1, 0) });
    submit(&mut core, [ticket(2)]);
    assert_eq!([1, 2].map(|request| core.failure_of(RequestId(request))), [None, Some("shutting_down")]);
    let effects = core.tell(Input::Preload { key: KEY, call: CallId(7) });
    let refused = |effect: &Effect| matches!(effect, Effect::Return { result: Err(Error::ShuttingDown), .. });
    assert!(effects.iter().any(refused), "{effects:?}");
}

/// A death beyond the budget while these requests ran, with these fates; the number of openings of the breaker after the
/// suspects have run again and been answered.
fn openings_after(fates: &[Fate]) -> usize {
    let limits = BatchLimits::default().with_requests(4);
    let mut core = Core::new(brittle(one_worker()).with_batch(limits));
    core.preload();
    let requests: Vec<u64> = (1..=fates.len() as u64).collect();
    submit(&mut core, requests.iter().copied().map(ticket));
    let worker = the_worker(&core);
    let fates = requests.iter().map(|request| RequestId(*request)).zip(fates.iter().copied()).collect();
    core.tell(Input::Died { worker, cause: Cause::new("crashed"), fates });
    core.tell(Input::Ended { worker });
    core.wait_until(at(0, 30));
    let worker = the_worker(&core);
    for request in requests {
        core.finish(worker, RequestId(request));
    }
    core.openings().len()
}

#[test]
fn a_death_is_the_models_once_no_request_can_be_its_cause() {
    use Fate::{Answered, Emitted, GivenUp, Untouched};
    for (fates, openings) in [
        (&[Untouched][..], 1),
        (&[Untouched, Untouched, Answered], 1),
        // It cannot be run again, and ran alone: it is taken for the cause.
        (&[Emitted], 0),
        (&[Answered], 0),
        (&[Answered, Answered], 1),
        // Nothing will show which of several it was, and it may have been any of them.
        (&[Emitted, Emitted], 0),
        (&[GivenUp], 0),
        (&[GivenUp, GivenUp], 0),
        (&[GivenUp, Answered], 0),
        (&[Untouched, Emitted], 0),
        (&[Untouched, GivenUp], 0),
        (&[], 1),
    ] {
        assert_eq!(openings_after(fates), openings, "{fates:?}");
    }
}

// ## Ends of runs

#[test]
fn outcomes_may_come_in_any_order() {
    let mut core = Core::new(one_worker());
    core.preload();
    submit(&mut core, [ticket(1), ticket(2), ticket(3)]);
    let worker = the_worker(&core);
    let outcomes = vec![
        (RequestId(3), Outcome::Answered),
        (RequestId(1), Outcome::Failed(out_of_memory())),
        (RequestId(2), Outcome::Answered),
    ];
    let effects = core.tell(Input::Finished { worker, outcomes });
    assert_eq!(runs(&effects), [[1]], "the one that failed runs again");
    core.finish(worker, RequestId(1));
    assert_eq!(runs(&submit(&mut core, [ticket(4)])), [[4]], "the worker is idle");
}

#[test]
fn a_request_that_was_answered_before_its_worker_hung_is_not_answered_again() {
    let mut core = Core::new(one_worker());
    core.preload();
    submit(&mut core, [ticket(1)]);
    let worker = the_worker(&core);
    core.now = at(10, 0);
    let fates = vec![(RequestId(1), Fate::Answered)];
    let effects = core.tell(Input::Progress { worker, last_progress: Time::ZERO, fates });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Quarantine { .. })));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Forget { .. })));
    assert_eq!(core.failure_of(RequestId(1)), None);
}

#[test]
fn a_shutdown_counts_whom_it_abandons() {
    let mut core = Core::new(one_worker().with_batch(BatchLimits::default().with_requests(2)));
    core.preload();
    submit(&mut core, [1, 2, 3].map(ticket));
    core.tell(Input::Shutdown { deadline: at(0, 5) });
    core.wait_until(at(0, 6));
    let drained = |(_, effect): &(Time, Effect)| match effect {
        Effect::Drained { abandoned } => Some(*abandoned),
        _ => None,
    };
    assert_eq!(core.log.iter().find_map(drained), Some(3), "two run and one waits");
}
