//! A worker that was told to go and whose thread does not end is stuck once the stall limit has passed: no unload waits
//! for it any longer, and nobody counts on its bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use timeline::{Core, KEY, at};

use model_actors::maintenance::eviction::PoolIndex;
use model_actors::scheduler::{Batching, CallId, Effect, Input, ModelPolicy, Ticket};
use model_actors::{
    Bytes, Device, Error, Event, EvictionReason, Footprint, ModelId, ModelKey, PoolConfig, RequestId,
    StallLimits, Time, WorkerId,
};

/// Loads stall after a minute, runs after half of one.
fn core() -> Core {
    let limits = StallLimits::default();
    let stall = limits.with_load(std::time::Duration::from_secs(60)).with_run(limits.run / 4);
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1).with_stall(stall);
    let mut core = Core::new(config);
    core.starts_by_hand = true;
    core.threads_linger = true;
    core
}

fn footprint() -> Footprint {
    Footprint::new(Bytes(90), Bytes(10))
}

/// Brings the first worker to where it loads, at 1:00.
fn loading(core: &mut Core) -> WorkerId {
    core.now = at(1, 0);
    core.submit();
    let worker = core.starts().last().unwrap().1;
    core.tell(Input::Sized { worker, footprint: footprint() });
    core.tell(Input::RoomGranted { worker });
    worker
}

fn found_stuck(core: &Core) -> Vec<(model_actors::Time, WorkerId)> {
    let stuck = |(when, effect): &(_, Effect)| match effect {
        Effect::Emit(Event::WorkerStuck { worker, .. }) => Some((*when, *worker)),
        _ => None,
    };
    core.log.iter().filter_map(stuck).collect()
}

/// The bytes of the model that are said to be on their way back.
fn promised(core: &Core) -> usize {
    core.scheduler.offers(core.now, PoolIndex(0)).iter().map(|offer| offer.leaving).sum()
}

#[test]
fn a_load_that_hangs_and_is_unloaded_is_stuck_after_its_stall_limit_and_promises_nothing() {
    let mut core = core();
    let worker = loading(&mut core);
    core.wait_until(at(1, 10));
    core.tell(Input::Unload { key: KEY, call: CallId(1), deadline: at(10, 0) });
    assert_eq!(core.stops(EvictionReason::Unload), [(at(1, 10), worker)]);
    assert_eq!(promised(&core), 1, "it may end yet");
    core.wait_until(at(2, 9));
    assert_eq!((found_stuck(&core), promised(&core)), (vec![], 1));
    core.wait_until(at(2, 10));
    assert_eq!((found_stuck(&core), promised(&core)), (vec![(at(2, 10), worker)], 0));
    let returned = core.log.iter().find_map(|(when, effect)| match effect {
        Effect::Return { result, .. } => Some((*when, result.clone())),
        _ => None,
    });
    let (when, result) = returned.expect("the unload has nothing more to wait for");
    assert_eq!(when, at(2, 10));
    assert!(matches!(result, Err(Error::UnloadIncomplete { remaining: Bytes(100), .. })), "{result:?}");
    assert_eq!(core.starts().len(), 2, "the request that waited has a new start");
    core.tell(Input::Ended { worker });
    assert_eq!(found_stuck(&core).len(), 1, "and its end is no further news");
}

#[test]
fn an_idle_worker_that_is_evicted_and_hangs_on_its_way_out_is_stuck_as_well() {
    let mut core = core();
    let worker = loading(&mut core);
    core.tell(Input::Started { worker, footprint: footprint() });
    let request = *core
        .log
        .iter()
        .find_map(|(_, effect)| match effect {
            Effect::Run { requests, .. } => requests.first(),
            _ => None,
        })
        .unwrap();
    core.finish(worker, request);
    core.tell(Input::Evict { worker, reason: EvictionReason::MakeRoom });
    assert_eq!(promised(&core), 1);
    core.wait_until(at(1, 29));
    assert_eq!(found_stuck(&core), []);
    core.wait_until(at(1, 30));
    assert_eq!((found_stuck(&core), promised(&core)), (vec![(at(1, 30), worker)], 0));
}

/// One worker, so three threads at most: what waits beyond that waits for one of them to end, or is refused when
/// all are stuck.
#[test]
fn no_start_leaves_more_threads_than_two_more_than_the_workers() {
    let mut core = core();
    for round in 0..3 {
        loading(&mut core);
        assert_eq!(core.starts().len(), round + 1);
        core.tell(Input::Unload { key: KEY, call: CallId(round as u64), deadline: core.now });
    }
    let (waiting, _) = core.submit();
    core.wait_until(at(1, 59));
    assert_eq!((core.starts().len(), core.failure_of(waiting)), (3, None), "it waits");
    core.tell(Input::Ended { worker: WorkerId(1) });
    assert_eq!(core.starts().len(), 4, "there is a place again");
    core.tell(Input::RoomGranted { worker: WorkerId(4) });
    core.tell(Input::Unload { key: KEY, call: CallId(3), deadline: core.now });
    core.wait_until(at(3, 30));
    assert_eq!(found_stuck(&core).len(), 3);
    assert_eq!((core.failure_of(waiting), core.starts().len()), (Some("spawn_failed"), 4));
    core.tell(Input::Ended { worker: WorkerId(2) });
    core.tell(Input::Ended { worker: WorkerId(3) });
    core.submit();
    assert_eq!(core.starts().len(), 5, "it works again");
}

/// Else each replacement could leave as many threads as the model before it.
#[test]
fn threads_of_a_model_that_was_replaced_count_for_the_one_that_has_its_name() {
    let mut core = core();
    for round in 0..3 {
        loading(&mut core);
        core.tell(Input::Unload { key: KEY, call: CallId(round), deadline: core.now });
    }
    // It has nothing to do any more, so that it starts nothing itself.
    for request in 1..=3 {
        core.tell(Input::Cancel { key: KEY, request: RequestId(request) });
    }
    core.tell(Input::Remove { key: KEY });
    let successor = ModelKey(1);
    let config = PoolConfig::default().with_max_workers(1);
    let policy = ModelPolicy {
        model: ModelId::from("m"),
        device: Device::host(),
        config: config.into(),
        batching: Batching::PerRun,
        pinned: false,
    };
    core.tell(Input::Declare { key: successor, policy });
    let ticket = Ticket::new(RequestId(100), Time::NEVER);
    core.tell(Input::Submit { tickets: vec![(successor, ticket)] });
    assert_eq!(core.starts().len(), 3, "it waits for one of the old ones to end");
    core.tell(Input::Ended { worker: WorkerId(1) });
    assert_eq!(core.starts().len(), 4);
}
