//! A model that nobody asks for gives its memory back, one worker after the other; any request resets the clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem};
use model_actors::{Bytes, Event, EvictionReason};
use tokio::sync::broadcast::Receiver;

const IDLE: Duration = Duration::from_millis(120);
const INTERVAL: Duration = Duration::from_millis(60);

/// Workers go after `IDLE`, then one more each `INTERVAL`.
async fn cooling(workers: usize) -> TestSystem {
    let (system, pool) = TestSystem::quick();
    let pool = pool.with_cooldown_idle(IDLE).with_max_workers(4).with_cold_start_workers(workers);
    TestSystem::start_with(system.with_maintenance_interval(INTERVAL), pool).await
}

async fn next_eviction(events: &mut Receiver<Event>) -> (String, u64) {
    TestSystem::event(events, "a worker cools down", |event| match event {
        Event::WorkerEvicted { model, worker, reason, .. } => {
            assert_eq!(*reason, EvictionReason::Cooldown);
            Some((model.to_string(), worker.0))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn an_idle_model_cools_down_one_by_one_to_nothing() {
    let mut test = cooling(4).await;
    let mut events = test.system.events();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    ask(&model, Act::Reply(1)).await.unwrap();
    test.until_model("model", "all have started", |model| idle(model) == 4).await;
    let idle_since = Instant::now() - millis(60); // The last of them started a little before this was seen.
    for gone in 0..4 {
        next_eviction(&mut events).await;
        assert!(
            idle_since.elapsed() >= IDLE + INTERVAL * gone,
            "worker {gone} after {:?}",
            idle_since.elapsed()
        );
    }
    test.until_model("model", "nothing is left", |model| model.workers.is_empty()).await;
    assert_eq!((charged(&test), count(&record.weights_alive)), (Bytes::ZERO, 0));
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2, "the next request loads it again");
    test.finish().await;
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let mut test = cooling(2).await;
    let mut events = test.system.events();
    let model = test.model("model", ScriptedLoader::default());
    model.preload().await.unwrap();
    test.until_model("model", "both have started", |model| model.workers.len() == idle(model)).await;
    // One of them works; the other has been idle for longer then.
    let (gate, running) = occupy(&test, &model).await;
    let status = test.until_model("model", "one runs", |model| busy(model) == 1).await;
    let used = status.workers.iter().find(|worker| worker.running == 1).unwrap().worker.0;
    gate.open();
    end(running).await.unwrap();
    assert_ne!(next_eviction(&mut events).await.1, used);
    test.finish().await;
}

#[tokio::test]
async fn any_request_resets_the_clock() {
    let mut test = cooling(2).await;
    let mut events = test.system.events();
    let model = test.model("model", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    next_eviction(&mut events).await;
    ask(&model, Act::Reply(2)).await.unwrap();
    let asked = Instant::now() - millis(20); // The worker fell idle a little before the answer was read.
    next_eviction(&mut events).await;
    assert!(asked.elapsed() >= IDLE, "after {:?}", asked.elapsed());
    test.finish().await;
}

#[tokio::test]
async fn a_pinned_model_stays_until_it_is_unpinned() {
    let mut test = cooling(1).await;
    let mut events = test.system.events();
    let pinned = test.model("pinned", ScriptedLoader::default());
    let other = test.model("other", ScriptedLoader::default());
    pinned.pin(true).await.unwrap();
    pinned.preload().await.unwrap();
    for _ in 0..2 {
        other.preload().await.unwrap();
        assert_eq!(next_eviction(&mut events).await.0, "other");
    }
    let status = test.system.status();
    assert_eq!(idle(status.model("scripted", "pinned").unwrap()), 1);
    pinned.pin(false).await.unwrap();
    assert_eq!(next_eviction(&mut events).await.0, "pinned");
    test.finish().await;
}
