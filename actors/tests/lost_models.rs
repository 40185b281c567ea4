//! Models that are lost while nothing runs: whoever asks next goes to another worker and is not blamed, however often that
//! happens in a row. The losses are the model's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod timeline;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use model_actors::scheduler::{Batching, Effect, Fate, Input};
use model_actors::testing::{Act, Scripted, ScriptedLoader, TestSystem};
use model_actors::{
    Batch, Cause, Error, Failure, Footprint, LoadContext, Loader, Model, ModelHandle, ModelSpec, PoolConfig,
    RequestId, Weights,
};
use timeline::{Core, at};

/// A model whose first workers are lost as soon as they are loaded.
#[derive(Clone)]
struct Lost {
    times: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Loader<Scripted> for Lost {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }
    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Scripted>>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl Weights<Scripted> for Lost {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Scripted>>, Failure> {
        let left = self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Ok(Box::new(LostModel { is_lost: left.is_ok(), asked: self.asked.clone() }))
    }
}

struct LostModel {
    is_lost: bool,
    asked: Arc<AtomicUsize>,
}

impl Model<Scripted> for LostModel {
    fn run(&mut self, batch: &mut Batch<Scripted>) -> Result<(), Failure> {
        assert!(!self.is_lost, "a model that is lost is asked for nothing");
        for item in batch.items() {
            self.asked.fetch_add(1, Ordering::SeqCst);
            item.finish(7);
        }
        Ok(())
    }

    fn health(&mut self) -> Result<(), Cause> {
        if self.is_lost { Err(Cause::new("its device is gone")) } else { Ok(()) }
    }
}

/// A model that is lost so many times, whose deaths no health check finds.
async fn lost(times: usize, budget: u32) -> (TestSystem, ModelHandle<Scripted>, Lost) {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(budget).with_breaker_open(millis(60_000));
    let system = system.with_maintenance_interval(Duration::from_secs(3600));
    let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
    let loader = Lost { times: self::times(times), asked: self::times(0) };
    let model = test.register("model", ScriptedLoader::default(), ModelSpec::new("model", loader.clone()));
    (test, model, loader)
}

#[tokio::test]
async fn a_request_outlives_any_number_of_lost_models() {
    let (test, model, loader) = lost(5, 20).await;
    let requests: Vec<_> = (0..4).map(|_| send(&model, Act::Reply(7))).collect();
    for request in requests {
        assert_eq!(end(request).await.unwrap(), 7);
    }
    assert_eq!(count(&loader.asked), 4, "each ran once");
    refresh(&model).await;
    let status = test.until_model("model", "the losses are counted", |model| model.failures == 5).await;
    assert_eq!(status.recent_failures, 5, "they are the model's own");
    test.finish().await;
}

#[tokio::test]
async fn a_model_that_is_always_lost_is_given_up() {
    let (test, model, loader) = lost(usize::MAX, 2).await;
    let error = refused(&model, Act::Reply(7)).await;
    assert!(
        matches!(&error, Error::CircuitOpen { cause, .. } if cause.message().contains("gone")),
        "{error}"
    );
    assert_eq!(count(&loader.asked), 0);
    test.finish().await;
}

/// Loses the worker that has the request, with these fates of requests.
fn lose(core: &mut Core, request: RequestId, fates: &[(RequestId, Fate)]) -> Vec<Effect> {
    let worker = *core.runs_of(request).last().unwrap();
    let effects = core.tell(Input::Died { worker, cause: Cause::new("crashed"), fates: fates.to_vec() });
    core.tell(Input::Ended { worker });
    effects
}

fn core(batching: Batching) -> Core {
    let config = PoolConfig::default();
    let restart = config.restart.with_max_restarts(20);
    Core::batching(config.with_max_workers(1).with_restart(restart), batching)
}

#[test]
fn a_request_that_no_model_had_is_never_poison() {
    let mut core = core(Batching::PerRun);
    let (request, _) = core.submit();
    for minute in 1..10 {
        assert_eq!(core.runs_of(request).len(), minute, "it goes to each new worker");
        lose(&mut core, request, &[(request, Fate::Unbegun)]);
        core.wait_until(at(minute as u64, 0));
    }
    // The two deaths of which it may be the cause are still found.
    for minute in 10..12 {
        assert_eq!(core.failure_of(request), None);
        lose(&mut core, request, &[(request, Fate::Untouched)]);
        core.wait_until(at(minute, 0));
    }
    assert_eq!(core.failure_of(request), Some("poison"));
}

#[test]
fn one_that_had_not_joined_yet_leaves_the_other_alone_with_the_blame() {
    let mut core = core(Batching::Continuous);
    let ((guilty, _), (joining, _)) = (core.submit(), core.submit());
    assert_eq!(core.runs_of(guilty), core.runs_of(joining), "they run together");
    lose(&mut core, guilty, &[(guilty, Fate::Untouched), (joining, Fate::Unbegun)]);
    core.wait_until(at(1, 0));
    assert_eq!((core.runs_of(guilty).len(), core.runs_of(joining).len()), (2, 1), "the suspect runs alone");
    lose(&mut core, guilty, &[(guilty, Fate::Untouched)]);
    core.wait_until(at(2, 0));
    assert_eq!((core.failure_of(guilty), core.failure_of(joining)), (Some("poison"), None));
    assert_eq!(core.runs_of(joining).len(), 2);
}

#[test]
fn one_whose_caller_has_gone_is_forgotten() {
    let mut core = core(Batching::PerRun);
    let (request, _) = core.submit();
    let effects = lose(&mut core, request, &[(request, Fate::Unwanted)]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Forget { request: of } if *of == request)));
    core.wait_until(at(1, 0));
    assert_eq!(core.runs_of(request).len(), 1);
}
