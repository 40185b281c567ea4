//! A start that would fail the same way again is told to everybody at once with its cause, and is not held
//! against the model: no breaker, no restart budget, and a sibling that serves goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod timeline;

use std::time::Duration;

use common::*;
use model_actors::scheduler::{Effect, Input};
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem};
use model_actors::{
    BatchLimits, BreakerState, Error, Failure, FailureKind, Footprint, PoolConfig, RestartConfig,
};
use timeline::{Core, at};

#[tokio::test]
async fn everybody_who_waits_gets_the_cause_at_once_and_the_next_request_tries_afresh() {
    const FAILURES: usize = 5;
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(0).with_breaker_open(millis(60_000));
    let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
    let gate = Gate::default();
    let loader = ScriptedLoader {
        load_works: Some(gate.latch()),
        load_fails: FAILURES,
        failure: FailureKind::Permanent,
        ..ScriptedLoader::default()
    };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let mut waiting: Vec<Pending> = (0..4).map(|value| send(&model, Act::Reply(value))).collect();
    let preload = tokio::spawn({
        let model = model.clone();
        async move { model.preload().await.map(|()| 0) }
    });
    queued(&test, &model, 4).await;
    gate.open();
    waiting.push(preload);
    for pending in waiting {
        let error = end(pending).await.unwrap_err();
        let Error::SpawnFailed { cause, .. } = &error else { panic!("{error}") };
        assert!(cause.to_string().contains("load 0 fails"), "{error}");
    }
    assert_eq!(count(&record.loads), 1, "one load for all of them");

    for load in 1..FAILURES {
        let error = refused(&model, Act::Reply(1)).await;
        assert!(error.to_string().contains(&format!("load {load} fails")), "{error}");
    }
    let status = test.system.status();
    let status = status.model("scripted", "model").unwrap();
    assert_eq!((status.breaker, status.failures, status.recent_failures), (BreakerState::Closed, 0, 0));
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7, "its files are right by now");
    test.finish().await;
}

#[test]
fn a_second_worker_s_permanent_failure_leaves_the_serving_sibling_alone() {
    let restart = RestartConfig::default().with_max_restarts(0);
    let batch = BatchLimits::default().with_requests(1);
    let config = PoolConfig::default()
        .with_max_workers(2)
        .with_cold_start_workers(1)
        .with_restart(restart)
        .with_batch(batch);
    let mut core = Core::new(config);
    core.now = at(1, 0);
    let first = core.submit().0;
    let serving = core.runs_of(first)[0];
    core.starts_by_hand = true;
    let waiting = core.submit().0;
    let (_, failing) = core.starts()[1];
    core.tell(Input::RoomGranted { worker: failing });
    let failure = Failure::permanent("unsupported architecture");
    let effects = core.tell(Input::StartFailed { worker: failing, failure });
    core.tell(Input::Ended { worker: failing });

    let touched =
        |effect: &Effect| matches!(effect, Effect::Fail { .. } | Effect::Stop { .. } | Effect::Run { .. });
    assert!(!effects.iter().any(touched), "{effects:?}");
    assert!(core.openings().is_empty(), "no breaker");
    core.wait_until(core.now + Duration::from_millis(999));
    assert_eq!(core.starts().len(), 2, "no further worker for a moment");
    core.finish(serving, first);
    assert_eq!(core.runs_of(waiting), [serving]);
    core.finish(serving, waiting);

    // With the next burst, after the pause, one more is tried.
    core.wait_until(at(1, 5));
    core.submit();
    core.submit();
    let (_, third) = core.starts()[2];
    core.tell(Input::RoomGranted { worker: third });
    let effects = core.tell(Input::Started { worker: third, footprint: Footprint::default() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Run { worker, .. } if *worker == third)));
}
