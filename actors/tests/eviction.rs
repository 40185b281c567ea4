//! One budget over all pools: what is needed makes room, what is used, pinned or young stays, and bytes come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::*;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, TestSystem};
use model_actors::{
    Bytes, CallOptions, Device, Error, Event, EvictionReason, Footprint, ModelHandle, ModelSpec, PoolConfig,
};

/// A system with so many MiB for one worker a model.
async fn limited(mib: u64) -> TestSystem {
    limited_with(mib, single().1).await
}

async fn limited_with(mib: u64, pool: PoolConfig) -> TestSystem {
    let (system, _) = single();
    TestSystem::start_with(system.with_memory_limit(Bytes::mib(mib)), pool).await
}

async fn evicted(events: &mut tokio::sync::broadcast::Receiver<Event>) -> (String, EvictionReason) {
    TestSystem::event(events, "a worker is evicted", |event| match event {
        Event::WorkerEvicted { model, reason, .. } => Some((model.to_string(), *reason)),
        _ => None,
    })
    .await
}

fn is_exhausted(error: &Error, needed: Bytes, limit: Bytes) -> bool {
    matches!(error, Error::MemoryExhausted { needed: n, limit: l, .. } if (*n, *l) == (needed, limit))
}

#[tokio::test]
async fn an_idle_model_of_another_pool_makes_room() {
    let mut test = limited(30).await;
    let mut events = test.system.events();
    let idle = test.stream_model("idle", weights(20));
    let needed = test.model("needed", weights(20));
    idle.preload().await.unwrap();
    assert_eq!(ask(&needed, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(evicted(&mut events).await, ("idle".to_owned(), EvictionReason::MakeRoom));
    assert_eq!(charged(&test), Bytes::mib(21));
    idle.call(Act::Reply(2).into(), CallOptions::default()).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn the_least_worth_goes_first() {
    // Idle alike and loaded alike, so the one that frees most goes; the small ones would have to go together.
    let mut test = limited(60).await;
    let mut events = test.system.events();
    for (id, mib) in [("small", 9), ("large", 29), ("other", 9)] {
        test.model(id, weights(mib)).preload().await.unwrap();
    }
    test.model("needed", weights(20)).preload().await.unwrap();
    assert_eq!(evicted(&mut events).await.0, "large");
    test.until_model("large", "its thread has ended", |model| model.workers.is_empty()).await;
    let status = test.system.status();
    let left = ["small", "large", "other"]
        .map(|id| status.model("scripted", id).map_or(0, |model| model.workers.len()));
    assert_eq!(left, [1, 0, 1]);
    test.finish().await;
}

/// Reason that keeps a worker in memory against another model's need.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Protection {
    Busy,
    Pinned,
    TooYoung,
}

#[tokio::test]
async fn what_is_busy_pinned_or_young_stays_and_the_other_gets_memory_exhausted_with_the_numbers() {
    use Protection::*;
    for protection in [Busy, Pinned, TooYoung] {
        let min_residency = if protection == TooYoung { Duration::from_secs(60) } else { Duration::ZERO };
        let pool = single().1.with_min_residency(min_residency).with_room_wait(millis(150));
        let mut test = limited_with(30, pool).await;
        let kept = test.model("kept", weights(20));
        let needy = test.model("needy", weights(20));
        let gate = Gate::default();
        let mut running = None;
        match protection {
            Busy => {
                running = Some(send(&kept, Act::Work(gate.latch())));
                test.until_model("kept", "it runs", |model| busy(model) == 1).await;
            }
            Pinned => {
                kept.pin(true).await.unwrap();
                kept.preload().await.unwrap();
            }
            TooYoung => kept.preload().await.unwrap(),
        }
        let began = Instant::now();
        let error = refused(&needy, Act::Reply(1)).await;
        assert!(is_exhausted(&error, Bytes::mib(21), Bytes::mib(30)), "{protection:?}: {error}");
        let at_once = protection == Pinned;
        assert!(at_once || began.elapsed() >= millis(150), "{protection:?}: others may yet be done");
        gate.open();
        if let Some(running) = running {
            assert_eq!(end(running).await.unwrap(), 0);
        }
        let kept = test.until_model("kept", "it is idle", |model| idle(model) == 1).await;
        assert_eq!(kept.workers[0].worker.0, 1, "{protection:?}: it is the same worker");
        test.finish().await;
    }
}

#[tokio::test]
async fn with_no_wait_for_room_what_is_idle_goes_and_nothing_else_is_waited_for() {
    let pool = single().1.with_room_wait(Duration::ZERO).with_request_timeout(Duration::from_secs(60));
    let mut test = limited_with(30, pool).await;
    let first = test.model("first", weights(20));
    let second = test.model("second", weights(20));
    // To and fro: each is idle when the other comes.
    for value in 0..3 {
        assert_eq!(ask(&first, Act::Reply(value)).await.unwrap(), value);
        test.until_model("first", "it is idle", |model| idle(model) == 1).await;
        assert_eq!(ask(&second, Act::Reply(value)).await.unwrap(), value);
        test.until_model("second", "it is idle", |model| idle(model) == 1).await;
    }
    let (gate, running) = occupy(&test, &second).await;
    let error = refused(&first, Act::Reply(1)).await;
    assert!(is_exhausted(&error, Bytes::mib(21), Bytes::mib(30)), "{error}");
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0, "the one in use was not disturbed");
    test.finish().await;
}

#[tokio::test]
async fn what_can_never_fit_is_refused_at_once() {
    let pool = single().1.with_room_wait(Duration::from_secs(60));
    let mut test = limited_with(30, pool).await;
    let model = test.model("model", weights(40));
    let error = refused(&model, Act::Reply(1)).await;
    assert!(is_exhausted(&error, Bytes::mib(41), Bytes::mib(30)), "{error}");
    assert!(is_exhausted(&model.preload().await.unwrap_err(), Bytes::mib(41), Bytes::mib(30)));
    test.finish().await;
}

#[tokio::test]
async fn a_model_waits_for_one_in_use_and_loads_when_it_is_done() {
    let mut test = limited(30).await;
    let first = test.model("first", weights(20));
    let second = test.model("second", weights(20));
    let (gate, running) = occupy(&test, &first).await;
    let waiting = send(&second, Act::Reply(2));
    queued(&test, &second, 1).await;
    gate.open();
    assert_eq!((end(running).await.unwrap(), end(waiting).await.unwrap()), (0, 2));
    test.finish().await;
}

#[tokio::test]
async fn a_loaded_model_is_charged_what_it_really_takes() {
    for (estimate, truth) in [(20, 10), (10, 20)] {
        let mut test = limited(100).await;
        let loader = ScriptedLoader { estimate: Some(footprint(estimate)), ..weights(truth) };
        let model = test.model("model", loader);
        model.preload().await.unwrap();
        assert_eq!(charged(&test), Bytes::mib(truth + 1), "estimated at {estimate}");
        let status = test.until_model("model", "it is loaded", |model| idle(model) == 1).await;
        assert_eq!((status.footprint, status.bytes), (Some(footprint(truth)), Bytes::mib(truth + 1)));
        test.finish().await;
    }
}

fn footprint(mib: u64) -> Footprint {
    Footprint::new(Bytes::mib(mib), Bytes::mib(1))
}

#[tokio::test]
async fn a_model_that_turns_out_larger_than_the_limit_is_told_so_and_leaves_nothing() {
    let mut test = limited(30).await;
    let loader = ScriptedLoader { estimate: Some(footprint(10)), ..weights(40) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let error = refused(&model, Act::Reply(1)).await;
    assert!(is_exhausted(&error, Bytes::mib(41), Bytes::mib(30)), "{error}");
    assert_eq!(count(&record.loads), 1, "what it takes is known now");
    test.finish().await;
}

#[tokio::test]
async fn a_model_that_turns_out_larger_than_what_is_free_gets_the_room() {
    let mut test = limited(50).await;
    let idle = test.model("idle", weights(20));
    idle.preload().await.unwrap();
    let loader = ScriptedLoader { estimate: Some(footprint(10)), ..weights(40) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!((charged(&test), count(&record.loads)), (Bytes::mib(41), 2), "the idle one made room");
    test.finish().await;
}

#[tokio::test]
async fn the_memory_of_each_device_is_its_own() {
    let gpu = Device::named("gpu:0");
    let (system, pool) = single();
    let system =
        system.with_memory_limit(Bytes::mib(30)).with_device_limits(vec![(gpu.clone(), Bytes::mib(30))]);
    let mut test = TestSystem::start_with(system, pool).await;
    let host = test.model("host", weights(20));
    let loader = weights(20);
    let on_gpu = test.register("gpu", loader.clone(), ModelSpec::new("gpu", loader).device(gpu.clone()));
    host.preload().await.unwrap();
    on_gpu.preload().await.unwrap();
    assert_eq!(test.system.charged(&gpu), Some((Bytes::mib(21), Bytes::mib(30))));
    assert_eq!(charged(&test), Bytes::mib(21), "neither made room for the other");
    test.finish().await;
}

#[tokio::test]
async fn a_device_without_a_budget_is_refused_at_registration() {
    let gpu = Device::named("gpu:0");
    let (system, pool) = single();
    let system = system.with_device_limits(vec![(gpu.clone(), Bytes::mib(30))]);
    let mut test = TestSystem::start_with(system, pool).await;
    let on = |device: Device| ModelSpec::<Scripted>::new("model", weights(1)).device(device);
    for wrong in ["gpu:1", "GPU:0", "gpu:0 ", "Host", "", "gpu:\0"] {
        let client = test.client();
        for refused in [client.register(on(Device::named(wrong))), client.replace(on(Device::named(wrong)))] {
            let error = refused.map(drop).unwrap_err();
            let Error::InvalidConfig { setting, reason } = &error else { panic!("{error}") };
            assert!(setting == "device" && reason.contains("gpu:0, host"), "{error}");
            assert!(!error.to_string().contains('\0'), "{error:?}");
        }
    }
    assert!(test.client().models().is_empty());
    let loader = weights(1);
    let model = test.register("model", loader.clone(), ModelSpec::new("model", loader).device(gpu));
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    test.finish().await;
}

#[tokio::test]
async fn an_unload_returns_when_the_bytes_are_back() {
    let (system, pool) = TestSystem::quick();
    let pool = pool.with_cold_start_workers(3);
    let mut test = TestSystem::start_with(system, pool).await;
    let loader = weights(20);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    ask(&model, Act::Reply(1)).await.unwrap();
    test.until_model("model", "all have started", |model| idle(model) == 3).await;
    assert_eq!(charged(&test), Bytes::mib(23), "the weights once, each worker its own");
    assert_eq!(count(&record.loads), 1);
    model.unload(Duration::from_secs(10)).await.unwrap();
    assert_eq!(charged(&test), Bytes::ZERO);
    assert_eq!(count(&record.weights_alive), 0, "freed with the last worker");
    model.unload(Duration::from_secs(10)).await.unwrap();
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2, "it loads again when it is needed");
    test.finish().await;
}

#[tokio::test]
async fn an_unload_that_cannot_have_all_bytes_back_says_what_is_left() {
    let mut test = limited(100).await;
    let model = test.model("model", weights(20));
    let (gate, running) = occupy(&test, &model).await;
    let error = model.unload(millis(50)).await.unwrap_err();
    assert!(
        matches!(&error, Error::UnloadIncomplete { remaining, reason, .. }
            if *remaining == Bytes::mib(21) && reason.contains("1 workers are running")),
        "{error}"
    );
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0, "the running request was not disturbed");
    test.finish().await;
}

#[tokio::test]
async fn two_who_wait_for_an_unload_each_have_their_own_time() {
    let mut test = limited(100).await;
    let model = test.model("model", weights(20));
    let (gate, running) = occupy(&test, &model).await;
    let (brief, patient) = (model.unload(millis(50)), model.unload(Duration::from_secs(20)));
    let patient = async {
        let unloaded = patient.await;
        assert_eq!(charged(&test), Bytes::ZERO);
        unloaded
    };
    let brief = async {
        let unloaded = brief.await;
        gate.open();
        unloaded
    };
    let (brief, patient) = tokio::join!(brief, patient);
    assert!(matches!(brief, Err(Error::UnloadIncomplete { .. })), "{brief:?}");
    patient.unwrap();
    assert_eq!(end(running).await.unwrap(), 0);
    test.finish().await;
}

#[tokio::test]
async fn an_unload_lets_the_running_batch_finish_and_serves_the_queue_afterwards() {
    let mut test = limited(100).await;
    let loader = weights(20);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(1));
    queued(&test, &model, 1).await;
    let unload = tokio::spawn({
        let model = model.clone();
        async move { model.unload(Duration::from_secs(20)).await }
    });
    let before_unload = model.pin(false);
    before_unload.await.unwrap();
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    unload.await.unwrap().unwrap();
    assert_eq!(end(waiting).await.unwrap(), 1);
    assert_eq!(count(&record.loads), 2);
    test.finish().await;
}

