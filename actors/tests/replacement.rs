//! A model is replaced under its name without a gap: the new one serves at once, the old one finishes what it has
//! accepted and gives its memory back, and nothing shows the one for the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, StreamedScript, TestSystem, Victim};
use model_actors::{
    Bytes, CallOptions, Error, Event, EvictionReason, ModelHandle, ModelId, ModelKey, ModelSpec,
    QueueCapacity, WorkerPhase,
};

/// A loader of so many MiB and 1 MiB for each worker, so that the bytes tell the models apart.
fn version(mib: u64) -> ScriptedLoader {
    weights(mib)
}

/// Replaces the model `english` and registers the record with the test, which looks for leaks.
fn replace(test: &mut TestSystem, loader: ScriptedLoader) -> ModelHandle<model_actors::testing::Scripted> {
    test.replace("english", loader.clone(), ModelSpec::new("english", loader))
}

/// Number of models that were removed or replaced and have not ended.
fn ending(test: &TestSystem) -> usize {
    test.system.status().pool("scripted").unwrap().removed.len()
}

async fn ended(test: &TestSystem) {
    test.until("the old ones have ended", |status| status.pool("scripted").unwrap().removed.is_empty()).await;
}

#[tokio::test]
async fn the_new_model_serves_at_once_and_the_old_one_ends_with_its_last_request() {
    let mut test = start(single()).await;
    let (old_loader, new_loader) = (version(10), version(20));
    let (old_record, new_record) = (old_loader.record.clone(), new_loader.record.clone());
    let old = test.model("english", old_loader);
    let (gate, running) = occupy(&test, &old).await;
    let queued_on_old = send_alone(&old, Act::Reply(7));
    queued(&test, &old, 1).await;

    let new = replace(&mut test, new_loader);
    assert_eq!(ask(&new, Act::Reply(1)).await.unwrap(), 1, "while the old one still runs");
    assert_eq!(ask(&old, Act::Reply(2)).await.unwrap(), 2, "an old handle follows");
    assert_eq!((count(&old_record.runs), count(&new_record.runs)), (1, 2));
    let status = test.system.status();
    let pool = status.pool("scripted").unwrap();
    assert_eq!(pool.models.len(), 1);
    assert_eq!(pool.model("english").unwrap().bytes, Bytes::mib(21), "the status is the new one's");
    assert_eq!((pool.removed.len(), pool.removed[0].bytes), (1, Bytes::mib(11)));
    assert_eq!((pool.removed[0].in_flight, pool.removed[0].queued_interactive), (1, 1));
    assert_ne!(pool.removed[0].key, pool.models[0].key);
    assert_eq!(charged(&test), Bytes::mib(11 + 21));

    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    assert_eq!(end(queued_on_old).await.unwrap(), 7);
    ended(&test).await;
    assert_eq!(charged(&test), Bytes::mib(21), "the old one's bytes are back");
    assert_eq!(
        (count(&old_record.runs), count(&old_record.weights_alive)),
        (2, 0),
        "it ran on its own worker"
    );
    assert_eq!(count(&old_record.loads), 1, "and was not loaded again");
    test.finish().await;
}

#[tokio::test]
async fn the_status_knows_of_a_replacement_before_the_pool_does() {
    let mut test = start(single()).await;
    let old = test.model("english", version(10));
    ask(&old, Act::Reply(1)).await.unwrap();
    let key = test.system.status().pool("scripted").unwrap().model("english").unwrap().key;
    // The pool shares this thread, so it has not read of it yet.
    replace(&mut test, version(20));
    let status = test.system.status();
    let pool = status.pool("scripted").unwrap();
    assert_eq!(pool.model("english"), None, "the new one has not been used");
    assert_eq!(pool.removed.iter().map(|model| model.key).collect::<Vec<_>>(), [key]);
    ended(&test).await;
    test.finish().await;
}

