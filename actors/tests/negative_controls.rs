//! The checks that guard the other tests do catch what they guard against: each is shown what it must not let pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Gate, Leak, ScriptedLoader, TestSystem};
use model_actors::{Bytes, Error};

/// Little time to shut down, so that what hangs is seen soon.
async fn brief() -> TestSystem {
    let (system, pool) = single();
    TestSystem::start_with(system.with_shutdown_timeout(millis(100)), pool).await
}

/// Complaint of `finish()` about a system, if it has one.
async fn complaint(test: TestSystem) -> Option<String> {
    let finished = tokio::spawn(test.finish()).await;
    let panic = finished.err()?.into_panic();
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_clean_test_is_not_complained_of() {
    let mut test = brief().await;
    let model = test.model("model", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    assert_eq!(complaint(test).await, None);
}

#[tokio::test]
async fn a_planted_leak_of_weights_is_caught() {
    let mut test = brief().await;
    let model = test.model("model", ScriptedLoader { weights_leaked: 1, ..ScriptedLoader::default() });
    ask(&model, Act::Reply(1)).await.unwrap();
    let (_, leaks) = test.shut_down().await;
    assert_eq!(leaks, [Leak::Models { model: "model".into(), models: 0, weights: 1 }]);
}

#[tokio::test]
async fn a_planted_hang_is_caught_by_thread_bytes_and_model() {
    for while_loading in [false, true] {
        let mut test = brief().await;
        let gate = Gate::default();
        let load_hangs = while_loading.then(|| gate.latch());
        let model = test.model("model", ScriptedLoader { load_hangs, ..ScriptedLoader::default() });
        let hung = send(&model, Act::Hang(gate.latch()));
        until_true(|| gate.was_reached()).await;
        let complaint = complaint(test).await.expect("the hang is seen");
        assert!(complaint.contains("model#1") && complaint.contains("11.0 MiB"), "{complaint}");
        assert_eq!(complaint.contains("1 models and 1 weights"), !while_loading, "{complaint}");
        assert!(matches!(end(hung).await, Err(Error::ShuttingDown)), "though its caller was answered");
    }
}

/// The other tests of poison would pass if a killer were simply left alone; this one sees that it does kill.
#[tokio::test]
async fn a_planted_poison_kills_and_is_counted() {
    let mut test = brief().await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let error = refused(&model, Act::Panic).await;
    assert!(matches!(error, Error::Poison { deaths: 2, .. }), "{error}");
    refresh(&model).await;
    let status = test.until_model("model", "the deaths are counted", |model| model.failures == 2).await;
    assert_eq!(status.recent_failures, 0, "the request is to blame, and not the model");
    assert_eq!(count(&record.runs), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_test_that_forgets_to_finish_fails() {
    let test = brief().await;
    let system = test.system.clone();
    let dropped = tokio::spawn(async move { drop(test) }).await;
    let panic = dropped.unwrap_err().into_panic();
    assert!(panic.downcast_ref::<&str>().unwrap().contains("without finish()"));
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_leak_says_what_it_is() {
    let leaks = [
        (Leak::Slots { held: 2 }, "2 slots are held"),
        (Leak::Bytes { bytes: Bytes::mib(1) }, "1.0 MiB are charged"),
        (Leak::Threads { names: vec!["m#1".into()] }, "these threads have not ended: [\"m#1\"]"),
    ];
    for (leak, text) in leaks {
        assert_eq!(leak.to_string(), text);
    }
}
