//! A registered model is an entry in a table: no worker, no thread, two kibibytes at most.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Scripted, ScriptedLoader, TestSystem};
use model_actors::{Bytes, CallOptions, Error, ModelId, ModelSpec, PoolConfig, WhenFull};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

const MODELS: usize = 10_000;
const MOST: usize = 2048;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// The whole heap and all threads are counted, so one test runs at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn heap() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn id(number: usize) -> ModelId {
    ModelId::from(format!("an-organisation-of-some-size/a-model-with-a-long-name-{number}"))
}

#[tokio::test]
async fn ten_thousand_models_cost_two_kibibytes_each_at_most_and_no_thread() {
    let _alone = ALONE.lock().await;
    let mut test = start(single()).await;
    let used = test.model("used", ScriptedLoader::default());
    ask(&used, Act::Reply(1)).await.unwrap();
    let client = test.client();
    let record = ScriptedLoader::default().record;
    let loader = || ScriptedLoader { record: record.clone(), ..ScriptedLoader::default() };
    let (heap_before, threads_before) = (heap(), worker_threads());
    for number in 0..MODELS {
        client.register(ModelSpec::new(id(number), loader())).unwrap();
    }
    let each = (heap() - heap_before) / MODELS;
    println!("{each} bytes a model");
    assert!(each <= MOST, "{each} bytes a model");
    assert_eq!(worker_threads(), threads_before);
    assert_eq!(count(&record.sizings) + count(&record.loads), 0, "and no I/O");
    assert_eq!(charged(&test), Bytes::mib(11));
    assert_eq!(
        test.system.status().pool("scripted").unwrap().models.len(),
        1,
        "only what was used is listed"
    );

    for number in [0, MODELS / 2, MODELS - 1] {
        let model = client.handle(id(number)).unwrap();
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    }
    for number in 0..MODELS {
        client.remove(&id(number)).unwrap();
    }
    assert_eq!(client.models(), [ModelId::from("used")]);
    test.finish().await;
}

#[tokio::test]
async fn unknown_models_and_models_registered_twice_are_refused() {
    let _alone = ALONE.lock().await;
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let client = test.client();
    let again = client.register(ModelSpec::new("model", ScriptedLoader::default()));
    assert!(matches!(again, Err(Error::AlreadyRegistered { .. })));
    assert!(matches!(client.handle("unknown"), Err(Error::UnknownModel { .. })));
    assert!(matches!(client.remove(&ModelId::from("unknown")), Err(Error::UnknownModel { .. })));
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "the first one serves on");
    assert_eq!(ask(&client.handle("model").unwrap(), Act::Reply(2)).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_bad_configuration_of_its_own_is_refused() {
    let _alone = ALONE.lock().await;
    let test = start(single()).await;
    let config = PoolConfig::default().with_max_workers(0);
    let refused =
        test.client().register(ModelSpec::<Scripted>::new("model", ScriptedLoader::default()).config(config));
    assert!(matches!(refused, Err(Error::InvalidConfig { .. })));
    assert!(test.client().models().is_empty());
    test.finish().await;
}

/// A model that is taken out finishes what it has, refuses what comes, and can be registered anew.
#[tokio::test]
async fn a_removed_model_finishes_its_work_and_takes_no_more() {
    let _alone = ALONE.lock().await;
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    test.client().remove(model.id()).unwrap();
    let error = refused(&model, Act::Reply(1)).await;
    assert!(matches!(error, Error::UnknownModel { .. }), "{error}");
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    let anew = test.model("model", ScriptedLoader::default());
    assert_eq!(ask(&anew, Act::Reply(2)).await.unwrap(), 2);
    let error = model
        .call(Act::Reply(1).into(), CallOptions::default().with_when_full(WhenFull::Fail))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UnknownModel { .. }), "the old handle is not the new model's: {error}");
    test.finish().await;
}

/// Registering, using and removing for ever keeps nothing of those that are gone.
#[tokio::test]
async fn models_that_come_and_go_leave_nothing_behind() {
    let _alone = ALONE.lock().await;
    let (system, pool) = single();
    let system = system.with_maintenance_interval(millis(10));
    let test = TestSystem::start_with(system, pool).await;
    let client = test.client();
    for number in 0..50 {
        // Every other one is pinned, which must not outlive its registration.
        let spec = ModelSpec::new(id(number), ScriptedLoader::default());
        let spec = if number % 2 == 0 { spec } else { spec.pinned() };
        let model = client.register(spec).unwrap();
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
        client.remove(&id(number)).unwrap();
        assert!(matches!(model.preload().await, Err(Error::UnknownModel { .. })));
        if number % 3 == 0 {
            assert!(model.unload(std::time::Duration::from_secs(5)).await.is_ok());
        }
    }
    test.until("their workers have gone and they are forgotten", |status| {
        status.pool("scripted").unwrap().all_models().count() == 0
    })
    .await;
    assert_eq!(charged(&test), Bytes::ZERO);
    test.finish().await;
}
