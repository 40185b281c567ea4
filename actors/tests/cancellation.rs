//! A caller that goes away, or runs out of time, costs nothing more: queued work never runs, running work sees the
//! mark at its next step, and the slot is back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem};
use model_actors::{
    Batch, Bytes, CallOptions, Error, Failure, Footprint, LoadContext, Loader, Model, ModelHandle, ModelSpec,
    QueueCapacity, RequestPhase, Weights, testing::Scripted,
};

fn within(timeout: Duration) -> CallOptions {
    CallOptions::default().with_timeout(timeout)
}

/// Waits until nobody holds a slot.
async fn all_slots_free(model_system: &TestSystem) {
    let client = model_system.client();
    until_true(|| client.slots().0 == client.slots().1).await;
}

#[tokio::test]
async fn queued_work_of_a_caller_that_has_gone_never_runs() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let gone: Vec<Pending> = (0..5).map(|_| send(&model, Act::Panic)).collect();
    queued(&test, &model, 5).await;
    for pending in gone {
        pending.abort();
        let _ = pending.await;
    }
    queued(&test, &model, 0).await;
    let (free, all) = test.client().slots();
    assert_eq!(all - free, 1, "their slots are back");
    gate.open();
    end(running).await.unwrap();
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(record.requests_run(), 2);
    test.finish().await;
}

/// The word that a caller has gone may come after its batch was formed; the mark is there before.
#[tokio::test]
async fn a_cancelled_request_never_runs_however_late_the_word_of_it_comes() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let gate = Gate::default();
    let mut running = Box::pin(ask(&model, Act::Work(gate.latch())));
    assert!(is_pending(&mut running).await);
    test.until_model("model", "it runs", |model| busy(model) == 1).await;
    let mut gone = Box::pin(ask(&model, Act::Panic));
    assert!(is_pending(&mut gone).await);
    queued(&test, &model, 1).await;
    // The pool shares this thread, so nothing of this reaches it before the next real wait: first the thread says
    // that it has finished, which wakes the pool, then the caller goes.
    let runtime = tokio::runtime::Handle::current().metrics();
    assert_eq!(runtime.global_queue_depth(), 0);
    gate.open();
    while is_pending(&mut running).await {
        std::thread::yield_now();
    }
    // The report comes a moment after the answer.
    while runtime.global_queue_depth() == 0 {
        std::thread::yield_now();
    }
    drop(gone);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(record.requests_run(), 2);
    test.finish().await;
}

#[tokio::test]
async fn running_work_sees_the_mark_at_its_next_step() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let running = send(&model, Act::Steps(u64::MAX));
    until_true(|| count(&record.steps) > 0).await;
    running.abort();
    let _ = running.await;
    let steps = count(&record.steps);
    refresh(&model).await;
    test.until_model("model", "it is idle", |model| idle(model) == 1).await;
    let after = count(&record.steps) - steps;
    assert!(after <= 1, "the step that had begun, and no more; not {after}");
    all_slots_free(&test).await;
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.finish().await;
}

/// The run ends with the one that nobody waits for, which is its neighbour's business only in that it runs again.
#[tokio::test]
async fn who_goes_away_does_not_take_the_neighbour_along() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let never = Gate::default();
    let gone = send(&model, Act::WorkOrStopAll(never.latch()));
    queued(&test, &model, 1).await;
    let neighbour = send(&model, Act::Reply(7));
    queued(&test, &model, 2).await;
    gate.open();
    end(running).await.unwrap();
    until_true(|| count(&record.runs) == 2).await;
    gone.abort();
    let _ = gone.await;
    assert_eq!(end(neighbour).await.unwrap(), 7);
    assert_eq!(count(&record.runs), 3);
    test.finish().await;
}

#[tokio::test]
async fn a_deadline_ends_running_work_too() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    model.preload().await.unwrap();
    let error = model.call(Act::Steps(u64::MAX).into(), within(millis(50))).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: RequestPhase::Running, .. }), "{error}");
    refresh(&model).await;
    test.until_model("model", "it is idle", |model| idle(model) == 1).await;
    test.finish().await;
}

