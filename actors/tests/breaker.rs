//! A model that fails too often is left alone for a while: its callers are told why and for how long, and one
//! probe decides what comes next.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem};
use model_actors::{BreakerState, Error, Event};

/// One restart, then the breaker opens for this long.
const OPEN: Duration = Duration::from_millis(200);

async fn fragile() -> TestSystem {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(1).with_breaker_open(OPEN);
    TestSystem::start_with(system, pool.with_restart(restart)).await
}

fn failing(load_fails: usize) -> ScriptedLoader {
    ScriptedLoader { load_fails, ..ScriptedLoader::default() }
}

/// Returns the wait and the cause that a refused caller is told.
fn refusal(error: Error) -> (Duration, String) {
    match error {
        Error::CircuitOpen { retry_after, cause, .. } => (retry_after, cause.to_string()),
        other => panic!("not a refusal: {other}"),
    }
}

async fn state(test: &TestSystem, state: BreakerState) {
    test.until_model("model", &format!("the breaker is {state:?}"), |model| model.breaker == state).await;
}

/// Does as the refusal says. The time it names is what is promised here, and no status or event tells that it
/// is over: the breaker looks at the clock when the next request comes.
async fn heed(retry_after: Duration) {
    tokio::time::sleep(retry_after).await;
}

#[tokio::test]
async fn it_opens_with_the_true_cause_and_answers_the_whole_queue() {
    let mut test = fragile().await;
    let mut events = test.system.events();
    let gate = Gate::default();
    let loader = ScriptedLoader { load_works: Some(gate.latch()), ..failing(2) };
    let model = test.model("model", loader);
    let waiting: Vec<Pending> = (0..5).map(|value| send(&model, Act::Reply(value))).collect();
    queued(&test, &model, 5).await;
    gate.open();
    for pending in waiting {
        let (retry_after, cause) = refusal(end(pending).await.unwrap_err());
        assert_eq!(retry_after, OPEN);
        assert!(cause.contains("load 1 fails"), "{cause}");
    }
    let told = TestSystem::event(&mut events, "the breaker opens", |event| match event {
        Event::BreakerOpened { retry_after, .. } => Some(*retry_after),
        _ => None,
    })
    .await;
    assert_eq!(told, OPEN);
    test.finish().await;
}

#[tokio::test]
async fn while_it_is_open_nothing_is_tried() {
    let mut test = fragile().await;
    let loader = failing(2);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    refused(&model, Act::Reply(1)).await;
    assert_eq!(
        test.system.status().model("scripted", "model").unwrap().breaker,
        BreakerState::Open,
        "shown at once"
    );
    for _ in 0..3 {
        let (retry_after, _) = refusal(refused(&model, Act::Reply(1)).await);
        assert!(retry_after <= OPEN);
        let (retry_after, _) = refusal(model.preload().await.unwrap_err());
        assert!(retry_after <= OPEN);
    }
    assert_eq!(count(&record.loads), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_probe_that_succeeds_closes_it_and_clears_the_record() {
    let mut test = fragile().await;
    let mut events = test.system.events();
    let loader = failing(2);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (retry_after, _) = refusal(refused(&model, Act::Reply(1)).await);
    heed(retry_after).await;
    let gate = Gate::default();
    let probe = send(&model, Act::Work(gate.latch()));
    until_true(|| gate.was_reached()).await;
    refresh(&model).await;
    state(&test, BreakerState::HalfOpen).await;
    let others: Vec<Pending> = (1..4).map(|value| send(&model, Act::Reply(value))).collect();
    queued(&test, &model, 3).await;
    assert_eq!(record.batches()[0].len(), 1, "the probe runs alone");
    gate.open();
    end(probe).await.unwrap();
    for (value, pending) in (1..4).zip(others) {
        assert_eq!(end(pending).await.unwrap(), value);
    }
    let closes = |event: &Event| matches!(event, Event::BreakerClosed { .. }).then_some(());
    TestSystem::event(&mut events, "the breaker closes", closes).await;
    refresh(&model).await;
    let status =
        test.until_model("model", "it is closed", |model| model.breaker == BreakerState::Closed).await;
    assert_eq!((status.recent_failures, status.failures), (0, 2));
    test.finish().await;
}

#[tokio::test]
async fn a_probe_that_fails_opens_it_again_at_once() {
    let mut test = fragile().await;
    let loader = failing(3);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (retry_after, _) = refusal(refused(&model, Act::Reply(1)).await);
    heed(retry_after).await;
    let (retry_after, cause) = refusal(refused(&model, Act::Reply(1)).await);
    assert_eq!((count(&record.loads), retry_after), (3, OPEN), "one load, and no budget of restarts");
    assert!(cause.contains("load 2 fails"), "{cause}");
    heed(retry_after).await;
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    test.finish().await;
}

#[tokio::test]
async fn panics_open_it_too_and_a_poisonous_probe_does_not_keep_it_open() {
    let mut test = fragile().await;
    let model = test.model("model", ScriptedLoader::default());
    // Each panic is another request's, and none is poison, as its rerun shows: then the death is the model's.
    for _ in 0..2 {
        assert_eq!(ask(&model, Act::PanicTimes(times(1))).await.unwrap(), 0, "run again");
    }
    state(&test, BreakerState::Open).await;
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "the last replacement still serves");
    let (retry_after, cause) = refusal(refused(&model, Act::PanicTimes(times(1))).await);
    assert!(cause.contains("the script says panic"), "{cause}");
    heed(retry_after).await;
    let error = refused(&model, Act::Panic).await;
    assert!(matches!(error, Error::Poison { .. }), "{error}");
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7, "a poisonous probe says nothing of the model");
    test.finish().await;
}

#[tokio::test]
async fn it_is_one_models_own() {
    let mut test = fragile().await;
    let model = test.model("model", failing(2));
    let other = test.model("other", ScriptedLoader::default());
    refused(&model, Act::Reply(1)).await;
    state(&test, BreakerState::Open).await;
    assert_eq!(ask(&other, Act::Reply(2)).await.unwrap(), 2);
    test.finish().await;
}
