//! One bad request fails alone: a batch that fails is split and rerun, a request that kills its workers is found out
//! and never run a third time, and one that runs out of memory is tried again with more room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, ScriptedRequest, TestSystem};
use model_actors::{BreakerState, Bytes, Error, Event, ModelHandle, testing::Scripted};

/// Has these requests share one batch, and returns how each ended.
async fn in_one_batch(
    test: &TestSystem,
    model: &ModelHandle<Scripted>,
    requests: Vec<Act>,
) -> Vec<model_actors::Result<u64>> {
    let (gate, first) = occupy(test, model).await;
    let mut pending = Vec::new();
    for (index, act) in requests.into_iter().enumerate() {
        pending.push(send(model, act));
        queued(test, model, index + 1).await;
    }
    gate.open();
    end(first).await.unwrap();
    let mut ends = Vec::new();
    for request in pending {
        ends.push(end(request).await);
    }
    ends
}

#[tokio::test]
async fn one_bad_input_fails_alone_whatever_its_place() {
    for place in 0..5 {
        let mut test = start(single()).await;
        let loader = ScriptedLoader::default();
        let record = loader.record.clone();
        let model = test.model("model", loader);
        let mut requests: Vec<Act> = (0..5).map(Act::Reply).collect();
        requests[place] = Act::Fail;
        let ends = in_one_batch(&test, &model, requests).await;
        assert_eq!(record.batches()[1].len(), 5, "they did share a batch");
        for (index, end) in ends.into_iter().enumerate() {
            match index == place {
                true => assert!(matches!(end, Err(Error::ModelError { .. })), "{place}: {end:?}"),
                false => assert_eq!(end.unwrap(), index as u64, "{place}"),
            }
        }
        assert_eq!(test.system.status().model("scripted", "model").unwrap().failures, 0, "no worker died");
        test.finish().await;
    }
}

#[tokio::test]
async fn a_request_that_is_refused_or_forgotten_by_the_model_costs_the_others_nothing() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let ends = in_one_batch(&test, &model, vec![Act::Refuse, Act::Reply(1), Act::Forget]).await;
    assert!(matches!(ends[0], Err(Error::InvalidInput { .. })), "{:?}", ends[0]);
    assert_eq!(ends[1].as_ref().unwrap(), &1);
    assert!(
        matches!(&ends[2], Err(Error::ModelError { cause, .. }) if cause.to_string().contains("without an answer"))
    );
    test.finish().await;
}

#[tokio::test]
async fn a_killer_is_found_and_never_run_a_third_time() {
    for place in 0..3 {
        let mut test = start(single()).await;
        let model = test.model("model", ScriptedLoader::default());
        let lives = times(100);
        let mut requests: Vec<Act> = (0..3).map(Act::Reply).collect();
        requests[place] = Act::PanicTimes(lives.clone());
        let ends = in_one_batch(&test, &model, requests).await;
        for (index, end) in ends.into_iter().enumerate() {
            match index == place {
                true => assert!(matches!(end, Err(Error::Poison { deaths: 2, .. })), "{place}: {end:?}"),
                false => assert_eq!(end.unwrap(), index as u64, "{place}"),
            }
        }
        assert_eq!(count(&lives), 98, "it ran twice");
        assert_eq!(ask(&model, Act::Reply(9)).await.unwrap(), 9);
        assert_eq!(count(&lives), 98, "and never again");
        test.finish().await;
    }
}

#[tokio::test]
async fn poison_names_the_last_death() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let error = refused(&model, Act::Panic).await;
    assert!(error.to_string().contains("the script says panic"), "{error}");
    test.finish().await;
}

#[tokio::test]
async fn out_of_memory_halves_the_batch_and_is_remembered() {
    let mut test = start(single()).await;
    let mut events = test.system.events();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let ends = in_one_batch(&test, &model, vec![Act::NeedsBatchOf(2); 8]).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let shrunk = |event: &Event| match event {
        Event::BatchShrunk { requests, .. } => Some(*requests),
        _ => None,
    };
    assert_eq!(TestSystem::event(&mut events, "the batch shrinks", shrunk).await, 4);
    assert_eq!(TestSystem::event(&mut events, "and shrinks again", shrunk).await, 2);
    test.until_model("model", "it is remembered", |model| model.batch_limit == 2).await;

    let before = record.batches().len();
    let ends = in_one_batch(&test, &model, vec![Act::NeedsBatchOf(2); 4]).await;
    assert!(ends.iter().all(Result::is_ok));
    let sizes: Vec<usize> = record.batches()[before..].iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 2, 2], "it is not tried with more");
    test.finish().await;
}

