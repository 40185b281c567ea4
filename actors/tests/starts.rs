//! Starts of workers at their edges: whose weights they take, what room they ask for, what their failure and their success
//! say about the model, and when none is begun.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::time::Duration;

use timeline::{Core, KEY, at};

use model_actors::maintenance::eviction::PoolIndex;
use model_actors::scheduler::{CallId, Effect, Fate, Input, Source, Ticket};
use model_actors::{
    BatchLimits, Bytes, Cause, Event, Failure, Footprint, ModelKey, PoolConfig, RequestId, RestartConfig,
    StallLimits, Time, WorkerId,
};

const SIZE: Footprint = Footprint::new(Bytes(10), Bytes(3));

fn workers(cold_start: usize, most: usize) -> PoolConfig {
    let one_each = BatchLimits::default().with_requests(1);
    PoolConfig::default().with_cold_start_workers(cold_start).with_max_workers(most).with_batch(one_each)
}

/// Breaks at the first failure, for a minute.
fn brittle(config: PoolConfig) -> PoolConfig {
    config.with_restart(RestartConfig::default().with_max_restarts(0))
}

fn by_hand(config: PoolConfig) -> Core {
    let mut core = Core::new(config);
    core.starts_by_hand = true;
    core
}

fn submit(core: &mut Core, requests: impl IntoIterator<Item = u64>) -> Vec<Effect> {
    let ticket = |request| (KEY, Ticket::new(RequestId(request), Time::NEVER));
    core.tell(Input::Submit { tickets: requests.into_iter().map(ticket).collect() })
}

fn the_worker(core: &Core) -> WorkerId {
    core.starts().last().unwrap().1
}

/// Has a worker that has just been begun become ready, from disk.
fn load(core: &mut Core, worker: WorkerId) -> Vec<Effect> {
    core.tell(Input::Sized { worker, footprint: SIZE });
    core.tell(Input::RoomGranted { worker });
    core.tell(Input::Started { worker, footprint: SIZE })
}

fn die(core: &mut Core, worker: WorkerId, requests: &[u64]) -> Vec<Effect> {
    let fates = requests.iter().map(|request| (RequestId(*request), Fate::Untouched)).collect();
    let mut effects = core.tell(Input::Died { worker, cause: Cause::new("killed"), fates });
    effects.extend(core.tell(Input::Ended { worker }));
    effects
}

/// A model whose only worker has crashed with its request; the replacement has asked for room.
fn after_a_crash() -> Core {
    let mut core = by_hand(workers(1, 1));
    submit(&mut core, [1]);
    let first = the_worker(&core);
    load(&mut core, first);
    die(&mut core, first, &[1]);
    core.wait_until(at(0, 1));
    core
}

/// The reservations, in order.
fn reserved(core: &Core) -> Vec<(Bytes, Source)> {
    let reserve = |(_, effect): &(Time, Effect)| match effect {
        Effect::Reserve { bytes, source, .. } => Some((*bytes, *source)),
        _ => None,
    };
    core.log.iter().filter_map(reserve).collect()
}

fn released(core: &Core) -> usize {
    core.log.iter().filter(|(_, effect)| matches!(effect, Effect::ReleaseWeights { .. })).count()
}

fn failed(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Fail { .. })).count()
}

fn events(core: &Core, is: fn(&Event) -> bool) -> usize {
    core.log.iter().filter(|(_, effect)| matches!(effect, Effect::Emit(event) if is(event))).count()
}

const RESTARTED: fn(&Event) -> bool = |event| matches!(event, Event::WorkerRestarted { failures: 1, .. });
const CLOSED: fn(&Event) -> bool = |event| matches!(event, Event::BreakerClosed { .. });

#[test]
fn a_replacement_takes_the_weights_that_were_kept_for_it() {
    let mut core = after_a_crash();
    assert_eq!(reserved(&core), [(Bytes(13), Source::Load), (Bytes(3), Source::Shared)]);
    assert_eq!(released(&core), 0, "it has yet to take them");
    let second = the_worker(&core);
    core.tell(Input::RoomGranted { worker: second });
    core.tell(Input::Started { worker: second, footprint: SIZE });
    assert_eq!(released(&core), 1);
    assert_eq!(events(&core, RESTARTED), 1, "the first start was none that replaced another");
}