#[tokio::test]
async fn a_timeout_says_in_which_phase_it_struck() {
    use RequestPhase::*;
    for phase in [WaitingForSlot, Queued, Loading { percent: Some(50) }, Running] {
        let (system, pool) = single();
        let pool = pool.with_queue(QueueCapacity::new(2, 1));
        let mut test = TestSystem::start_with(system, pool).await;
        let gate = Gate::default();
        let loads = matches!(phase, Loading { .. }).then(|| gate.latch());
        let model = test.model("model", ScriptedLoader { load_works: loads, ..ScriptedLoader::default() });
        let mut others: Vec<Pending> = Vec::new();
        if matches!(phase, WaitingForSlot | Queued) {
            others.push(send(&model, Act::Work(gate.latch())));
            test.until_model("model", "it runs", |model| busy(model) == 1).await;
        }
        if phase == WaitingForSlot {
            others.push(send(&model, Act::Reply(1)));
            queued(&test, &model, 1).await;
        }
        if phase == Running {
            model.preload().await.unwrap();
        }
        let timeout = millis(60);
        let error = model.call(Act::Work(gate.latch()).into(), within(timeout)).await.unwrap_err();
        match error {
            Error::Timeout { phase: at, after, .. } => assert_eq!((at, after), (phase, timeout)),
            other => panic!("{phase:?}: {other}"),
        }
        gate.open();
        for other in others {
            end(other).await.unwrap();
        }
        all_slots_free(&test).await;
        test.finish().await;
    }
}

#[tokio::test]
async fn a_deadline_strikes_while_the_model_waits_for_room_or_for_its_backoff() {
    for waits_for in ["room", "backoff"] {
        let (system, mut pool) = single();
        let system = system.with_memory_limit(Bytes::mib(30));
        (pool.restart.first_backoff, pool.restart.max_backoff) = (millis(60_000), millis(60_000));
        pool.room_wait = Duration::from_secs(60);
        let mut test = TestSystem::start_with(system, pool).await;
        let gate = Gate::default();
        let first = test.model("first", weights(20));
        let load_fails = usize::from(waits_for == "backoff");
        let model = test.model("model", ScriptedLoader { load_fails, ..weights(20) });
        let other = (waits_for == "room").then(|| send(&first, Act::Work(gate.latch())));
        if other.is_some() {
            test.until_model("first", "it runs", |model| busy(model) == 1).await;
        }
        let error = model.call(Act::Reply(1).into(), within(millis(60))).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { phase: RequestPhase::Queued, .. }), "{waits_for}: {error}");
        gate.open();
        if let Some(other) = other {
            end(other).await.unwrap();
        }
        all_slots_free(&test).await;
        test.finish().await;
    }
}

#[tokio::test]
async fn a_timeout_of_nothing_is_one_and_runs_nothing() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    model.preload().await.unwrap();
    let error = model.call(Act::Reply(1).into(), within(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    all_slots_free(&test).await;
    assert_eq!(record.requests_run(), 0);
    test.finish().await;
}

/// A caller that goes away while it waits for a slot leaves no trace.
#[tokio::test]
async fn waiting_for_a_slot_can_be_given_up() {
    let (system, pool) = single();
    let pool = pool.with_queue(QueueCapacity::new(1, 1));
    let mut test = TestSystem::start_with(system, pool).await;
    let model: ModelHandle<Scripted> = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let mut waits = Box::pin(model.call(Act::Panic.into(), CallOptions::default()));
    assert!(is_pending(&mut waits).await, "it waits");
    drop(waits);
    gate.open();
    end(running).await.unwrap();
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.finish().await;
}

/// Stops each request as soon as nobody waits for it, sooner than its pool may find that; one that asks for a reply, at once.
struct Eager;

impl Loader<Scripted> for Eager {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }
    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Scripted>>, Failure> {
        Ok(Arc::new(Eager))
    }
}

impl Weights<Scripted> for Eager {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Scripted>>, Failure> {
        Ok(Box::new(Eager))
    }
}

impl Model<Scripted> for Eager {
    fn run(&mut self, batch: &mut Batch<Scripted>) -> Result<(), Failure> {
        for item in batch.items() {
            while !matches!(item.request().act, Act::Reply(_)) && !item.should_stop() {
                item.tick();
            }
            item.fail(Failure::stopped());
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_caller_who_waits_is_not_told_that_it_has_gone() {
    let mut test = start(single()).await;
    let model = test.register("model", ScriptedLoader::default(), ModelSpec::new("model", Eager));
    for _ in 0..20 {
        let late = end(send_with(&model, Act::Panic, within(millis(20)))).await;
        let is_running = |phase: &RequestPhase| *phase == RequestPhase::Running;
        assert!(matches!(&late, Err(Error::Timeout { phase, .. }) if is_running(phase)), "{late:?}");
    }
    let stopped = refused(&model, Act::Reply(1)).await;
    assert!(matches!(stopped, Error::ModelError { .. }), "{stopped}");
    test.finish().await;
}