#[tokio::test]
async fn one_alone_that_runs_out_of_memory_is_tried_once_more() {
    for (starvations, survives) in [(1, true), (2, false)] {
        let mut test = start(single()).await;
        let model = test.model("model", ScriptedLoader::default());
        let answer = ask(&model, Act::StarveTimes(times(starvations))).await;
        match survives {
            true => assert_eq!(answer.unwrap(), 0),
            false => assert!(
                matches!(&answer, Err(Error::ModelError { cause, .. }) if cause.to_string().contains("no memory")),
                "{answer:?}"
            ),
        }
        test.finish().await;
    }
}

#[tokio::test]
async fn a_limit_that_one_request_set_for_all_goes_when_it_fails_by_itself() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    refresh(&model).await;
    let limit = test.until_model("model", "it is known", |_| true).await.batch_limit;
    let mut requests: Vec<Act> = (0..8).map(Act::Reply).collect();
    requests[0] = Act::StarveTimes(times(100));
    let ends = in_one_batch(&test, &model, requests).await;
    assert!(matches!(ends[0], Err(Error::ModelError { .. })), "{:?}", ends[0]);
    assert!(ends[1..].iter().all(Result::is_ok), "{ends:?}");
    refresh(&model).await;
    test.until_model("model", "nothing is wrong with the others", |model| model.batch_limit == limit).await;
    test.finish().await;
}

#[tokio::test]
async fn out_of_memory_has_an_idle_model_evicted() {
    let mut test = start(single()).await;
    let mut events = test.system.events();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let idle = test.model("idle", loader);
    idle.preload().await.unwrap();
    let loader = ScriptedLoader { cached_by_reply: Bytes(1), ..ScriptedLoader::default() };
    let model = test.model("model", loader);
    assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
    assert!(test.system.status().memory[0].cached > Bytes::ZERO, "what it holds alone is not enough");
    let starves = Act::StarveBeside(record);
    assert_eq!(ask(&model, ScriptedRequest::from(starves)).await.unwrap(), 0);
    let evicted = TestSystem::event(&mut events, "the idle model goes", |event| match event {
        Event::WorkerEvicted { model, reason, .. } => Some((model.to_string(), *reason)),
        _ => None,
    })
    .await;
    assert_eq!(evicted, ("idle".to_owned(), model_actors::EvictionReason::Pressure));
    test.finish().await;
}

#[tokio::test]
async fn poisonous_requests_one_after_another_do_not_close_the_model_to_the_others() {
    for max_restarts in [0, 1, 3] {
        let (system, pool) = single();
        let restart = pool.restart.with_max_restarts(max_restarts).with_breaker_open(millis(60_000));
        let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
        let model = test.model("model", ScriptedLoader::default());
        for killer in 0..6 {
            let error = refused(&model, Act::Panic).await;
            assert!(matches!(error, Error::Poison { deaths: 2, .. }), "killer {killer}: {error}");
        }
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7);
        refresh(&model).await;
        let status = test.until_model("model", "all deaths are known", |model| model.failures == 12).await;
        assert_eq!(status.breaker, BreakerState::Closed);
        test.finish().await;
    }
}

#[tokio::test]
async fn poisonous_requests_at_once_on_several_workers_do_not_close_the_model_either() {
    let (system, pool) = TestSystem::quick();
    let restart = pool.restart.with_breaker_open(millis(60_000));
    let pool = pool.with_max_workers(4).with_cold_start_workers(4).with_restart(restart);
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    model.preload().await.unwrap();
    test.until_model("model", "four are ready", |model| idle(model) == 4).await;
    let killers: Vec<Pending> = (0..8).map(|_| send_alone(&model, Act::Panic)).collect();
    let innocents: Vec<Pending> = (0..8).map(|value| send_alone(&model, Act::Reply(value))).collect();
    for killer in killers {
        let error = end(killer).await.unwrap_err();
        assert!(matches!(error, Error::Poison { deaths: 2, .. }), "{error}");
    }
    for (value, innocent) in (0..8).zip(innocents) {
        assert_eq!(end(innocent).await.unwrap(), value);
    }
    let status = test.system.status();
    assert_eq!(status.model("scripted", "model").unwrap().breaker, BreakerState::Closed);
    test.finish().await;
}
