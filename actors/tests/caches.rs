//! Caches in the budget: they take what is free, give it back before a worker is evicted, and go with their model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem};
use model_actors::{Bytes, Error, Event, MemoryStatus};

/// A model of 20 MiB whose replies are kept, each in a MiB.
fn keeping() -> ScriptedLoader {
    ScriptedLoader { cached_by_reply: Bytes::mib(1) - Bytes(1024), ..weights(19) }
}

/// A system with so many MiB for one worker a model.
async fn limited(mib: u64) -> TestSystem {
    let (system, pool) = single();
    TestSystem::start_with(system.with_memory_limit(Bytes::mib(mib)), pool).await
}

fn memory(test: &TestSystem) -> MemoryStatus {
    test.system.status().memory[0].clone()
}

/// Whole MiB of all caches.
fn cached(test: &TestSystem) -> u64 {
    memory(test).cached.0.div_ceil(1 << 20)
}

#[tokio::test]
async fn a_cache_takes_what_is_free_and_goes_with_its_model() {
    let mut test = limited(30).await;
    let model = test.model("keeping", keeping());
    for value in 0..100 {
        assert_eq!(ask(&model, Act::Reply(value)).await.unwrap(), value);
        let MemoryStatus { charged, cached, limit, .. } = memory(&test);
        assert!(charged <= limit && cached == charged - Bytes::mib(20), "{charged} of {limit}");
    }
    assert_eq!(cached(&test), 10);
    model.unload(millis(5000)).await.unwrap();
    assert_eq!((charged(&test), cached(&test)), (Bytes::ZERO, 0));
    test.finish().await;
}

#[tokio::test]
async fn a_load_has_caches_shrink_before_a_worker_goes() {
    let mut test = limited(60).await;
    let mut events = test.system.events();
    let (keeps, idle) = (test.model("keeping", keeping()), test.model("idle", weights(4)));
    idle.preload().await.unwrap();
    for value in 0..40 {
        ask(&keeps, Act::Reply(value)).await.unwrap();
    }
    assert_eq!(cached(&test), 35);
    let needed = test.model("needed", weights(29));
    assert_eq!(ask(&needed, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(cached(&test), 5, "no more went than was needed");
    let status = test.system.status();
    for model in ["keeping", "idle", "needed"] {
        assert_eq!(status.model("scripted", model).unwrap().workers.len(), 1, "{model}");
    }
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::WorkerEvicted { .. }), "{event:?}");
    }
    test.finish().await;
}

#[tokio::test]
async fn what_caches_hold_is_in_the_way_of_no_further_worker() {
    let (system, pool) = TestSystem::quick();
    let (system, pool) = (system.with_memory_limit(Bytes::mib(30)), pool.with_cold_start_workers(1));
    let mut test = TestSystem::start_with(system, pool.with_max_workers(2)).await;
    let model = test.model("keeping", keeping());
    for value in 0..20 {
        ask(&model, Act::Reply(value)).await.unwrap();
    }
    // A further worker may have been tried for already.
    assert!(cached(&test) >= 9);
    let (gate, first) = occupy(&test, &model).await;
    let second = send(&model, Act::Work(gate.latch()));
    test.until_model("keeping", "two workers run", |model| busy(model) == 2).await;
    assert!(cached(&test) <= 9);
    gate.open();
    for reply in [first, second] {
        end(reply).await.unwrap();
    }
    test.finish().await;
}

#[tokio::test]
async fn a_load_that_never_fits_takes_nothing_from_caches() {
    let mut test = limited(30).await;
    let (keeps, huge) = (test.model("keeping", keeping()), test.model("huge", weights(40)));
    for value in 0..20 {
        ask(&keeps, Act::Reply(value)).await.unwrap();
    }
    assert_eq!(cached(&test), 10);
    let error = refused(&huge, Act::Reply(1)).await;
    assert!(matches!(error, Error::MemoryExhausted { .. }), "{error}");
    assert_eq!(cached(&test), 10);
    test.finish().await;
}

#[tokio::test]
async fn under_pressure_caches_go_before_a_worker_does() {
    let used = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(50));
    let probed = used.clone();
    let (system, pool) = single();
    let memory = move || {
        model_actors::ProcessMemory::new(Bytes(100), Bytes(probed.load(std::sync::atomic::Ordering::SeqCst)))
    };
    let system = system.with_memory_limit(Bytes::mib(60)).with_maintenance_interval(millis(50));
    let mut test = TestSystem::start_with_memory((system, pool), memory).await;
    let mut events = test.system.events();
    let model = test.model("keeping", keeping());
    for value in 0..5 {
        ask(&model, Act::Reply(value)).await.unwrap();
    }
    assert_eq!(cached(&test), 5);
    used.store(99, std::sync::atomic::Ordering::SeqCst);
    TestSystem::event(&mut events, "a worker is evicted", |event| {
        matches!(event, Event::WorkerEvicted { .. }).then_some(())
    })
    .await;
    assert_eq!(cached(&test), 0, "what it held went first");
    test.finish().await;
}
