//! Settings read from a file: what is not named is as usual, and what is misspelt is refused. One worker is one setting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::PoolConfig;
use model_actors::testing::{Act, ScriptedLoader, TestSystem};

#[test]
fn a_file_may_name_a_part_of_a_pools_settings_and_no_unknown_ones() {
    let read = |text: &str| serde_json::from_str::<PoolConfig>(text);
    let part =
        r#"{"batch": {"requests": 4}, "stall": {"run": {"secs": 9, "nanos": 0}}, "queue": {"batch": 7}}"#;
    let config = read(part).unwrap();
    let usual = PoolConfig::default();
    assert_eq!((config.batch.requests, config.batch.cost), (4, usual.batch.cost));
    assert_eq!((config.stall.run.as_secs(), config.stall.load), (9, usual.stall.load));
    assert_eq!(config.queue.map(|queue| (queue.interactive, queue.batch)), Some((100, 7)));
    for unknown in
        [r#"{"batch": {"request": 4}}"#, r#"{"stall": {"runs": 9}}"#, r#"{"queue": {"interactiv": 7}}"#]
    {
        assert!(read(unknown).is_err(), "{unknown}");
    }
}

#[tokio::test]
async fn one_worker_is_one_setting() {
    let (system, _) = TestSystem::quick();
    let pool = PoolConfig::default().with_max_workers(1);
    assert!(pool.cold_start_workers > 1, "a cold start would like more");
    let mut test = TestSystem::start_with(system, pool).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.until_model("model", "it is idle", |model| idle(model) == 1).await;
    assert_eq!(count(&record.builds), 1);
    test.finish().await;
}