#[test]
fn weights_from_which_no_worker_could_be_built_are_read_again() {
    let mut core = after_a_crash();
    let second = the_worker(&core);
    core.tell(Input::RoomGranted { worker: second });
    core.tell(Input::StartFailed { worker: second, failure: Failure::failed("no") });
    core.tell(Input::Ended { worker: second });
    assert_eq!(released(&core), 1);
    let ended = |event: &Event| matches!(event, Event::WorkerEnded { .. });
    assert_eq!(events(&core, ended), 2, "the thread that dropped the weights was no worker");
    core.wait_until(at(0, 3));
    assert_eq!(reserved(&core).last(), Some(&(Bytes(13), Source::Load)));
}

#[test]
fn a_start_after_one_that_failed_replaces_nobody() {
    let mut core = by_hand(workers(1, 1));
    submit(&mut core, [1]);
    let first = the_worker(&core);
    core.tell(Input::StartFailed { worker: first, failure: Failure::failed("no") });
    core.tell(Input::Ended { worker: first });
    core.wait_until(at(0, 1));
    assert_ne!(the_worker(&core), first);
    assert_eq!(events(&core, |event| matches!(event, Event::WorkerRestarted { .. })), 0);
}

#[test]
fn a_load_that_outgrew_its_room_asks_for_as_much_the_next_time() {
    let mut core = by_hand(workers(1, 1));
    submit(&mut core, [1]);
    let first = the_worker(&core);
    core.tell(Input::Sized { worker: first, footprint: SIZE });
    core.tell(Input::RoomGranted { worker: first });
    let measured = Footprint::new(Bytes(50), Bytes(5));
    core.tell(Input::Sized { worker: first, footprint: measured });
    core.tell(Input::StartFailed { worker: first, failure: Failure::failed("larger") });
    core.tell(Input::Ended { worker: first });
    core.wait_until(at(0, 1));
    assert_eq!(reserved(&core), [(Bytes(13), Source::Load), (Bytes(55), Source::Load)]);
}

#[test]
fn the_price_of_an_eviction_is_the_time_from_the_room_to_the_worker_that_is_ready() {
    let mut core = by_hand(workers(1, 2));
    core.preload();
    let first = the_worker(&core);
    core.tell(Input::Sized { worker: first, footprint: SIZE });
    core.wait_until(at(0, 10));
    core.tell(Input::RoomGranted { worker: first });
    core.wait_until(at(0, 13));
    core.tell(Input::Started { worker: first, footprint: SIZE });
    let price = |core: &Core| core.scheduler.offers(core.now, PoolIndex(0))[0].reload_time;
    assert_eq!(price(&core), Duration::from_secs(3));
    submit(&mut core, [1, 2]);
    let second = the_worker(&core);
    core.wait_until(at(0, 20));
    core.tell(Input::RoomGranted { worker: second });
    core.tell(Input::Started { worker: second, footprint: SIZE });
    assert_eq!(price(&core), Duration::from_secs(3), "the second reads nothing");
}

#[test]
fn a_removed_model_starts_no_further_worker() {
    let mut core = by_hand(workers(2, 2));
    submit(&mut core, [1]);
    let first = the_worker(&core);
    core.tell(Input::Remove { key: KEY });
    load(&mut core, first);
    assert_eq!(core.runs_of(RequestId(1)), [first], "what it has is served");
    assert_eq!(core.starts().len(), 1);
}

#[test]
fn a_replacement_that_finds_no_room_fails_nobody_beside_a_worker_that_serves() {
    let mut core = Core::new(workers(2, 2));
    core.preload();
    core.starts_by_hand = true;
    submit(&mut core, [1, 2, 3]);
    let dead = core.runs_of(RequestId(1))[0];
    die(&mut core, dead, &[1]);
    core.wait_until(at(0, 1));
    let worker = the_worker(&core);
    let (needed, free, limit) = (Bytes(3), Bytes(0), Bytes(100));
    let effects = core.tell(Input::RoomDenied { worker, needed, free, limit });
    assert_eq!(failed(&effects), 0);
}

#[test]
fn no_further_worker_is_begun_while_one_starts() {
    let mut core = Core::new(workers(1, 3));
    core.preload();
    core.starts_by_hand = true;
    submit(&mut core, [1, 2]);
    assert_eq!(core.starts().len(), 2, "one is busy and one request waits");
    submit(&mut core, [3]);
    assert_eq!(core.starts().len(), 2);
}

