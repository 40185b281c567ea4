//! However a worker dies, the same follows: its thread panics, its actor is killed, or its actor is stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Fuse, Gate, HookedLoader, Scripted, ScriptedLoader, TestSystem, Victim};
use model_actors::{BreakerState, Bytes, CallOptions, Error, Event, ModelSpec, SystemState, WorkerPhase};
use tokio::sync::broadcast::Receiver;

#[derive(Debug, Clone, Copy)]
enum Death {
    Panic,
    Kill,
    Stop,
}

use Death::*;

impl Death {
    async fn strike(self, test: &TestSystem, victim: Victim, fuse: &Fuse) {
        match self {
            Panic => fuse.light(1),
            Kill => test.kill(victim).await,
            Stop => test.stop(victim).await,
        }
    }
}

/// One worker to a model, and so many restarts.
async fn with_restarts(max_restarts: u32) -> TestSystem {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(max_restarts).with_breaker_open(millis(60_000));
    TestSystem::start_with(system, pool.with_restart(restart)).await
}

fn fragile(loader: &ScriptedLoader, fuse: &Fuse) -> HookedLoader<ScriptedLoader> {
    let fuse = fuse.clone();
    HookedLoader::new(loader.clone(), move || fuse.burn())
}

/// The events of a worker's death and of what follows from it, in the order of their names: the end of the
/// dead thread and the start of the next worker are not ordered.
fn told(events: &mut Receiver<Event>) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Ok(event) = events.try_recv() {
        names.push(match event {
            Event::WorkerCrashed { .. } => "crashed",
            Event::RequestsRerun { .. } => "rerun",
            Event::WorkerRestarted { .. } => "restarted",
            Event::WorkerStarted { .. } => "started",
            Event::WorkerEnded { .. } => "ended",
            Event::BreakerOpened { .. } => "breaker opened",
            Event::Queued { .. } | Event::Loading { .. } => continue,
            other => panic!("nothing else happens: {other:?}"),
        });
    }
    names.sort();
    names
}

#[tokio::test]
async fn what_ran_and_what_waited_is_run_by_a_replacement_with_the_same_weights() {
    for death in [Panic, Kill, Stop] {
        let mut test = with_restarts(1).await;
        let (loader, fuse) = (ScriptedLoader::default(), Fuse::default());
        let record = loader.record.clone();
        let spec = ModelSpec::new("model", fragile(&loader, &fuse));
        let model = test.register("model", loader, spec);
        let (gate, running) = occupy(&test, &model).await;
        let waiting = send(&model, Act::Reply(7));
        queued(&test, &model, 1).await;
        let mut events = test.system.events();

        death.strike(&test, Victim::Worker, &fuse).await;
        test.until_model("model", "the death counts", |model| model.failures == 1).await;
        gate.open();
        assert_eq!(end(running).await.unwrap(), 0, "{death:?}");
        assert_eq!(end(waiting).await.unwrap(), 7, "{death:?}");
        let at_rest = |model: &model_actors::ModelStatus| model.workers.len() == 1 && idle(model) == 1;
        let status = test.until_model("model", "the dead thread has ended", at_rest).await;
        assert_eq!((status.breaker, status.bytes), (BreakerState::Closed, Bytes::mib(11)), "{death:?}");
        assert_eq!(charged(&test), Bytes::mib(11), "{death:?}: the dead worker's bytes are back");
        assert_eq!((count(&record.loads), count(&record.builds)), (1, 2), "{death:?}");
        assert_eq!(told(&mut events), ["crashed", "ended", "rerun", "restarted", "started"], "{death:?}");
        test.finish().await;
    }
}

