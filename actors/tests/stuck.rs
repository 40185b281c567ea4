//! Busy is not stuck. A worker without progress is given up: its request is answered, its queue moves on, its
//! bytes stay charged until its thread really ends, and nothing that it says later counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, ScriptedLoader, TestSystem};
use model_actors::{Bytes, CallOptions, Error, Event, ModelSpec, WorkerPhase};

const STALL: Duration = Duration::from_millis(120);

/// One worker a model, which may go `STALL` without progress; failures without limit.
async fn impatient() -> TestSystem {
    let (system, pool) = single();
    let stall = model_actors::StallLimits::default().with_load(STALL).with_run(STALL);
    let restart = pool.restart.with_max_restarts(100);
    TestSystem::start_with(system, pool.with_stall(stall).with_restart(restart)).await
}

fn stuck(status: &model_actors::ModelStatus) -> usize {
    in_phase(status, WorkerPhase::Stuck)
}

#[tokio::test]
async fn a_busy_worker_that_makes_progress_is_never_stuck() {
    let mut test = impatient().await;
    let model = test.model("model", ScriptedLoader::default());
    let mut events = test.system.events();
    let (gate, running) = occupy(&test, &model).await;
    // Many stall limits long; each status shows later ticks than the one before.
    let mut last = 0;
    for _ in 0..8 {
        let now = test.until_model("model", "it ticks", |model| model.workers[0].ticks > last).await;
        assert!(now.workers[0].since_progress < STALL);
        last = now.workers[0].ticks;
    }
    gate.open();
    assert_eq!(end(running).await.unwrap(), 0);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::WorkerStuck { .. }), "{event:?}");
    }
    test.finish().await;
}

#[tokio::test]
async fn a_stuck_worker_is_replaced_and_its_queue_moves_on() {
    let mut test = impatient().await;
    let mut events = test.system.events();
    let loader = weights(20);
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let gate = Gate::default();
    let hung = send(&model, Act::Hang(gate.latch()));
    test.until_model("model", "it runs", |model| busy(model) == 1).await;
    let waiting = send(&model, Act::Reply(1));

    let error = end(hung).await.unwrap_err();
    assert!(matches!(error, Error::WorkerStuck { stalled, .. } if stalled >= STALL), "{error}");
    assert_eq!(end(waiting).await.unwrap(), 1);
    TestSystem::event(&mut events, "it is told", |event| {
        matches!(event, Event::WorkerStuck { .. }).then_some(())
    })
    .await;
    assert_eq!(count(&record.loads), 1, "the replacement shares the weights");
    let status = test.until_model("model", "the thread is in quarantine", |model| stuck(model) == 1).await;
    assert_eq!((charged(&test), status.bytes), (Bytes::mib(22), Bytes::mib(22)), "its bytes stay charged");

    gate.open();
    test.until_model("model", "the thread has ended", |model| stuck(model) == 0).await;
    assert_eq!(charged(&test), Bytes::mib(21));
    test.finish().await;
}