#[tokio::test]
async fn an_idle_model_goes_when_it_is_replaced() {
    let mut test = start(single()).await;
    let spec_of_old = version(10);
    let old = test.register("english", spec_of_old.clone(), ModelSpec::new("english", spec_of_old).pinned());
    ask(&old, Act::Reply(1)).await.unwrap();
    let mut events = test.system.events();
    replace(&mut test, version(20));
    TestSystem::event(&mut events, "the old one's worker goes", |event| {
        matches!(event, Event::WorkerEvicted { reason: EvictionReason::Removed, .. }).then_some(())
    })
    .await;
    test.until("it has ended", |status| status.pool("scripted").unwrap().all_models().count() == 0).await;
    assert_eq!(charged(&test), Bytes::ZERO, "although it was pinned; the new one has not been asked for");
    assert!(test.system.status().model("scripted", "english").is_none(), "so the status shows none");
    test.finish().await;
}

#[tokio::test]
async fn a_model_that_is_loading_answers_those_who_wait_for_it() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let loader = ScriptedLoader { load_works: Some(gate.latch()), ..version(10) };
    let old_record = loader.record.clone();
    let old = test.model("english", loader);
    let waiting = send(&old, Act::Reply(5));
    let preloading = tokio::spawn({
        let old = old.clone();
        async move { old.preload().await }
    });
    test.until_model("english", "it loads", |model| in_phase(model, WorkerPhase::Loading) == 1).await;
    until_true(|| gate.was_reached()).await;
    let new = replace(&mut test, version(20));
    assert_eq!(ask(&new, Act::Reply(1)).await.unwrap(), 1, "before the old one is loaded");
    gate.open();
    assert_eq!(end(waiting).await.unwrap(), 5);
    preloading.await.unwrap().unwrap();
    ended(&test).await;
    assert_eq!((count(&old_record.loads), count(&old_record.runs)), (1, 1));
    assert_eq!(charged(&test), Bytes::mib(21));
    test.finish().await;
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_given_up() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let old = test.model("english", ScriptedLoader { load_works: Some(gate.latch()), ..version(10) });
    let waiting = send(&old, Act::Reply(5));
    until_true(|| gate.was_reached()).await;
    replace(&mut test, version(20));
    waiting.abort();
    test.until("it has ended", |status| status.pool("scripted").unwrap().all_models().count() == 0).await;
    assert_eq!(charged(&test), Bytes::ZERO);
    test.finish().await;
}

#[tokio::test]
async fn callers_that_wait_for_a_slot_get_one_of_the_new_model() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system, pool.with_queue(QueueCapacity::new(1, 1))).await;
    let old_loader = version(10);
    let old_record = old_loader.record.clone();
    let old = test.model("english", old_loader);
    let (gate, running) = occupy(&test, &old).await;
    let mut outside = Box::pin(ask(&old, Act::Reply(3)));
    assert!(is_pending(&mut outside).await, "the queue is full");
    replace(&mut test, version(20));
    assert_eq!(outside.await.unwrap(), 3);
    assert_eq!(count(&old_record.runs), 1, "the new one answered");
    gate.open();
    end(running).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn a_model_replaced_twice_leaves_both_old_ones_to_end_by_themselves() {
    let mut test = start(single()).await;
    let first = test.model("english", version(10));
    let (first_gate, first_running) = occupy(&test, &first).await;
    let second = replace(&mut test, version(20));
    let (second_gate, second_running) = occupy(&test, &second).await;
    let third = replace(&mut test, version(30));
    let unused = replace(&mut test, version(40));
    for handle in [&first, &second, &third, &unused] {
        assert_eq!(ask(handle, Act::Reply(4)).await.unwrap(), 4, "all are the last one by now");
    }
    assert_eq!(ending(&test), 2, "the third was never used");
    assert_eq!(charged(&test), Bytes::mib(11 + 21 + 41));
    second_gate.open();
    end(second_running).await.unwrap();
    test.until("the second has ended", |status| status.pool("scripted").unwrap().removed.len() == 1).await;
    assert_eq!(charged(&test), Bytes::mib(11 + 41));
    first_gate.open();
    end(first_running).await.unwrap();
    ended(&test).await;
    assert_eq!(charged(&test), Bytes::mib(41));
    test.finish().await;
}