#[tokio::test]
async fn beyond_the_budget_everybody_is_answered_with_the_cause() {
    for (death, words) in [(Panic, "crashes on purpose"), (Kill, "killed"), (Stop, "stopped by a test")] {
        let mut test = with_restarts(0).await;
        let (loader, fuse) = (ScriptedLoader::default(), Fuse::default());
        let spec = ModelSpec::new("model", fragile(&loader, &fuse));
        let model = test.register("model", loader, spec);
        // The one that runs is answered by the replacement, so that the death is the model's.
        let (gate, running) = occupy(&test, &model).await;
        death.strike(&test, Victim::Worker, &fuse).await;
        test.until_model("model", "the death is seen", |model| model.failures == 1).await;
        gate.open();
        assert_eq!(end(running).await.unwrap(), 0, "{death:?}");
        test.until_model("model", "the breaker opens", |model| model.breaker == BreakerState::Open).await;

        let (gate, running) = occupy(&test, &model).await;
        let waiting = send(&model, Act::Reply(7));
        queued(&test, &model, 1).await;
        let mut events = test.system.events();
        death.strike(&test, Victim::Worker, &fuse).await;
        for pending in [running, waiting] {
            let error = end(pending).await.unwrap_err();
            assert!(matches!(&error, Error::CircuitOpen { .. }), "{death:?}: {error}");
            assert!(error.to_string().contains(words), "{death:?}: {error}");
        }
        gate.open();
        test.until_model("model", "the thread has ended", |model| model.workers.is_empty()).await;
        assert_eq!(charged(&test), Bytes::ZERO, "{death:?}");
        assert_eq!(told(&mut events), ["crashed", "ended", "rerun"], "{death:?}");
        test.finish().await;
    }
}

#[tokio::test]
async fn a_stream_that_has_begun_is_told_of_the_crash() {
    for death in [Panic, Kill, Stop] {
        let test = with_restarts(1).await;
        let (loader, fuse, gate) = (ScriptedLoader::default(), Fuse::default(), Gate::default());
        let record = loader.record.clone();
        let model = test.streams().register(ModelSpec::new("model", fragile(&loader, &fuse))).unwrap();
        let stream =
            model.stream(Act::StreamThenWork(2, gate.latch()).into(), CallOptions::default()).await.unwrap();
        until_true(|| gate.was_reached()).await;

        death.strike(&test, Victim::StreamedWorker, &fuse).await;
        let output = tokio::time::timeout(millis(30_000), stream.output());
        let error = output.await.expect("every stream ends").unwrap_err();
        assert!(matches!(error, Error::WorkerCrashed { .. }), "{death:?}: {error}");
        gate.open();
        assert_eq!(model.call(Act::Stream(3).into(), CallOptions::default()).await.unwrap(), 3, "{death:?}");
        assert_eq!((count(&record.loads), count(&record.builds)), (1, 2), "{death:?}");
        test.finish().await;
    }
}

/// An idle thread runs no code that could panic.
#[tokio::test]
async fn an_idle_worker_that_is_killed_or_stopped_is_replaced() {
    for death in [Kill, Stop] {
        let mut test = with_restarts(1).await;
        let loader = ScriptedLoader::default();
        let record = loader.record.clone();
        let model = test.model("model", loader);
        model.preload().await.unwrap();
        let mut events = test.system.events();
        death.strike(&test, Victim::Worker, &Fuse::default()).await;
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7, "{death:?}");
        let at_rest = |model: &model_actors::ModelStatus| model.workers.len() == 1 && model.failures == 1;
        test.until_model("model", "the dead thread has ended", at_rest).await;
        assert_eq!((count(&record.loads), count(&record.builds)), (1, 2), "{death:?}");
        assert_eq!(told(&mut events), ["crashed", "ended", "restarted", "started"], "{death:?}");
        test.finish().await;
    }
}

#[tokio::test]
async fn a_load_whose_worker_is_killed_or_stopped_is_tried_again() {
    for death in [Kill, Stop] {
        let mut test = with_restarts(1).await;
        let gate = Gate::default();
        let loader = ScriptedLoader { load_works: Some(gate.latch()), ..ScriptedLoader::default() };
        let record = loader.record.clone();
        let model = test.model("model", loader);
        let pending = send(&model, Act::Reply(7));
        until_true(|| gate.was_reached()).await;
        death.strike(&test, Victim::Worker, &Fuse::default()).await;
        test.until_model("model", "the death counts", |model| model.failures == 1).await;
        gate.open();
        assert_eq!(end(pending).await.unwrap(), 7, "{death:?}");
        assert_eq!(count(&record.loads), 2, "{death:?}");
        test.until_model("model", "the dead thread has ended", |model| {
            model.workers.len() == 1 && in_phase(model, WorkerPhase::Idle) == 1
        })
        .await;
        test.finish().await;
    }
}

