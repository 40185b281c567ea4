//! Whom a death is charged to: the model alone where no request may be its cause. A request that has streamed, run out of
//! time or lost its caller before it killed its worker may be, and so may one that is never run to its end again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use model_actors::testing::{
    Act, Gate, Scripted, ScriptedCapability, ScriptedLoader, StreamedScript, TestSystem,
};
use model_actors::{
    Batch, BreakerState, Bytes, CallOptions, Error, Event, Failure, Footprint, LoadContext, Loader, Model,
    ModelHandle, ModelSpec, Weights,
};

/// Runs its requests side by side until each has come to its end. Notes that it has panicked.
#[derive(Clone, Default)]
struct SideBySide(Arc<AtomicBool>);

impl<C: ScriptedCapability> Loader<C> for SideBySide {
    fn footprint(&self, _context: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::new(Bytes::mib(1), Bytes::mib(1)))
    }
    fn load(&self, _context: &LoadContext) -> Result<Arc<dyn Weights<C>>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl<C: ScriptedCapability> Weights<C> for SideBySide {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes::mib(1), Bytes::mib(1))
    }
    fn build(&self, _context: &LoadContext) -> Result<Box<dyn Model<C>>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl<C: ScriptedCapability> Model<C> for SideBySide {
    fn run(&mut self, batch: &mut Batch<C>) -> Result<(), Failure> {
        let (mut done, mut emitted) = (Vec::new(), Vec::new());
        loop {
            for item in batch.items() {
                if done.contains(&item.id()) {
                    continue;
                }
                batch.tick();
                match &item.request().act {
                    Act::Reply(value) => item.finish(*value),
                    // Makes its first output, and goes on until nobody wants more.
                    Act::Stream(_) if !emitted.contains(&item.id()) => {
                        let _ = C::chunk(0).is_none_or(|chunk| item.emit(chunk).is_ok());
                        emitted.push(item.id());
                        continue;
                    }
                    Act::Stream(_) if !item.should_stop() => continue,
                    Act::StreamThenPanic(_) => {
                        let _ = C::chunk(0).is_none_or(|chunk| item.emit(chunk).is_ok());
                        panic!("the script says panic");
                    }
                    // Looks at no mark, and panics in the end.
                    Act::Hang(latch) => {
                        latch.wait(millis(20_000));
                        panic!("the script says panic");
                    }
                    // Panics the first time, and then works until it is told to stop.
                    Act::BeginThenWork(_) if !self.0.swap(true, Ordering::SeqCst) => {
                        panic!("the script says panic");
                    }
                    Act::BeginThenWork(latch) if !latch.wait(millis(1)) && !item.should_stop() => continue,
                    Act::Work(latch) if !latch.wait(millis(1)) && !item.should_stop() => continue,
                    Act::Work(_) => item.finish(0),
                    _ => {}
                }
                done.push(item.id());
            }
            batch.join();
            if batch.items().iter().all(|item| done.contains(&item.id())) {
                return Ok(());
            }
            batch.pause();
        }
    }
}

/// A model that is closed for a minute by its first failure.
async fn brittle() -> TestSystem {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(0).with_breaker_open(millis(60_000));
    TestSystem::start_with(system, pool.with_restart(restart)).await
}

fn one_shot(test: &mut TestSystem) -> ModelHandle<Scripted> {
    test.register("model", ScriptedLoader::default(), ModelSpec::new("model", SideBySide::default()))
}

fn streamed(test: &mut TestSystem) -> ModelHandle<StreamedScript> {
    test.streams().register(ModelSpec::new("model", SideBySide::default()).continuous()).unwrap()
}