#[tokio::test]
async fn a_worker_that_dies_after_the_replacement_is_replaced_for_what_waits() {
    let mut test = start(single()).await;
    let old_loader = version(10);
    let old_record = old_loader.record.clone();
    let old = test.model("english", old_loader);
    let (gate, running) = occupy(&test, &old).await;
    let crashing = send_alone(&old, Act::PanicTimes(times(1)));
    queued(&test, &old, 1).await;
    let new = replace(&mut test, version(20));
    ask(&new, Act::Reply(1)).await.unwrap();
    gate.open();
    end(running).await.unwrap();
    assert_eq!(end(crashing).await.unwrap(), 0, "run again by a second worker of the old model");
    ended(&test).await;
    assert_eq!(count(&old_record.builds), 2);
    let status = test.system.status();
    let new_status = status.model("scripted", "english").unwrap();
    assert_eq!((new_status.failures, new_status.bytes), (0, Bytes::mib(21)), "not the new one's failure");
    test.finish().await;
}

#[tokio::test]
async fn events_tell_the_old_model_from_the_new_one() {
    let mut test = start(single()).await;
    let old = test.model("english", version(10));
    let (gate, running) = occupy(&test, &old).await;
    let keys = |test: &TestSystem| {
        let status = test.system.status();
        let pool = status.pool("scripted").unwrap();
        let key = |models: &[model_actors::ModelStatus]| models.first().map(|model| model.key);
        (key(&pool.removed), key(&pool.models))
    };
    let mut events = test.system.events();
    let new = replace(&mut test, version(20));
    ask(&new, Act::Reply(1)).await.unwrap();
    let (old_key, new_key) = keys(&test);
    gate.open();
    end(running).await.unwrap();
    ended(&test).await;
    let mut told: Vec<(&str, ModelKey)> = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Queued { key, .. } => told.push(("queued", key)),
            Event::Loading { key, .. } => told.push(("loading", key)),
            Event::WorkerStarted { key, .. } => told.push(("started", key)),
            Event::WorkerEvicted { key, .. } => told.push(("evicted", key)),
            Event::WorkerEnded { key, .. } => told.push(("ended", key)),
            other => panic!("{other:?}"),
        }
    }
    told.dedup();
    let (old_key, new_key) = (old_key.unwrap(), new_key.unwrap());
    let expected = [
        ("queued", new_key),
        ("loading", new_key),
        ("started", new_key),
        ("evicted", old_key),
        ("ended", old_key),
    ];
    assert_eq!(told, expected);
    test.finish().await;
}

#[tokio::test]
async fn replacing_a_model_that_is_not_registered_registers_it() {
    let mut test = start(single()).await;
    let model = replace(&mut test, version(10));
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(test.client().models(), [ModelId::from("english")]);
    test.finish().await;
}

#[tokio::test]
async fn a_replacement_with_bad_settings_leaves_the_old_model_as_it_was() {
    let mut test = start(single()).await;
    let model = test.model("english", version(10));
    let bad = model_actors::PoolConfig::default().with_max_workers(0);
    let refused = test.client().replace(ModelSpec::new("english", version(20)).config(bad));
    assert!(matches!(refused.map(drop), Err(Error::InvalidConfig { .. })));
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(charged(&test), Bytes::mib(11));
    test.finish().await;
}

#[tokio::test]
async fn a_handle_does_not_follow_from_a_removed_model_to_a_new_one_of_its_name() {
    let mut test = start(single()).await;
    let first = test.model("english", version(10));
    let second = replace(&mut test, version(20));
    test.client().remove(&ModelId::from("english")).unwrap();
    let anew = test.model("english", version(30));
    for gone in [&first, &second] {
        assert!(matches!(refused(gone, Act::Reply(1)).await, Error::UnknownModel { .. }));
        assert!(matches!(gone.pin(true).await, Err(Error::UnknownModel { .. })));
    }
    assert_eq!(ask(&anew, Act::Reply(1)).await.unwrap(), 1);
    test.finish().await;
}

#[tokio::test]
async fn a_stream_under_way_goes_on_with_the_old_model() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let old = test.stream_model("english", version(10));
    let options = CallOptions::default();
    let mut stream = old.stream(Act::StreamThenWork(2, gate.latch()).into(), options.clone()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 0);
    let loader = version(20);
    let new = test.streams().replace(ModelSpec::<StreamedScript>::new("english", loader)).unwrap();
    assert_eq!(new.call(Act::Stream(3).into(), options).await.unwrap(), 3);
    gate.open();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert_eq!(stream.output().await.unwrap(), 2);
    test.finish().await;
}

