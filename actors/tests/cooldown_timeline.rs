//! A model that has been idle for the cooldown time loses its least recently used worker, then one more each interval,
//! to the second; any request resets the clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use timeline::{Core, KEY, at};

use model_actors::scheduler::{CallId, Effect, Input};
use model_actors::{BatchLimits, EvictionReason, PoolConfig, RequestId, Time, WorkerId};

/// Four workers, one request each, all idle at 5:00. Worker 1 is the least recently used, then 2, 3, 4.
fn four_idle_at_five() -> Core {
    let batch = BatchLimits::default().with_requests(1);
    let mut core = Core::new(PoolConfig::default().with_cold_start_workers(4).with_batch(batch));
    core.now = at(4, 50);
    core.preload();
    let requests: Vec<RequestId> = (0..4).map(|_| core.submit().0).collect();
    for (request, seconds) in requests.into_iter().zip([57, 58, 59, 60]) {
        core.wait_until(at(4, seconds));
        let worker = core.runs_of(request)[0];
        core.finish(worker, request);
    }
    core
}

fn cooldowns(core: &Core) -> Vec<(Time, u64)> {
    core.stops(EvictionReason::Cooldown).into_iter().map(|(when, worker)| (when, worker.0)).collect()
}

#[test]
fn the_design_s_timeline_holds_to_the_second() {
    let mut core = four_idle_at_five();
    core.wait_until(at(7, 30));
    assert_eq!(cooldowns(&core), [(at(6, 0), 1), (at(7, 0), 2)]);

    let (request, effects) = core.submit();
    let worker = core.runs_of(request)[0];
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Reserve { .. })), "two are enough for one");
    core.wait_until(at(8, 30));
    core.finish(worker, request);
    assert_eq!(cooldowns(&core).len(), 2, "the request kept the remaining two");

    core.wait_until(at(20, 0));
    let other = if worker == WorkerId(3) { 4 } else { 3 };
    assert_eq!(cooldowns(&core)[2..], [(at(9, 30), other), (at(10, 30), worker.0)]);
    assert_eq!(core.scheduler.cooldown_alarm(), Time::NEVER, "nothing is left to cool down");
}

#[test]
fn a_request_just_before_the_end_resets_the_clock() {
    let mut core = four_idle_at_five();
    core.wait_until(at(5, 59));
    let (request, _) = core.submit();
    let worker = core.runs_of(request)[0];
    core.finish(worker, request);
    core.wait_until(at(6, 58));
    assert_eq!(cooldowns(&core), []);
    core.wait_until(at(6, 59));
    assert_eq!(cooldowns(&core).len(), 1);
}

#[test]
fn a_pinned_model_stays_and_cools_down_once_it_is_not() {
    let mut core = four_idle_at_five();
    core.tell(Input::Pin { key: KEY, pinned: true });
    core.wait_until(at(30, 0));
    assert_eq!(cooldowns(&core), []);
    core.tell(Input::Pin { key: KEY, pinned: false });
    core.wait_until(at(31, 0));
    assert_eq!(cooldowns(&core), [(at(30, 0), 1), (at(31, 0), 2)]);
}

#[test]
fn whoever_went_is_not_started_again_until_it_is_needed() {
    let mut core = four_idle_at_five();
    core.wait_until(at(9, 0));
    assert_eq!(cooldowns(&core).len(), 4);
    assert_eq!(core.starts().len(), 4);
    core.submit();
    assert!(core.starts().len() > 4, "the first request after that is a cold start");
}

#[test]
fn an_eviction_in_between_does_not_hasten_the_next_cooldown() {
    let mut core = four_idle_at_five();
    core.wait_until(at(5, 30));
    // The most recently used one goes, the others were idle longer.
    core.tell(Input::Evict { worker: WorkerId(4), reason: EvictionReason::MakeRoom });
    core.wait_until(at(5, 59));
    assert_eq!(cooldowns(&core), []);
    core.wait_until(at(7, 0));
    assert_eq!(cooldowns(&core), [(at(6, 0), 1), (at(7, 0), 2)]);
}

#[test]
fn an_unload_leaves_nothing_to_cool_down() {
    let mut core = four_idle_at_five();
    let effects = core.tell(Input::Unload { key: KEY, call: CallId(9), deadline: at(6, 0) });
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Return { call: CallId(9), result: Ok(()) })),
        "{effects:?}"
    );
    core.wait_until(at(30, 0));
    assert_eq!(cooldowns(&core), []);
}