/// A system whose pool has been killed while the thread of one of its workers hangs, and come back.
async fn with_a_thread_of_an_earlier_pool(
    (system, pool): (model_actors::SystemConfig, model_actors::PoolConfig),
) -> (TestSystem, model_actors::ModelHandle<Scripted>, Gate) {
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let mut events = test.system.events();
    let gate = kill_the_pool_over_a_hanging_run(&test, &model).await;
    until_the_pool_is_back(&mut events).await;
    (test, model, gate)
}

/// Has a run hang until the gate opens, and kills the pool, which tells the caller.
async fn kill_the_pool_over_a_hanging_run(
    test: &TestSystem,
    model: &model_actors::ModelHandle<Scripted>,
) -> Gate {
    let gate = Gate::default();
    let pending = send(model, Act::Hang(gate.latch()));
    until_true(|| gate.was_reached()).await;
    test.kill(Victim::Pool).await;
    assert!(matches!(end(pending).await, Err(Error::RecvError { .. })));
    gate
}

async fn until_the_pool_is_back(events: &mut Receiver<Event>) {
    let is_back = |event: &Event| matches!(event, Event::PoolRestarted { .. }).then_some(());
    TestSystem::event(events, "the pool is back", is_back).await;
}

/// Kills the pool and waits until it is back.
async fn lose_the_pool(test: &TestSystem) {
    let mut events = test.system.events();
    test.kill(Victim::Pool).await;
    until_the_pool_is_back(&mut events).await;
}

#[tokio::test]
async fn the_next_pool_knows_the_threads_and_the_bytes_that_the_last_one_left() {
    let (test, model, gate) = with_a_thread_of_an_earlier_pool(single()).await;
    let status = test.until_model("model", "it lists the thread", |model| model.workers.len() == 1).await;
    assert_eq!((status.bytes, charged(&test)), (Bytes::mib(11), Bytes::mib(11)));
    let worker = &status.workers[0];
    assert_eq!((&*worker.name, worker.phase), ("model#1 scripted", WorkerPhase::Draining));

    let error = model.unload(millis(50)).await.unwrap_err();
    assert!(
        matches!(&error, Error::UnloadIncomplete { remaining, .. } if *remaining == Bytes::mib(11)),
        "{error}"
    );
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2, "the model serves beside it");
    let status = test.until_model("model", "it has a worker", |model| idle(model) == 1).await;
    assert!(status.workers.iter().any(|worker| &*worker.name == "model#2 scripted"), "no number twice");
    let unload = tokio::spawn({
        let model = model.clone();
        async move { model.unload(std::time::Duration::from_secs(20)).await }
    });
    test.until_model("model", "its own worker has gone", |model| model.workers.len() == 1).await;
    assert!(!unload.is_finished(), "bytes are still charged");
    gate.open();
    unload.await.unwrap().unwrap();
    assert_eq!(charged(&test), Bytes::ZERO);
    test.finish().await;
}

/// The pool is back or down when the system is shut down, or has taken the system with it.
#[tokio::test]
async fn a_shutdown_reports_the_threads_that_a_dead_pool_left() {
    for (restarts, backoff) in [(3, 5), (3, 60_000), (0, 5)] {
        let (mut system, pool) = single();
        system.restart.max_restarts = restarts;
        (system.restart.first_backoff, system.restart.max_backoff) = (millis(backoff), millis(backoff));
        let mut test = TestSystem::start_with(system.with_shutdown_timeout(millis(200)), pool).await;
        let model = test.model("model", ScriptedLoader::default());
        let gate = kill_the_pool_over_a_hanging_run(&test, &model).await;
        test.until("the pool is down", |status| !status.pool("scripted").unwrap().live).await;
        if backoff < 1000 && restarts > 0 {
            test.until("the pool is back", |status| status.pool("scripted").unwrap().live).await;
        }
        let report = test.system.shutdown().await;
        assert_eq!(report.unfinished_threads, ["model#1 scripted"], "{restarts} restarts after {backoff} ms");
        assert_eq!(report.remaining, Bytes::mib(11));
        gate.open();
        until_true(|| charged(&test) == Bytes::ZERO).await;
        let _ = test.shut_down().await;
    }
}