/// Replacing for ever, with requests all the time, loses none and keeps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_however_often_the_model_is_replaced() {
    let mut test = start(single()).await;
    let model = test.model("english", version(1));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let model = model.clone();
            tokio::spawn(async move {
                for request in 0..200 {
                    let value = caller * 1000 + request;
                    assert_eq!(ask(&model, Act::Reply(value)).await.unwrap(), value);
                }
            })
        })
        .collect();
    for _ in 0..30 {
        replace(&mut test, version(1));
        assert_eq!(ask(&model, Act::Reply(9)).await.unwrap(), 9, "the newest one serves");
    }
    for caller in callers {
        caller.await.unwrap();
    }
    ended(&test).await;
    assert!(charged(&test) <= Bytes::mib(2));
    test.finish().await;
}

#[tokio::test]
async fn a_pool_that_died_before_it_read_of_a_replacement_hears_of_the_next_one() {
    let mut test = start(single()).await;
    let old = test.model("english", version(10));
    ask(&old, Act::Reply(1)).await.unwrap();
    // Nothing else runs in between on this one thread, so the dead pool never reads of it.
    test.kill_at_once(Victim::Pool);
    let second = replace(&mut test, version(20));
    test.until("the pool is back", |status| status.pool("scripted").unwrap().live).await;
    assert_eq!(patiently(&second, Act::Reply(2)).await, 2);
    replace(&mut test, version(30));
    // The third one is not used, so nothing is left once the second has gone.
    test.until("the second one has gone", |status| {
        status.pool("scripted").unwrap().all_models().count() == 0
    })
    .await;
    assert_eq!(charged(&test), Bytes::ZERO, "its bytes are back");
    test.finish().await;
}

#[tokio::test]
async fn a_preload_of_a_model_that_has_been_replaced_loads_the_new_one_alone() {
    let mut test = start(single()).await;
    let (old_loader, new_loader) = (version(10), version(20));
    let (old_record, new_record) = (old_loader.record.clone(), new_loader.record.clone());
    let old = test.model("english", old_loader);
    // The pool shares this thread, so it reads of both at once.
    let mut preload = Box::pin(old.preload());
    assert!(is_pending(&mut preload).await);
    replace(&mut test, new_loader);
    preload.await.unwrap();
    assert_eq!((count(&old_record.loads), count(&new_record.loads)), (0, 1));
    test.finish().await;
}

/// Each version gets one request that hangs and is replaced: the threads are bounded long before any of them is stuck.
#[tokio::test]
async fn versions_that_come_quickly_and_hang_are_bounded() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let mut records = Vec::new();
    let mut hung = Vec::new();
    for version in 0..20 {
        let loader = ScriptedLoader::default();
        records.push(loader.record.clone());
        let model = match version {
            0 => test.model("english", loader),
            _ => replace(&mut test, loader),
        };
        hung.push(send(&model, Act::Hang(gate.latch())));
        refresh(&model).await;
    }
    let threads = |test: &TestSystem| {
        let status = test.system.status();
        status.pool("scripted").unwrap().all_models().map(|model| model.workers.len()).sum::<usize>()
    };
    assert!(threads(&test) <= 4, "{} threads", threads(&test));
    gate.open();
    for pending in hung {
        assert_eq!(end(pending).await.unwrap(), 0, "each has its turn");
    }
    ended(&test).await;
    test.finish().await;
}

/// Asks until the pool is back.
async fn patiently(model: &ModelHandle<model_actors::testing::Scripted>, act: Act) -> u64 {
    loop {
        match ask(model, act.clone()).await {
            Ok(answer) => return answer,
            Err(Error::NoWorkers { .. } | Error::SendError { .. } | Error::RecvError { .. }) => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_pin_or_preload_reaches_the_model_that_replaces_the_first_one_meanwhile() {
    let mut test = start(single()).await;
    let gate = Gate::default();
    let model = test.model("english", ScriptedLoader { load_works: Some(gate.latch()), ..version(10) });
    let preload = tokio::spawn({
        let model = model.clone();
        async move { model.preload().await }
    });
    until_true(|| gate.was_reached()).await;
    let new = version(20);
    let record = new.record.clone();
    replace(&mut test, new);
    gate.open();
    preload.await.unwrap().unwrap();
    assert_eq!(count(&record.loads), 1, "the new one is in memory");
    test.finish().await;
}
