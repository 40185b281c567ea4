//! However a worker dies, the same follows: its thread panics, its actor is killed, or its actor is stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Fuse, Gate, HookedLoader, ScriptedLoader, TestSystem, Victim};
use model_actors::{BreakerState, Bytes, CallOptions, Error, Event, ModelSpec, WorkerPhase};
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
        assert_eq!(told(&mut events), ["breaker opened", "crashed", "ended", "rerun"], "{death:?}");
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