/// Five seconds long, which is what an idle worker has to answer a ping.
#[tokio::test]
async fn an_idle_worker_whose_thread_hangs_does_not_answer_its_ping_and_is_replaced() {
    let mut test = impatient().await;
    let mut events = test.system.events();
    let gate = Gate::default();
    let loader = ScriptedLoader { hangs_when_idle: Some(gate.latch()), ..ScriptedLoader::default() };
    let record = loader.record.clone();
    let spec = ModelSpec::new("model", loader.clone()).continuous();
    let model = test.register("model", loader, spec);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    until_true(|| gate.was_reached()).await;
    refresh(&model).await;
    test.until_model("model", "it looks idle", |model| idle(model) == 1).await;

    let is_stuck = |event: &Event| matches!(event, Event::WorkerStuck { .. }).then_some(());
    TestSystem::event(&mut events, "the ping is not answered", is_stuck).await;
    test.until_model("model", "it is in quarantine and replaced", |model| {
        (stuck(model), idle(model), model.failures) == (1, 1, 1)
    })
    .await;
    assert_eq!((count(&record.loads), count(&record.builds)), (1, 2), "the replacement shares the weights");
    gate.open();
    test.until_model("model", "the thread has ended", |model| stuck(model) == 0).await;
    assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn what_a_stuck_worker_says_later_does_not_count() {
    let mut test = impatient().await;
    let model = test.stream_model("model", ScriptedLoader::default());
    let gate = Gate::default();
    // After its hang the thread answers with 0; the caller has long been told something else.
    let stream = model.stream(Act::Hang(gate.latch()).into(), CallOptions::default()).await.unwrap();
    let error = stream.output().await.unwrap_err();
    assert!(matches!(error, Error::WorkerStuck { .. }), "{error}");
    let slots = test.streams().slots();
    assert_eq!(slots.0, slots.1, "the slot is back although the thread hangs");
    gate.open();
    test.until_model("model", "the thread has ended", |model| stuck(model) == 0).await;
    let status = test.system.status();
    assert_eq!(
        status.model("streamed_script", "model").unwrap().failures,
        1,
        "its end is no further failure"
    );
    assert_eq!(model.call(Act::Stream(3).into(), CallOptions::default()).await.unwrap(), 3);
    test.finish().await;
}

/// Nobody knows which of a batch hangs, so each gets a run of its own; the innocent succeed.
#[tokio::test]
async fn the_others_of_a_stuck_batch_succeed() {
    let mut test = impatient().await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, first) = occupy(&test, &model).await;
    let hang = Gate::default();
    let hung = send(&model, Act::Hang(hang.latch()));
    let good: Vec<Pending> = (1..4).map(|value| send(&model, Act::Reply(value))).collect();
    queued(&test, &model, 4).await;
    gate.open();
    end(first).await.unwrap();
    for (value, pending) in (1..4).zip(good) {
        assert_eq!(end(pending).await.unwrap(), value);
    }
    let error = end(hung).await.unwrap_err();
    assert!(matches!(error, Error::WorkerStuck { .. } | Error::Poison { .. }), "{error}");
    hang.open();
    test.until_model("model", "the threads have ended", |model| stuck(model) == 0).await;
    test.finish().await;
}

#[tokio::test]
async fn a_stuck_load_fails_like_any_other_and_is_tried_again() {
    let mut test = impatient().await;
    let gate = Gate::default();
    let loader = ScriptedLoader { load_hangs: Some(gate.latch()), hung_loads: Some(1), ..weights(20) };
    let record = loader.record.clone();
    let model = test.model("model", loader);
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(count(&record.loads), 2);
    let status = test.until_model("model", "the load is in quarantine", |model| stuck(model) == 1).await;
    assert_eq!((status.failures, charged(&test)), (1, Bytes::mib(42)), "both are charged");
    gate.open();
    test.until_model("model", "it has ended", |model| stuck(model) == 0).await;
    assert_eq!(charged(&test), Bytes::mib(21));
    test.finish().await;
}

#[tokio::test]
async fn a_load_that_makes_progress_may_take_as_long_as_it_likes() {
    let mut test = impatient().await;
    let gate = Gate::default();
    let model = test.model("model", ScriptedLoader { load_works: Some(gate.latch()), ..weights(20) });
    let pending = send(&model, Act::Reply(1));
    let mut last = 0;
    for _ in 0..8 {
        let loading =
            |model: &model_actors::ModelStatus| model.workers.first().map_or(0, |worker| worker.ticks);
        let now = test.until_model("model", "it ticks", |model| loading(model) > last).await;
        last = loading(&now);
    }
    gate.open();
    assert_eq!(end(pending).await.unwrap(), 1);
    assert_eq!(test.system.status().model("scripted", "model").unwrap().failures, 0);
    test.finish().await;
}

#[tokio::test]
async fn stuck_threads_of_a_model_are_bounded() {
    let mut test = impatient().await;
    let model = test.model("model", ScriptedLoader::default());
    let gate = Gate::default();
    let mut hung = 0;
    let refusal = loop {
        match refused(&model, Act::Hang(gate.latch())).await {
            Error::WorkerStuck { .. } => hung += 1,
            other => break other,
        }
        assert!(hung < 10, "no end of stuck threads");
    };
    assert!(
        matches!(&refusal, Error::SpawnFailed { cause, .. } if cause.to_string().contains("stuck")),
        "{refusal}"
    );
    assert_eq!(hung, 2, "one more than the workers that it may have");
    gate.open();
    test.until_model("model", "the threads have ended", |model| stuck(model) == 0).await;
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "it works again");
    test.finish().await;
}

