//! A request ends with its answer: the shortest way through client, pool, worker and thread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use model_actors::testing::{Act, ScriptedLoader, TestSystem};
use model_actors::{CallOptions, Error};

#[tokio::test]
async fn a_request_is_answered_and_nothing_is_left_behind() {
    let mut test = TestSystem::start().await;
    let model = test.model("model", ScriptedLoader::default());
    assert_eq!(model.call(Act::Reply(7).into(), CallOptions::default()).await.unwrap(), 7);
    assert!(test.finish().await.is_clean());
}

#[tokio::test]
async fn a_failure_says_what_the_model_said() {
    let mut test = TestSystem::start().await;
    let model = test.model("model", ScriptedLoader::default());
    let error = model.call(Act::Fail.into(), CallOptions::default()).await.unwrap_err();
    assert!(
        matches!(&error, Error::ModelError { cause, .. } if cause.to_string().contains("batch fails")),
        "{error}"
    );
    test.finish().await;
}

#[tokio::test]
async fn a_panic_is_survived() {
    let mut test = TestSystem::start().await;
    let model = test.model("model", ScriptedLoader::default());
    let error = model.call(Act::Panic.into(), CallOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Poison { deaths: 2, .. }), "{error}");
    assert_eq!(model.call(Act::Reply(1).into(), CallOptions::default()).await.unwrap(), 1);
    test.finish().await;
}