#[test]
fn a_load_does_not_prove_a_model_while_a_request_waits_to_do_so() {
    let mut core = by_hand(brittle(workers(1, 1)));
    submit(&mut core, [1]);
    let first = the_worker(&core);
    core.tell(Input::StartFailed { worker: first, failure: Failure::failed("no") });
    core.tell(Input::Ended { worker: first });
    core.wait_until(at(1, 0));
    submit(&mut core, [2]);
    core.tell(Input::Preload { key: KEY, call: CallId(7) });
    let second = the_worker(&core);
    load(&mut core, second);
    assert_eq!(core.runs_of(RequestId(2)), [second]);
    assert_eq!(events(&core, CLOSED), 0, "the request is the probe");
    core.finish(second, RequestId(2));
    assert_eq!(events(&core, CLOSED), 1);
}

#[test]
fn a_model_that_came_to_work_again_has_a_clean_record() {
    let one_restart = RestartConfig::default().with_max_restarts(1).with_breaker_open(Duration::from_secs(5));
    let mut core = by_hand(workers(1, 1).with_restart(one_restart));
    submit(&mut core, [1]);
    for second in [1, 3] {
        let worker = the_worker(&core);
        core.tell(Input::StartFailed { worker, failure: Failure::failed("no") });
        core.tell(Input::Ended { worker });
        core.wait_until(at(0, second));
    }
    assert_eq!(core.openings().len(), 1);
    core.wait_until(at(0, 10));
    submit(&mut core, [2]);
    let probe = the_worker(&core);
    load(&mut core, probe);
    core.finish(probe, RequestId(2));
    die(&mut core, probe, &[]);
    assert_eq!(core.openings().len(), 1, "one failure is within the budget");
}

#[test]
fn a_successor_starts_once_a_thread_of_the_model_that_it_replaced_has_ended() {
    let mut core = Core::new(workers(1, 1));
    core.threads_linger = true;
    submit(&mut core, [1]);
    let first = the_worker(&core);
    for worker in [first, WorkerId(first.0 + 1)] {
        core.tell(Input::Died { worker, cause: Cause::new("killed"), fates: Vec::new() });
        core.wait_until(core.now + Duration::from_secs(2));
    }
    core.tell(Input::Remove { key: KEY });
    let (successor, old) = (ModelKey(1), core.starts().len());
    let policy = core.policy.clone();
    core.tell(Input::Declare { key: successor, policy });
    let ticket = Ticket::new(RequestId(9), Time::NEVER);
    core.tell(Input::Submit { tickets: vec![(successor, ticket)] });
    assert_eq!(core.starts().len(), old, "the threads of both are bounded together");
    core.tell(Input::Ended { worker: first });
    assert_eq!(core.starts().len(), old + 1);
    assert_eq!(core.runs_of(RequestId(9)).len(), 1);
}

#[test]
fn what_waits_already_gets_past_as_many_stuck_threads_as_workers_and_one() {
    let (second, five) = (Duration::from_secs(1), Duration::from_secs(5));
    let patient =
        RestartConfig::default().with_max_restarts(10).with_first_backoff(five).with_max_backoff(five);
    let stall = StallLimits::default().with_load(second).with_run(second);
    let mut core = by_hand(workers(1, 1).with_restart(patient).with_stall(stall));
    core.threads_linger = true;
    submit(&mut core, [1]);
    for seconds in [8, 16] {
        let worker = the_worker(&core);
        core.tell(Input::StartFailed { worker, failure: Failure::failed("no") });
        core.wait_until(at(0, seconds));
    }
    assert_eq!(core.starts().len(), 3);
    assert_eq!(core.failure_of(RequestId(1)), None);
}

#[test]
fn a_model_starts_beside_a_row_of_predecessors_at_work() {
    let mut core = Core::new(workers(1, 1));
    for key in [0, 1, 2] {
        let (key, policy) = (ModelKey(key), core.policy.clone());
        core.tell(Input::Declare { key, policy });
        let ticket = Ticket::new(RequestId(u64::from(key.0)), Time::NEVER);
        core.tell(Input::Submit { tickets: vec![(key, ticket)] });
        assert_eq!(core.runs_of(RequestId(u64::from(key.0))).len(), 1, "{key:?}");
        core.tell(Input::Remove { key });
    }
}
