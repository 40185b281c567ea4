//! Preload, unload and pin: each ends by its deadline, and one whose caller has gone is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, TestSystem};
use model_actors::{Error, ModelHandle, RequestPhase};

/// More than a pool has places for.
const MANY: usize = 100;
const LONG: Duration = Duration::from_secs(20);

/// A loader whose loads make progress and do not end before the gate opens.
fn endless(gate: &Gate) -> ScriptedLoader {
    ScriptedLoader { load_works: Some(gate.latch()), ..ScriptedLoader::default() }
}

/// Sends a call and drops it, before or after the pool has read it; the pool answers calls on the other model.
async fn abandon(
    call: impl Future<Output = model_actors::Result<()>>,
    is_read: bool,
    other: &ModelHandle<Scripted>,
) {
    let mut call = Box::pin(call);
    assert!(is_pending(&mut call).await, "it waits");
    if is_read {
        refresh(other).await;
    }
    drop(call);
    refresh(other).await;
}

#[tokio::test]
async fn calls_whose_callers_have_gone_block_nobody() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let loading = test.model("loading", endless(&gate));
    let busy = test.model("busy", ScriptedLoader::default());
    let other = test.model("other", ScriptedLoader::default());
    let (work, running) = occupy(&test, &busy).await;
    for number in 0..MANY {
        abandon(loading.preload(), number % 2 == 0, &other).await;
        abandon(busy.unload(Duration::MAX), number % 2 == 0, &other).await;
    }
    for model in [&loading, &busy, &other] {
        let calls = async {
            model.pin(true).await.unwrap();
            model.pin(false).await.unwrap();
        };
        tokio::time::timeout(LONG, calls).await.expect("nobody waits for strangers");
    }
    other.preload().await.unwrap();
    other.unload(LONG).await.unwrap();
    assert!(matches!(busy.unload(millis(1)).await, Err(Error::UnloadIncomplete { .. })), "it is still busy");
    work.open();
    assert_eq!(end(running).await.unwrap(), 0);
    // The load that was begun for callers who have gone goes on.
    gate.open();
    test.until_model("loading", "it is loaded all the same", |model| idle(model) == 1).await;
    test.finish().await;
}

#[tokio::test]
async fn the_calls_of_one_model_do_not_crowd_out_those_of_another_nor_its_own_unload() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let loading = test.model("loading", endless(&gate));
    let other = test.model("other", ScriptedLoader::default());
    let mut waiting: Vec<_> = (0..MANY).map(|_| Box::pin(loading.preload())).collect();
    for call in &mut waiting {
        assert!(is_pending(call).await);
    }
    let all = async {
        other.preload().await.unwrap();
        other.pin(true).await.unwrap();
        other.unload(LONG).await.unwrap();
        loading.pin(false).await.unwrap();
    };
    tokio::time::timeout(LONG, all).await.expect("they wait for nobody");
    gate.open();
    for call in waiting {
        call.await.unwrap();
    }
    loading.unload(LONG).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn a_preload_ends_by_its_deadline_and_the_load_goes_on() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system, pool.with_preload_timeout(millis(50))).await;
    let gate = Gate::default();
    let model = test.model("model", endless(&gate));
    let request = send(&model, Act::Reply(1));
    test.until_model("model", "it loads", |model| model.loading.is_some()).await;
    let mut waiting: Vec<_> = (0..MANY).map(|_| Box::pin(model.preload())).collect();
    for call in &mut waiting {
        assert!(is_pending(call).await);
    }
    for call in waiting {
        let error = call.await.unwrap_err();
        assert!(
            matches!(&error, Error::Timeout { phase: RequestPhase::Loading { .. }, after, .. } if *after == millis(50)),
            "{error}"
        );
    }
    gate.open();
    assert_eq!(end(request).await.unwrap(), 1);
    model.preload().await.unwrap();
    test.finish().await;
}

/// An unload that its caller drops has been asked for by nobody: what is busy stays.
#[tokio::test]
async fn an_abandoned_unload_lets_the_model_be() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    abandon(model.unload(LONG), true, &model).await;
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(count(&record.loads), 1);
    test.finish().await;
}

#[tokio::test]
async fn calls_that_wait_at_the_shutdown_are_told_of_it() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system.with_shutdown_timeout(millis(100)), pool).await;
    let gate = Gate::default();
    let model = test.model("model", endless(&gate));
    let calls: Vec<_> = (0..MANY)
        .map(|_| {
            let model = model.clone();
            tokio::spawn(async move { model.preload().await })
        })
        .collect();
    test.until_model("model", "it loads", |model| model.loading.is_some()).await;
    let _ = test.shut_down().await;
    for call in calls {
        let error = tokio::time::timeout(LONG, call).await.expect("it ends").unwrap().unwrap_err();
        assert!(matches!(error, Error::ShuttingDown), "{error}");
    }
    gate.open();
}