#[tokio::test]
async fn preloads_and_requests_join_a_load_under_way() {
    let mut test = limited(100).await;
    let gate = Gate::default();
    let loader = ScriptedLoader { load_works: Some(gate.latch()), ..weights(20) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let preload = |model: ModelHandle<_>| tokio::spawn(async move { model.preload().await });
    let callers = [preload(model.clone()), preload(model.clone())];
    let request = send(&model, Act::Reply(1));
    test.until_model("model", "all wait for the load", |model| {
        model.loading.is_some() && model.queued_interactive == 1
    })
    .await;
    gate.open();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!((end(request).await.unwrap(), count(&record.loads)), (1, 1));
    test.finish().await;
}

#[tokio::test]
async fn models_load_side_by_side() {
    let mut test = limited(1000).await;
    let gate = Gate::default();
    let models: Vec<_> = (0..4)
        .map(|number| {
            let loader = ScriptedLoader { load_works: Some(gate.latch()), ..weights(20) };
            test.model(&format!("model-{number}"), loader)
        })
        .collect();
    let requests: Vec<Pending> = models.iter().map(|model| send(model, Act::Reply(1))).collect();
    let loaded = test.model("loaded", weights(1));
    test.until("all load at once", |status| {
        let models = status.pools.iter().flat_map(|pool| &pool.models);
        models.filter(|model| model.loading.is_some()).count() == 4
    })
    .await;
    assert_eq!(ask(&loaded, Act::Reply(5)).await.unwrap(), 5, "a load blocks nobody else");
    gate.open();
    for request in requests {
        assert_eq!(end(request).await.unwrap(), 1);
    }
    test.finish().await;
}

#[tokio::test]
async fn a_load_outlives_the_request_that_began_it() {
    let mut test = limited(100).await;
    let gate = Gate::default();
    let loader = ScriptedLoader { load_works: Some(gate.latch()), ..weights(20) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let request = send(&model, Act::Reply(1));
    test.until_model("model", "it loads", |model| model.loading.is_some()).await;
    request.abort();
    queued(&test, &model, 0).await;
    gate.open();
    test.until_model("model", "it is loaded all the same", |model| idle(model) == 1).await;
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2);
    assert_eq!(record.loads.load(Ordering::SeqCst), 1);
    test.finish().await;
}

/// The thread of a load that was given up ends late, with weights that nobody may count on.
#[tokio::test]
async fn a_load_that_was_given_up_does_not_pass_for_the_one_in_use() {
    let (system, mut pool) = TestSystem::quick();
    pool.stall.load = millis(200);
    let mut test = TestSystem::start_with(system, pool).await;
    let gate = Gate::default();
    let loader = ScriptedLoader { load_hangs: Some(gate.latch()), hung_loads: Some(1), ..weights(20) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "by the second load");
    let mut events = test.system.events();
    gate.open();
    TestSystem::event(&mut events, "the hung load has ended", |event| {
        matches!(event, Event::WorkerEnded { .. }).then_some(())
    })
    .await;
    refresh(&model).await;
    test.until_model("model", "its worker is idle", |model| idle(model) == 1).await;
    let gate = Gate::default();
    let busy_ones: Vec<Pending> = (0..2).map(|_| send_alone(&model, Act::Work(gate.latch()))).collect();
    test.until_model("model", "a second worker was built", |model| busy(model) == 2).await;
    gate.open();
    for pending in busy_ones {
        assert_eq!(end(pending).await.unwrap(), 0);
    }
    assert_eq!(count(&record.loads), 2, "from the weights of the one in use");
    assert_eq!(charged(&test), Bytes::mib(22));
    test.finish().await;
}
