//! Status and events of the tree: a snapshot that serialises, live, ready and serving told apart, and events for
//! everything that happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem, Victim};
use model_actors::{BreakerState, Bytes, Event, EvictionReason, LoadStage, SystemState, WorkerPhase};
use tokio::sync::broadcast::Receiver;

/// The events that have come, by name.
fn names(events: &mut Receiver<Event>) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        names.push(match event {
            Event::Loading { .. } => "loading",
            Event::Queued { .. } => "queued",
            Event::WorkerStarted { .. } => "started",
            Event::StartFailed { .. } => "start failed",
            Event::WorkerEvicted { .. } => "evicted",
            Event::WorkerEnded { .. } => "ended",
            Event::WorkerCrashed { .. } => "crashed",
            Event::RequestsRerun { .. } => "rerun",
            Event::WorkerRestarted { .. } => "restarted",
            Event::WorkerStuck { .. } => "stuck",
            Event::BreakerOpened { .. } => "breaker opened",
            Event::BreakerClosed { .. } => "breaker closed",
            _ => "other",
        });
    }
    names.dedup();
    names
}

async fn event(events: &mut Receiver<Event>, what: &str, is: impl Fn(&Event) -> bool) {
    TestSystem::event(events, what, |event| is(event).then_some(())).await;
}

