//! After a crash in a continuous run, what was untouched runs together again and others join it; only whoever is there
//! at a second crash runs alone, so that the one that kills is found and the innocent succeed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod timeline;

use std::time::Duration;

use timeline::Core;

use model_actors::scheduler::{Batching, Effect, Fate, Input, ModelPolicy, Ticket};
use model_actors::{
    Cause, Device, Event, ModelId, ModelKey, PoolConfig, RequestId, StallLimits, Time, WorkerId,
};

const KEY: ModelKey = ModelKey(7);

/// A model with continuous batching and one worker.
fn core() -> Core {
    let config = PoolConfig::default().with_cold_start_workers(1).with_max_workers(1);
    let stall = StallLimits::default().with_run(Duration::from_secs(10));
    let mut core = Core::new(PoolConfig::default());
    let policy = ModelPolicy {
        model: ModelId::from("continuous"),
        device: Device::host(),
        config: config.with_stall(stall).into(),
        batching: Batching::Continuous,
        pinned: false,
    };
    core.tell(Input::Declare { key: KEY, policy });
    core
}

fn submit(core: &mut Core, requests: &[u64]) -> Vec<Effect> {
    let ticket = |request: &u64| (KEY, Ticket::new(RequestId(*request), Time::NEVER));
    core.tell(Input::Submit { tickets: requests.iter().map(ticket).collect() })
}

/// All runs so far, in order.
fn runs(core: &Core) -> Vec<Vec<u64>> {
    let run = |(_, effect): &(Time, Effect)| match effect {
        Effect::Run { requests, .. } => Some(requests.iter().map(|request| request.0).collect()),
        _ => None,
    };
    core.log.iter().filter_map(run).collect()
}

fn newest(core: &Core) -> WorkerId {
    core.starts().last().unwrap().1
}

/// Its worker dies, and the replacement is up.
fn crash(core: &mut Core) {
    let worker = newest(core);
    core.tell(Input::Died { worker, cause: Cause::new("it panicked"), fates: Vec::new() });
    core.tell(Input::Ended { worker });
    core.wait_until(core.now + Duration::from_secs(2));
}

#[test]
fn the_untouched_run_together_again_and_others_join_them() {
    let mut core = core();
    submit(&mut core, &[1, 2, 3, 4]);
    let worker = newest(&core);
    let fates = vec![(RequestId(2), Fate::Emitted)];
    core.tell(Input::Died { worker, cause: Cause::new("it panicked"), fates });
    core.tell(Input::Ended { worker });
    core.wait_until(core.now + Duration::from_secs(2));
    submit(&mut core, &[5]);
    assert_eq!(runs(&core), [vec![1, 2, 3, 4], vec![1, 3, 4], vec![5]]);
    assert_eq!(core.runs_of(RequestId(5)), core.runs_of(RequestId(1))[1..], "it has joined them");
    assert_eq!(core.failure_of(RequestId(2)), Some("worker_crashed"));
}

#[test]
fn the_one_that_kills_is_found_and_the_others_succeed() {
    const KILLER: u64 = 3;
    let mut core = core();
    submit(&mut core, &[1, 2, KILLER]);
    for _ in 0..20 {
        let running = runs(&core).pop().unwrap();
        if running.contains(&KILLER) && core.failure_of(RequestId(KILLER)).is_none() {
            crash(&mut core);
            continue;
        }
        if running.iter().all(|request| ended(&core).contains(request)) {
            break;
        }
        for request in running {
            core.finish(newest(&core), RequestId(request));
        }
    }
    assert_eq!(core.failure_of(RequestId(KILLER)), Some("poison"));
    assert_eq!(core.runs_of(RequestId(KILLER)).len(), 3);
    for innocent in [1, 2] {
        assert!(ended(&core).contains(&innocent), "{:?}", runs(&core));
        assert_eq!(core.failure_of(RequestId(innocent)), None);
    }
    let opened =
        core.log.iter().any(|(_, effect)| matches!(effect, Effect::Emit(Event::BreakerOpened { .. })));
    assert!(!opened, "its deaths are not the model's");
}

fn ended(core: &Core) -> Vec<u64> {
    let end = |(_, effect): &(Time, Effect)| match effect {
        Effect::Forget { request } | Effect::Fail { request, .. } => Some(request.0),
        _ => None,
    };
    core.log.iter().filter_map(end).collect()
}

/// A further stall would cost a further thread, which nothing ends.
#[test]
fn what_ran_on_a_worker_that_got_stuck_runs_alone() {
    let mut core = core();
    submit(&mut core, &[1, 2]);
    core.last_progress = Some(core.now);
    core.wait_until(core.now + Duration::from_secs(10));
    core.last_progress = None;
    core.wait_until(core.now + Duration::from_secs(2));
    submit(&mut core, &[3]);
    assert_eq!(runs(&core), [vec![1, 2], vec![1]], "and nobody joins it");
}
