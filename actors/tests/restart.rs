//! Workers, pools and maintenance that fail are started again within their budget, lose nothing, and disturb
//! nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem, Victim};
use model_actors::{BreakerState, CallOptions, Error, Event, ModelStatus};

/// A fault that fails a model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Panic,
    Kill,
    SizeFails,
    LoadFails,
    LoadPanics,
    BuildFails,
    BuildPanics,
}

use Fault::*;

fn loader(fault: Fault, faults: usize) -> ScriptedLoader {
    let loader = ScriptedLoader::default();
    match fault {
        Panic | Kill => loader,
        SizeFails => ScriptedLoader { size_fails: faults, ..loader },
        LoadFails => ScriptedLoader { load_fails: faults, ..loader },
        LoadPanics => ScriptedLoader { load_panics: faults, ..loader },
        BuildFails => ScriptedLoader { build_fails: faults, ..loader },
        BuildPanics => ScriptedLoader { build_panics: faults, ..loader },
    }
}

/// Two failures with a budget of two restarts, and three with the same: the whole table.
#[tokio::test]
async fn within_the_budget_every_failure_is_survived_and_beyond_it_the_breaker_opens() {
    const BUDGET: u32 = 2;
    for fault in [Panic, Kill, SizeFails, LoadFails, LoadPanics, BuildFails, BuildPanics] {
        for (faults, survives) in [(2, true), (3, false)] {
            let row = format!("{fault:?} {faults} times");
            let (system, pool) = single();
            let restart = pool.restart.with_max_restarts(BUDGET).with_breaker_open(millis(60_000));
            let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
            let model = test.model("model", loader(fault, faults));
            let other = test.model("other", ScriptedLoader::default());
            assert_eq!(ask(&other, Act::Reply(1)).await.unwrap(), 1, "{row}");

            match fault {
                // Each panic is another request's, so that none of them is poison.
                Panic => {
                    for _ in 0..faults {
                        let _ = ask(&model, Act::PanicTimes(times(1))).await;
                    }
                }
                Kill => {
                    for killed in 1..=faults {
                        let _ = model.preload().await;
                        test.kill(Victim::Worker).await;
                        let seen = |status: &model_actors::ModelStatus| status.failures == killed as u64;
                        test.until_model("model", "the death is seen", seen).await;
                    }
                }
                _ => {}
            }
            let answer = ask(&model, Act::Reply(7)).await;
            match survives {
                true => assert_eq!(answer.as_ref().ok(), Some(&7), "{row}: {answer:?}"),
                // The last replacement lives, and serves behind the open breaker.
                false if fault == Panic => assert_eq!(answer.as_ref().ok(), Some(&7), "{row}: {answer:?}"),
                false => assert!(matches!(answer, Err(Error::CircuitOpen { .. })), "{row}: {answer:?}"),
            }
            let expected = if survives { BreakerState::Closed } else { BreakerState::Open };
            let status = test.system.status();
            assert_eq!(status.model("scripted", "model").unwrap().breaker, expected, "{row}");
            let bystander = status.model("scripted", "other").unwrap();
            assert_eq!((bystander.failures, bystander.breaker), (0, BreakerState::Closed), "{row}");
            assert_eq!(ask(&other, Act::Reply(2)).await.unwrap(), 2, "{row}");
            test.finish().await;
        }
    }
}

#[tokio::test]
async fn a_replacement_is_built_from_the_weights_in_memory() {
    for victim in ["panic", "kill while busy", "kill while idle"] {
        let mut test = start(single()).await;
        let loader = ScriptedLoader::default();
        let record = loader.record.clone();
        let model = test.model("model", loader);
        model.preload().await.unwrap();
        match victim {
            "panic" => assert_eq!(ask(&model, Act::PanicTimes(times(1))).await.unwrap(), 0),
            "kill while busy" => {
                let (gate, pending) = occupy(&test, &model).await;
                test.kill(Victim::Worker).await;
                gate.open();
                assert_eq!(end(pending).await.unwrap(), 0, "it is run again");
            }
            _ => test.kill(Victim::Worker).await,
        }
        assert_eq!(ask(&model, Act::Reply(7)).await.unwrap(), 7, "{victim}");
        assert_eq!((count(&record.loads), count(&record.builds)), (1, 2), "{victim}");
        test.finish().await;
    }
}