#[tokio::test]
async fn two_streams_that_end_in_one_death_are_not_the_models_failure() {
    let mut test = brittle().await;
    let model = streamed(&mut test);
    for beside in [0, 3] {
        let mut slow = model.stream(Act::Stream(1).into(), CallOptions::default()).await.unwrap();
        assert_eq!(slow.next().await.unwrap().unwrap(), 0, "it runs, and part of its answer is out");
        let innocents: Vec<_> = (0..beside)
            .map(|_| {
                let (model, gate) = (model.clone(), Gate::default());
                let request = Act::Work(gate.latch()).into();
                let call = tokio::spawn(async move { model.call(request, CallOptions::default()).await });
                (gate, call)
            })
            .collect();
        for (gate, _) in &innocents {
            until_true(|| gate.was_reached()).await;
        }
        let poison = model.stream(Act::StreamThenPanic(1).into(), CallOptions::default()).await.unwrap();
        for stream in [slow, poison] {
            let error = stream.output().await.unwrap_err();
            assert!(matches!(error, Error::WorkerCrashed { .. }), "{error}");
        }
        for (gate, call) in innocents {
            gate.open();
            assert_eq!(end(call).await.unwrap(), 0);
        }
        assert_eq!(model.call(Act::Reply(7).into(), CallOptions::default()).await.unwrap(), 7);
    }
    test.finish().await;
}

/// Has a request run beside an innocent one until it is given up, and kill its worker then.
async fn kills_once_given_up(drops: bool) {
    let mut test = brittle().await;
    let model = one_shot(&mut test);
    for _ in 0..2 {
        let (gate, first) = occupy(&test, &model).await;
        let poison = Gate::default();
        let options = CallOptions::default().with_timeout(millis(if drops { 20_000 } else { 700 }));
        let killer = send_with(&model, Act::Hang(poison.latch()), options);
        queued(&test, &model, 1).await;
        let innocent = send(&model, Act::Reply(1));
        queued(&test, &model, 2).await;
        gate.open();
        end(first).await.unwrap();
        until_true(|| poison.was_reached()).await;
        if drops {
            killer.abort();
            assert!(killer.await.unwrap_err().is_cancelled());
        } else {
            assert!(matches!(end(killer).await, Err(Error::Timeout { .. })));
        }
        poison.open();
        assert_eq!(end(innocent).await.unwrap(), 1);
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    }
    test.finish().await;
}

#[tokio::test]
async fn one_that_kills_once_its_time_is_up_is_not_the_models_failure() {
    kills_once_given_up(false).await;
}

#[tokio::test]
async fn one_that_kills_once_its_caller_has_gone_is_not_the_models_failure() {
    kills_once_given_up(true).await;
}

#[tokio::test]
async fn a_suspect_whose_caller_goes_while_it_runs_again_is_not_cleared() {
    let mut test = brittle().await;
    let mut events = test.system.events();
    let model = one_shot(&mut test);
    let (gate, first) = occupy(&test, &model).await;
    let again = Gate::default();
    let killer = send(&model, Act::BeginThenWork(again.latch()));
    queued(&test, &model, 1).await;
    let innocent = send(&model, Act::Reply(1));
    queued(&test, &model, 2).await;
    gate.open();
    end(first).await.unwrap();
    until_true(|| again.was_reached()).await;
    killer.abort();
    assert!(killer.await.unwrap_err().is_cancelled());
    assert_eq!(end(innocent).await.unwrap(), 1);
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    test.finish().await;
    // An answer of the worker that lives would have closed it again.
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::BreakerOpened { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn a_probe_whose_caller_goes_proves_nothing() {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(0).with_breaker_open(millis(50));
    let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
    let model = test.model("model", ScriptedLoader { load_fails: 1, ..ScriptedLoader::default() });
    assert!(model.preload().await.is_err());
    test.until_model("model", "it is closed", |model| model.breaker == BreakerState::Open).await;
    // The breaker refuses until its time has passed.
    let (gate, probe) = loop {
        let gate = Gate::default();
        let probe = send(&model, Act::Work(gate.latch()));
        until_true(|| gate.was_reached() || probe.is_finished()).await;
        if gate.was_reached() {
            break (gate, probe);
        }
    };
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    test.until_model("model", "the worker is idle", |model| idle(model) == 1).await;
    refresh(&model).await;
    let status = test.until_model("model", "that is known", |model| model.in_flight == 0).await;
    assert_eq!(status.breaker, BreakerState::HalfOpen);
    drop(gate);
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    refresh(&model).await;
    test.until_model("model", "an answer opens it", |model| model.breaker == BreakerState::Closed).await;
    test.finish().await;
}
