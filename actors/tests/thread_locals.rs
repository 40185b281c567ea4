//! Thread-locals of model code go with their worker's thread, which has ended only when they have gone: an unload waits for
//! them, and threads that hang in them are bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use model_actors::testing::{Gate, Latch, Scripted, ScriptedLoader, TestSystem};
use model_actors::{
    Batch, Bytes, Error, Failure, Footprint, LoadContext, Loader, Model, ModelHandle, ModelSpec, StallLimits,
    Weights,
};

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Waits at the gate when it is dropped, and counts.
struct Kept(Latch, Arc<AtomicUsize>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.wait(Duration::from_secs(20));
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// A model whose build keeps something in a thread-local.
#[derive(Clone)]
struct Keeps(Latch, Arc<AtomicUsize>);

impl Loader<Scripted> for Keeps {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::new(Bytes::mib(1), Bytes::mib(1)))
    }
    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Scripted>>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl Weights<Scripted> for Keeps {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes::mib(1), Bytes::mib(1))
    }
    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Scripted>>, Failure> {
        // Something else that has a thread-local goes on working: spans are entered on this thread.
        KEPT.with(|kept| *kept.borrow_mut() = Some(Kept(self.0.clone(), self.1.clone())));
        Ok(Box::new(self.clone()))
    }
}

impl Model<Scripted> for Keeps {
    fn run(&mut self, batch: &mut Batch<Scripted>) -> Result<(), Failure> {
        batch.items().iter().for_each(|item| item.finish(0));
        Ok(())
    }
}

/// A system in which a thread is stuck 100 ms after it should have ended, on one that logs: its spans have thread-locals
/// too, which are gone when the end of a thread is told.
async fn impatient() -> TestSystem {
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let (system, pool) = single();
    TestSystem::start_with(system, pool.with_stall(StallLimits::default().with_run(millis(100)))).await
}

fn register(test: &mut TestSystem, gate: &Gate, ended: &Arc<AtomicUsize>) -> ModelHandle<Scripted> {
    let spec = ModelSpec::new("model", Keeps(gate.latch(), ended.clone()));
    test.register("model", ScriptedLoader::default(), spec)
}

#[tokio::test]
async fn an_unload_waits_for_the_thread_locals_of_a_worker() {
    let mut test = impatient().await;
    let (gate, ended) = (Gate::default(), times(0));
    let model = register(&mut test, &gate, &ended);
    model.preload().await.unwrap();
    let error = model.unload(millis(5_000)).await.unwrap_err();
    assert!(matches!(error, Error::UnloadIncomplete { .. }), "{error}");
    assert_eq!(count(&ended), 0);
    gate.open();
    until_true(|| count(&ended) == 1).await;
    test.until_model("model", "its end is told", |model| model.workers.is_empty()).await;
    test.finish().await;
}

#[tokio::test]
async fn threads_that_hang_in_a_thread_local_are_bounded() {
    let mut test = impatient().await;
    let (gate, ended) = (Gate::default(), times(0));
    let model = register(&mut test, &gate, &ended);
    let mut refused = 0;
    for _ in 0..10 {
        match model.preload().await {
            Ok(()) => drop(model.unload(millis(5_000)).await.unwrap_err()),
            Err(error) => {
                assert!(matches!(error, Error::SpawnFailed { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 8, "two hang, the one that there may be and one to spare");
    assert_eq!(test.system.status().model("scripted", "model").unwrap().workers.len(), 2);
    gate.open();
    test.until_model("model", "both have ended", |model| model.workers.is_empty()).await;
    model.preload().await.unwrap();
    test.finish().await;
    assert_eq!(count(&ended), 3);
}