#[tokio::test]
async fn a_crash_costs_neither_the_rest_of_its_batch_nor_the_queue() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, first) = occupy(&test, &model).await;
    let bad = send(&model, Act::PanicTimes(times(1)));
    queued(&test, &model, 1).await;
    let good: Vec<Pending> = (1..=5).map(|value| send(&model, Act::Reply(value))).collect();
    queued(&test, &model, 6).await;
    gate.open();
    assert_eq!(end(first).await.unwrap(), 0);
    assert_eq!(end(bad).await.unwrap(), 0);
    for (value, pending) in (1..=5).zip(good) {
        assert_eq!(end(pending).await.unwrap(), value);
    }
    assert_eq!(
        test.until_model("model", "the failure counts", |model| model.failures == 1).await.failures,
        1
    );
    test.finish().await;
}

#[tokio::test]
async fn a_permanent_failure_of_a_load_is_not_tried_again() {
    let mut test = TestSystem::start().await;
    let failure = model_actors::FailureKind::Permanent;
    let loader = ScriptedLoader { load_fails: 1, failure, ..ScriptedLoader::default() };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let error = refused(&model, Act::Reply(1)).await;
    assert!(
        matches!(&error, Error::SpawnFailed { cause, .. } if cause.to_string().contains("load 0")),
        "{error}"
    );
    assert_eq!(count(&record.loads), 1);
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2, "the next request tries anew");
    test.finish().await;
}

#[tokio::test]
async fn a_pool_that_dies_answers_its_callers_and_comes_back() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let other = test.stream_model("stream", ScriptedLoader::default());
    let mut events = test.system.events();
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(1));
    queued(&test, &model, 1).await;

    test.kill(Victim::Pool).await;
    for pending in [running, waiting] {
        let error = end(pending).await.unwrap_err();
        assert!(matches!(error, Error::RecvError { .. }), "{error}");
    }
    assert_eq!(other.call(Act::Stream(2).into(), CallOptions::default()).await.unwrap(), 2, "the other pool");
    TestSystem::event(&mut events, "the pool is back", |event| {
        matches!(event, Event::PoolRestarted { capability: "scripted" }).then_some(())
    })
    .await;
    gate.open();
    freed(&record).await;
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn while_a_pool_is_down_its_callers_are_told_so() {
    let (mut system, pool) = single();
    (system.restart.first_backoff, system.restart.max_backoff) = (millis(60_000), millis(60_000));
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    test.kill(Victim::Pool).await;
    let down = test.until("the pool is down", |status| !status.pool("scripted").unwrap().live).await;
    assert!(!down.is_ready());
    for _ in 0..2 {
        let error = refused(&model, Act::Reply(1)).await;
        assert!(matches!(error, Error::NoWorkers { .. }), "{error}");
    }
    assert!(matches!(model.preload().await, Err(Error::NoWorkers { .. })));
    test.finish().await;
}

/// The model that waits for room would wait for ever if its question were lost with maintenance.
#[tokio::test]
async fn maintenance_that_dies_comes_back_and_hears_what_was_asked_of_it() {
    let (system, pool) = single();
    let system = system.with_memory_limit(model_actors::Bytes::mib(30));
    let pool = pool.with_room_wait(millis(20_000));
    let mut test = TestSystem::start_with(system, pool).await;
    let first = test.model("first", weights(20));
    let second = test.model("second", weights(20));
    let (gate, running) = occupy(&test, &first).await;
    let waiting = send(&second, Act::Reply(2));
    queued(&test, &second, 1).await;

    test.kill(Victim::Maintenance).await;
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    assert_eq!(end(waiting).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_pin_outlives_the_pool_that_was_told_of_it() {
    let mut test = TestSystem::start().await;
    let model = test.model("model", ScriptedLoader::default());
    model.pin(true).await.unwrap();
    model.preload().await.unwrap();
    let mut events = test.system.events();
    test.kill(Victim::Pool).await;
    let restarted = |event: &Event| matches!(event, Event::PoolRestarted { .. }).then_some(());
    TestSystem::event(&mut events, "the pool is back", restarted).await;
    model.preload().await.unwrap();
    let status = test.until_model("model", "it is loaded again", ModelStatus::is_serving).await;
    assert!(status.pinned);
    test.finish().await;
}