/// The thread is gone before the deadline of the unload, or it is not; both are told.
#[tokio::test]
async fn an_unload_says_that_a_stuck_thread_holds_its_bytes() {
    let mut test = impatient().await;
    let model = test.model("model", weights(20));
    let gate = Gate::default();
    refused(&model, Act::Hang(gate.latch())).await;
    let error = model.unload(Duration::from_secs(5)).await.unwrap_err();
    assert!(
        matches!(&error, Error::UnloadIncomplete { remaining, reason, .. }
            if *remaining == Bytes::mib(21) && reason.contains("1 are stuck")),
        "{error}"
    );
    gate.open();
    test.until_model("model", "the thread has ended", |model| stuck(model) == 0).await;
    model.unload(Duration::from_secs(5)).await.unwrap();
    assert_eq!(charged(&test), Bytes::ZERO);
    test.finish().await;
}

#[tokio::test]
async fn stuck_threads_are_bounded_for_requests_that_were_queued_before_too() {
    for workers in [1, 2] {
        let (system, pool) = single();
        let stall = model_actors::StallLimits::default().with_load(STALL).with_run(STALL);
        let restart = pool.restart.with_max_restarts(100);
        let pool = pool.with_stall(stall).with_restart(restart).with_max_workers(workers);
        let mut test = TestSystem::start_with(system, pool).await;
        let model = test.model("model", ScriptedLoader::default());
        let gate = Gate::default();
        let hung: Vec<Pending> = (0..20).map(|_| send_alone(&model, Act::Hang(gate.latch()))).collect();
        let mut ends = Vec::new();
        for pending in hung {
            ends.push(end(pending).await.unwrap_err().reason());
        }
        let stuck_ends = ends.iter().filter(|reason| **reason == "worker_stuck").count();
        assert_eq!(stuck_ends, workers + 2, "{workers} workers: {ends:?}");
        assert_eq!(ends.iter().filter(|reason| **reason == "spawn_failed").count(), 20 - stuck_ends);
        let status = test.system.status();
        assert_eq!(stuck(status.model("scripted", "model").unwrap()), workers + 2);
        gate.open();
        test.until_model("model", "the threads have ended", |model| stuck(model) == 0).await;
        assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1, "it works again");
        test.finish().await;
    }
}

/// Else its bytes would count as coming back, and no other model would be evicted.
#[tokio::test]
async fn a_hung_load_that_was_unloaded_keeps_no_idle_model_from_making_room() {
    let (system, pool) = single();
    let stall = pool.stall.with_load(STALL);
    let pool = pool.with_stall(stall).with_room_wait(Duration::from_secs(20));
    let mut test = TestSystem::start_with(system.with_memory_limit(Bytes::mib(30)), pool).await;
    let mut events = test.system.events();
    let gate = Gate::default();
    let hung = test.model("hung", ScriptedLoader { load_hangs: Some(gate.latch()), ..weights(14) });
    let other = test.model("other", weights(9));
    let wanted = test.model("wanted", weights(10));
    let impatient = CallOptions::default().with_timeout(STALL / 2);
    let caller = send_with(&hung, Act::Reply(1), impatient);
    until_true(|| gate.was_reached()).await;
    assert_eq!(end(caller).await.unwrap_err().reason(), "timeout");
    ask(&other, Act::Reply(1)).await.unwrap();
    let error = hung.unload(Duration::from_secs(10)).await.unwrap_err();
    assert!(
        matches!(&error, Error::UnloadIncomplete { reason, .. } if reason.contains("1 are stuck")),
        "{error}"
    );
    TestSystem::event(&mut events, "it is told", |event| {
        matches!(event, Event::WorkerStuck { .. }).then_some(())
    })
    .await;
    assert_eq!(ask(&wanted, Act::Reply(2)).await.unwrap(), 2, "the idle model makes room");
    gate.open();
    test.until_model("hung", "the thread has ended", |model| stuck(model) == 0).await;
    test.finish().await;
}