/// A thread that ends by itself is waited for, also if its pool does not come back before the end.
#[tokio::test]
async fn a_shutdown_waits_for_the_threads_that_a_dead_pool_left() {
    let (mut system, pool) = single();
    (system.restart.first_backoff, system.restart.max_backoff) = (millis(60_000), millis(60_000));
    let mut test = TestSystem::start_with(system.with_shutdown_timeout(millis(20_000)), pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let gate = kill_the_pool_over_a_hanging_run(&test, &model).await;
    test.until("the pool is down", |status| !status.pool("scripted").unwrap().live).await;
    let system = test.system.clone();
    let shutdown = tokio::spawn(async move { system.shutdown().await });
    test.until("it shuts down", |status| status.state == SystemState::ShuttingDown).await;
    gate.open();
    assert!(shutdown.await.unwrap().is_clean());
    test.finish().await;
}

/// A pin and its end outlive the pool that was told of them, also while a thread of the model does.
#[tokio::test]
async fn the_next_pool_knows_the_pins_that_the_last_one_was_told_of() {
    for pinned in [true, false] {
        let mut test = start(single()).await;
        let loader = ScriptedLoader::default();
        let mut spec = ModelSpec::new("model", loader.clone());
        if !pinned {
            spec = spec.pinned();
        }
        let model = test.register("model", loader, spec);
        model.pin(pinned).await.unwrap();
        let mut events = test.system.events();
        let gate = kill_the_pool_over_a_hanging_run(&test, &model).await;
        until_the_pool_is_back(&mut events).await;
        let status = test.until_model("model", "it lists the thread", |model| model.workers.len() == 1).await;
        assert_eq!(status.pinned, pinned);
        gate.open();
        test.finish().await;
    }
}

/// Bytes that nobody may count on are not promised again.
#[tokio::test]
async fn the_next_pool_knows_the_threads_that_the_last_one_found_stuck() {
    let (system, mut pool) = single();
    (pool.stall.run, pool.stall.load) = (millis(300), millis(300));
    let mut test = start((system, pool)).await;
    let model = test.model("model", ScriptedLoader::default());
    let gate = Gate::default();
    let pending = send(&model, Act::Hang(gate.latch()));
    assert!(matches!(end(pending).await, Err(Error::WorkerStuck { .. })));
    lose_the_pool(&test).await;
    let status = test.until_model("model", "it lists the thread", |model| !model.workers.is_empty()).await;
    assert_eq!(in_phase(&status, WorkerPhase::Stuck), 1, "{status:?}");
    gate.open();
    test.until_model("model", "it has ended", |model| model.workers.is_empty()).await;
    test.finish().await;
}

/// The bound on a model's threads is not got round by killing the pool.
#[tokio::test]
async fn the_thread_that_a_dead_pool_left_is_stuck_after_the_stall_limit() {
    let (system, mut pool) = single();
    (pool.stall.run, pool.stall.load) = (millis(50), millis(50));
    let (test, model, gate) = with_a_thread_of_an_earlier_pool((system, pool)).await;
    test.until_model("model", "it is stuck", |model| in_phase(model, WorkerPhase::Stuck) == 1).await;
    assert!(matches!(model.unload(millis(10_000)).await, Err(Error::UnloadIncomplete { .. })));
    gate.open();
    test.until_model("model", "it has ended", |model| model.workers.is_empty()).await;
    model.unload(millis(10_000)).await.unwrap();
    test.finish().await;
}