#[tokio::test]
async fn a_snapshot_serialises_with_everything_in_it() {
    let mut test = start(single()).await;
    let model = test.model("acme/model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(1));
    queued(&test, &model, 1).await;
    let json = serde_json::to_value(test.system.status()).unwrap();
    assert_eq!(json["state"], "running");
    let pool = &json["pools"][0];
    assert_eq!((&pool["capability"], &pool["live"]), (&"scripted".into(), &true.into()));
    let model = &pool["models"][0];
    for (field, expected) in [
        ("model", "acme/model".into()),
        ("device", "host".into()),
        ("pinned", false.into()),
        ("queued_interactive", 1.into()),
        ("queued_batch", 0.into()),
        ("in_flight", 1.into()),
        ("failures", 0.into()),
        ("breaker", "closed".into()),
        ("bytes", Bytes::mib(11).0.into()),
        ("loading", serde_json::Value::Null),
    ] {
        assert_eq!(model[field], expected, "{field} of {model}");
    }
    let worker = &model["workers"][0];
    assert_eq!((&worker["name"], &worker["phase"]), (&"model#1 scripted".into(), &"busy".into()));
    let memory = &json["memory"][0];
    assert_eq!(
        (&memory["charged"], &memory["limit"]),
        (&Bytes::mib(11).0.into(), &Bytes::mib(1024).0.into())
    );
    gate.open();
    end(running).await.unwrap();
    end(waiting).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn live_ready_and_serving_are_three_things() {
    let (mut system, pool) = single();
    (system.restart.first_backoff, system.restart.max_backoff) = (millis(50), millis(50));
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let status = test.until("every pool is up", |status| status.is_ready()).await;
    assert!(status.model("scripted", "model").is_none(), "ready, but no model serves yet");
    model.preload().await.unwrap();
    assert!(test.system.status().model("scripted", "model").unwrap().is_serving());
    model.unload(millis(5000)).await.unwrap();
    test.until_model("model", "it serves no more", |model| !model.is_serving()).await;
    assert!(test.system.status().is_ready(), "and is still ready");
    test.kill(Victim::Pool).await;
    let down = test.until("the pool is down", |status| !status.is_ready()).await;
    assert_eq!(down.state, SystemState::Running, "live, but not ready");
    test.until("the pool is back", |status| status.is_ready()).await;
    test.finish().await;
}

/// A caller who waits for readiness before the first request waits no longer than needed, and not too short.
#[tokio::test]
async fn a_system_is_ready_as_soon_as_every_pool_accepts() {
    let (mut system, pool) = single();
    system.maintenance_interval = std::time::Duration::from_secs(3600);
    let mut test = TestSystem::start_with(system, pool).await;
    assert!(test.system.status().is_ready(), "at once, although nothing has happened");
    let model = test.model("model", ScriptedLoader::default());
    for value in 0..3 {
        test.kill(Victim::Pool).await;
        test.until("the pool is down", |status| !status.is_ready()).await;
        test.until("the pool is back", |status| status.is_ready()).await;
        assert_eq!(ask(&model, Act::Reply(value)).await.unwrap(), value, "ready is ready");
    }
    test.finish().await;
}

#[tokio::test]
async fn a_worker_goes_through_its_phases() {
    let mut test = start(single()).await;
    let gates = [Gate::default(), Gate::default()];
    let loader = ScriptedLoader { load_works: Some(gates[0].latch()), ..ScriptedLoader::default() };
    let model = test.model("model", loader);
    let pending = send(&model, Act::Work(gates[1].latch()));
    let half_loaded = |model: &model_actors::ModelStatus| {
        model.loading.is_some_and(|load| load.stage == LoadStage::Load && load.percent == Some(50))
    };
    let loading = test.until_model("model", "half of it is loaded", half_loaded).await;
    assert_eq!(in_phase(&loading, WorkerPhase::Loading), 1);
    gates[0].open();
    let running = test.until_model("model", "it runs", |model| busy(model) == 1).await;
    assert_eq!((running.loading, running.in_flight, running.workers[0].running), (None, 1, 1));
    let unload = tokio::spawn({
        let model = model.clone();
        async move { model.unload(millis(20)).await }
    });
    assert!(unload.await.unwrap().is_err(), "it is busy");
    gates[1].open();
    end(pending).await.unwrap();
    test.until_model("model", "it is idle", |model| idle(model) == 1).await;
    test.finish().await;
}

#[tokio::test]
async fn a_load_is_told_byte_by_byte_at_most_a_hundred_times() {
    let mut test = start(single()).await;
    let mut events = test.system.events();
    test.model("model", weights(20)).preload().await.unwrap();
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Loading { stage: LoadStage::Load, done, total, .. } = event {
            seen.push((done, total));
        }
    }
    let total = Some(Bytes::mib(20));
    assert_eq!(seen, [(Bytes(0), total), (Bytes::mib(10), total), (Bytes::mib(20), total)]);
    test.finish().await;
}

#[tokio::test]
async fn a_life_is_told_from_its_start_to_its_end() {
    let mut test = start(single()).await;
    let mut events = test.system.events();
    let model = test.model("model", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    model.unload(millis(5000)).await.unwrap();
    assert_eq!(names(&mut events), ["queued", "loading", "started", "evicted", "ended"]);

    ask(&model, Act::PanicTimes(times(1))).await.unwrap();
    // The end of the first thread and the start of the second are not ordered.
    let told: Vec<_> = names(&mut events).into_iter().filter(|name| *name != "ended").collect();
    assert_eq!(told, ["queued", "loading", "started", "crashed", "rerun", "restarted", "started"]);
    test.finish().await;
}

#[tokio::test]
async fn trouble_is_told_as_it_happens() {
    let (system, mut pool) = single();
    pool.stall.run = millis(50);
    pool.restart = pool.restart.with_max_restarts(1).with_breaker_open(millis(100));
    let system = system.with_memory_limit(Bytes::mib(50));
    let mut test = TestSystem::start_with(system, pool).await;
    let mut events = test.system.events();
    let gate = Gate::default();
    let model = test.model("model", weights(20));
    refused(&model, Act::Hang(gate.latch())).await;
    event(&mut events, "stuck", |event| matches!(event, Event::WorkerStuck { .. })).await;
    event(&mut events, "restarted", |event| matches!(event, Event::WorkerRestarted { failures: 1, .. }))
        .await;
    gate.open();

    let failing = test.model("failing", ScriptedLoader { load_fails: 2, ..weights(1) });
    refused(&failing, Act::Reply(1)).await;
    event(&mut events, "start failed", |event| matches!(event, Event::StartFailed { .. })).await;
    event(&mut events, "opened", |event| matches!(event, Event::BreakerOpened { .. })).await;
    test.until_model("failing", "it is open", |model| model.breaker == BreakerState::Open).await;

    test.until_model("model", "the stuck thread has ended", |model| model.workers.len() == 1).await;
    let needy = test.model("needy", weights(40));
    needy.preload().await.unwrap();
    event(&mut events, "evicted", |event| {
        matches!(event, Event::WorkerEvicted { reason: EvictionReason::MakeRoom, .. })
    })
    .await;
    test.system.shutdown().await;
    event(&mut events, "shutting down", |event| matches!(event, Event::ShuttingDown)).await;
    test.finish().await;
}
