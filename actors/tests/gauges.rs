//! A gauge shows no worker of a pool that has ended, although the model is not used again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use model_actors::Event;
use model_actors::testing::{Act, ScriptedLoader, TestSystem, Victim};

/// The number of loaded workers that the gauge shows for all models. Reading a recorder may empty it.
fn workers(metrics: &Snapshotter) -> f64 {
    let gauges = metrics.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| match value {
        DebugValue::Gauge(value) if key.key().name() == "model_actors_workers" => Some(value.0),
        _ => None,
    });
    gauges.sum()
}

#[tokio::test]
async fn a_dead_pools_gauges_are_set_back() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    recorder.install().expect("nothing else records in this process");
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.until_model("model", "its worker is idle", |model| idle(model) == 1).await;
    let mut events = test.system.events();
    test.kill(Victim::Pool).await;
    let is_back = |event: &Event| matches!(event, Event::PoolRestarted { .. }).then_some(());
    TestSystem::event(&mut events, "the pool is back", is_back).await;
    assert_eq!(workers(&metrics), 0.0);
    test.finish().await;
}
