//! A full queue makes callers wait or refuses them, as they like; what is accepted runs in order of urgency and in
//! batches that fit; and the metrics say what the callers saw.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::*;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use model_actors::telemetry::metric;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, ScriptedRequest, TestSystem};
use model_actors::{
    BatchLimits, CallOptions, Error, Event, Lane, ModelHandle, Priority, QueueCapacity, RequestPhase, Result,
    WhenFull,
};

async fn with_queue(interactive: usize, batch: usize) -> TestSystem {
    let (system, pool) = single();
    let pool = pool.with_queue(QueueCapacity::new(interactive, batch));
    TestSystem::start_with(system, pool).await
}

/// Options of a call that does not wait for a slot.
fn impatient(lane: Lane) -> CallOptions {
    CallOptions::default().with_lane(lane).with_when_full(WhenFull::Fail)
}

async fn try_ask(model: &ModelHandle<Scripted>, lane: Lane) -> Result<u64> {
    model.call(Act::Reply(1).into(), impatient(lane)).await
}

fn slots_in_use(test: &TestSystem) -> usize {
    let (free, all) = test.client().slots();
    all - free
}

#[tokio::test]
async fn a_full_lane_refuses_at_once_and_the_other_does_not() {
    let mut test = with_queue(2, 1).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(2));
    queued(&test, &model, 1).await;
    let error = try_ask(&model, Lane::Interactive).await.unwrap_err();
    assert!(matches!(error, Error::Overloaded { lane: Lane::Interactive, capacity: 2, .. }), "{error}");
    let batch = send_with(&model, Act::Reply(3), CallOptions::default().with_lane(Lane::Batch));
    queued(&test, &model, 2).await;
    let error = try_ask(&model, Lane::Batch).await.unwrap_err();
    assert!(matches!(error, Error::Overloaded { lane: Lane::Batch, capacity: 1, .. }), "{error}");
    for lane in [Lane::Interactive, Lane::Batch] {
        let checked = model.check(&Act::Reply(1).into(), &impatient(lane));
        assert!(matches!(checked, Err(Error::Overloaded { .. })));
        let patient = impatient(lane).with_when_full(WhenFull::Wait);
        assert!(model.check(&Act::Reply(1).into(), &patient).is_ok(), "it would wait");
    }
    let in_use = slots_in_use(&test);
    gate.open();
    let ends = [end(running).await.unwrap(), end(waiting).await.unwrap(), end(batch).await.unwrap()];
    assert_eq!(ends, [0, 2, 3]);
    assert_eq!(in_use, 3);
    assert!(model.check(&Act::Reply(1).into(), &impatient(Lane::Batch)).is_ok());
    assert_eq!(try_ask(&model, Lane::Interactive).await.unwrap(), 1);
    test.finish().await;
}

#[tokio::test]
async fn a_caller_may_wait_for_a_slot_until_its_deadline() {
    let mut test = with_queue(1, 1).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let brief = CallOptions::default().with_timeout(millis(30));
    let error = model.call(Act::Reply(1).into(), brief).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: RequestPhase::WaitingForSlot, .. }), "{error}");
    let patient: Vec<Pending> = (1..=5).map(|value| send(&model, Act::Reply(value))).collect();
    gate.open();
    end(running).await.unwrap();
    for (value, pending) in (1..=5).zip(patient) {
        assert_eq!(end(pending).await.unwrap(), value);
    }
    test.finish().await;
}

#[tokio::test]
async fn a_slot_is_back_when_the_caller_has_its_answer_however_it_ends() {
    let mut test = with_queue(1, 1).await;
    let model = test.model("model", ScriptedLoader::default());
    let brief = CallOptions::default().with_timeout(millis(20));
    let ends = [
        (Act::Reply(1), CallOptions::default(), "ok"),
        (Act::Fail, CallOptions::default(), "model_error"),
        (Act::Refuse, CallOptions::default(), "invalid_input"),
        (Act::Panic, CallOptions::default(), "poison"),
        (Act::Steps(u64::MAX), brief, "timeout"),
    ];
    for (act, options, expected) in ends {
        // There is one slot, so each request needs the one before to have given it back already.
        let answer = model.call(act.into(), options.with_when_full(WhenFull::Fail)).await;
        assert_eq!(answer.map_or_else(|error| error.reason(), |_| "ok"), expected);
        assert_eq!(slots_in_use(&test), 0, "after {expected}");
    }
    let (gate, running) = occupy(&test, &model).await;
    assert_eq!(slots_in_use(&test), 1);
    running.abort();
    let _ = running.await;
    // A caller that has gone gives the slot back with its work, so that cancelling cannot overfill a queue.
    gate.open();
    until_true(|| slots_in_use(&test) == 0).await;
    test.finish().await;
}

#[tokio::test]
async fn invalid_input_takes_no_slot() {
    let (config, pool) = single();
    let system =
        model_actors::System::builder(config).pool::<model_actors::TextEmbedding>(pool).start().await;
    let system = system.unwrap();
    let client = system.client::<model_actors::TextEmbedding>().unwrap();
    assert!(matches!(client.handle("unknown"), Err(Error::UnknownModel { .. })));
    assert!(matches!(system.client::<Scripted>(), Err(Error::NoPool { .. })));
    assert!(system.shutdown().await.is_clean());
}

/// The order in which single requests were run, by what they asked for.
fn order(record: &model_actors::testing::Record) -> Vec<u64> {
    record.batches().into_iter().skip(1).flatten().collect()
}

#[tokio::test]
async fn the_urgent_run_first_and_the_batch_lane_last_unless_it_has_waited_long() {
    let (system, pool) = single();
    let batch = BatchLimits::default().with_requests(1).with_cost(1);
    for (aging, expected) in
        [(Duration::from_secs(60), [4, 3, 2, 1]), (Duration::from_nanos(1), [1, 2, 3, 4])]
    {
        let mut test =
            TestSystem::start_with(system.clone(), pool.clone().with_batch(batch).with_aging(aging)).await;
        let loader = ScriptedLoader::default();
        let record = loader.record.clone();
        let model = test.model("model", loader);
        let (gate, running) = occupy(&test, &model).await;
        let options = |lane, priority| CallOptions::default().with_lane(lane).with_priority(priority);
        let asked = [
            options(Lane::Batch, Priority::default()),
            options(Lane::Interactive, Priority::LOW),
            options(Lane::Interactive, Priority::default()),
            options(Lane::Interactive, Priority::HIGH),
        ];
        let mut pending = Vec::new();
        for (value, options) in (1..).zip(asked) {
            pending.push(send_with(&model, Act::Reply(value), options));
            queued(&test, &model, pending.len()).await;
        }
        gate.open();
        end(running).await.unwrap();
        for request in pending {
            end(request).await.unwrap();
        }
        assert_eq!(order(&record), expected, "a level is worth {aging:?}");
        test.finish().await;
    }
}

#[tokio::test]
async fn requests_that_wait_share_a_batch_within_count_cost_and_key() {
    let request = |value, cost, key| ScriptedRequest { act: Act::Reply(value), cost, key };
    type Row = (&'static str, BatchLimits, Vec<ScriptedRequest>, Vec<Vec<u64>>);
    let table: [Row; 4] = [
        ("all fit", limits(8, 100), (0..4).map(|v| request(v, 1, 0)).collect(), vec![vec![0, 1, 2, 3]]),
        (
            "by count",
            limits(3, 100),
            (0..5).map(|v| request(v, 1, 0)).collect(),
            vec![vec![0, 1, 2], vec![3, 4]],
        ),
        ("by cost", limits(8, 100), (0..3).map(|v| request(v, 50, 0)).collect(), vec![vec![0, 1], vec![2]]),
        (
            "by key",
            limits(8, 100),
            (0..4).map(|v| request(v, 1, v % 2)).collect(),
            vec![vec![0, 2], vec![1, 3]],
        ),
    ];
    for (row, batch, requests, expected) in table {
        let (system, pool) = single();
        let mut test = TestSystem::start_with(system, pool.with_batch(batch)).await;
        let loader = ScriptedLoader::default();
        let record = loader.record.clone();
        let model = test.model("model", loader);
        let (gate, running) = occupy(&test, &model).await;
        let mut pending = Vec::new();
        for request in requests {
            pending.push(send(&model, request));
            queued(&test, &model, pending.len()).await;
        }
        gate.open();
        end(running).await.unwrap();
        for request in pending {
            end(request).await.unwrap();
        }
        assert_eq!(record.batches()[1..], expected, "{row}");
        test.finish().await;
    }
}

fn limits(requests: usize, cost: u64) -> BatchLimits {
    BatchLimits::default().with_requests(requests).with_cost(cost)
}

#[tokio::test]
async fn a_request_that_has_to_wait_hears_its_position() {
    let mut test = start(single()).await;
    let model = test.model("model", ScriptedLoader::default());
    let (gate, running) = occupy(&test, &model).await;
    let mut events = test.system.events();
    let waiting: Vec<Pending> = (0..3).map(|value| send(&model, Act::Reply(value))).collect();
    for expected in 0..3 {
        let position = TestSystem::event(&mut events, "it is queued", |event| match event {
            Event::Queued { position, .. } => Some(*position),
            _ => None,
        })
        .await;
        assert_eq!(position, expected);
    }
    gate.open();
    for pending in std::iter::once(running).chain(waiting) {
        end(pending).await.unwrap();
    }
    test.finish().await;
}

/// A second worker is started while the first is busy, and no request waits beside an idle one.
#[tokio::test]
async fn a_queue_behind_busy_workers_gets_another_worker() {
    let (system, pool) = TestSystem::quick();
    let mut test = TestSystem::start_with(system, pool.with_max_workers(3)).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let gate = Gate::default();
    let busy_ones: Vec<Pending> = (0..4).map(|_| send_alone(&model, Act::Work(gate.latch()))).collect();
    test.until_model("model", "all that it may have are busy", |model| {
        busy(model) == 3 && model.queued_interactive == 1
    })
    .await;
    gate.open();
    for pending in busy_ones {
        end(pending).await.unwrap();
    }
    assert_eq!((count(&record.loads), count(&record.builds)), (1, 3));
    test.finish().await;
}

/// One recorder for all tests of this file, which use different models.
fn recorder() -> &'static Snapshotter {
    static RECORDER: std::sync::OnceLock<Snapshotter> = std::sync::OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().expect("nothing else records in this process");
        snapshotter
    })
}

/// The counters of one model: the name, and the label besides capability and model, if any.
fn counters(model: &str) -> HashMap<String, u64> {
    let mut counters = HashMap::new();
    for (key, _, _, value) in recorder().snapshot().into_vec() {
        let (name, labels) = key.key().clone().into_parts();
        let of_model = labels.iter().any(|label| label.key() == "model" && label.value() == model);
        let extra = labels.iter().find(|label| !["model", "capability"].contains(&label.key()));
        let name =
            extra.map_or(name.as_str().to_owned(), |label| format!("{} {}", name.as_str(), label.value()));
        match value {
            DebugValue::Counter(count) if of_model => drop(counters.insert(name, count)),
            DebugValue::Histogram(values) if of_model => drop(counters.insert(name, values.len() as u64)),
            _ => {}
        }
    }
    counters
}

#[tokio::test]
async fn the_metrics_say_what_the_callers_counted() {
    recorder();
    let mut test = with_queue(2, 1).await;
    let model = test.model("metered", ScriptedLoader::default());
    let mut counted: HashMap<&str, u64> = HashMap::new();
    for act in [Act::Reply(1), Act::Reply(2), Act::Fail, Act::Refuse, Act::Panic] {
        let reason = ask(&model, act).await.map_or_else(|error| error.reason(), |_| "ok");
        *counted.entry(reason).or_default() += 1;
    }
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(3));
    queued(&test, &model, 1).await;
    try_ask(&model, Lane::Interactive).await.unwrap_err();
    let brief = CallOptions::default().with_timeout(millis(20));
    model.call(Act::Reply(4).into(), brief).await.unwrap_err();
    running.abort();
    let _ = running.await;
    gate.open();
    end(waiting).await.unwrap();
    assert_eq!(counted, HashMap::from([("ok", 2), ("model_error", 1), ("invalid_input", 1), ("poison", 1)]));
    model.unload(Duration::from_secs(5)).await.unwrap();
    test.finish().await;

    let metrics = counters("metered");
    let table = [
        (metric::REQUESTS.to_owned(), 9),
        (metric::SUCCEEDED.to_owned(), 3),
        (metric::CANCELLED.to_owned(), 1),
        (format!("{} model_error", metric::ERRORS), 1),
        (format!("{} invalid_input", metric::ERRORS), 1),
        (format!("{} poison", metric::ERRORS), 1),
        (format!("{} overloaded", metric::ERRORS), 1),
        (format!("{} timeout", metric::ERRORS), 1),
        (format!("{} waiting_for_slot", metric::TIMEOUTS), 1),
        (format!("{} interactive", metric::QUEUE_FULL), 1),
        (metric::WORKERS_SPAWNED.to_owned(), 3),
        (format!("{} unload", metric::WORKERS_EVICTED), 1),
        (metric::BACKPRESSURE_WAIT.to_owned(), 1),
        (metric::RUN_TIME.to_owned(), 8),
        (metric::BATCH_SIZE.to_owned(), 8),
    ];
    for (name, expected) in table {
        assert_eq!(metrics.get(&name), Some(&expected), "{name} of {metrics:#?}");
    }
}

#[tokio::test]
async fn an_urgent_request_is_first_among_those_that_wait_for_a_slot_and_waiting_makes_up_for_it() {
    let (system, pool) = single();
    let pool = pool.with_queue(QueueCapacity::new(1, 1)).with_aging(Duration::from_secs(600));
    let mut test = TestSystem::start_with(system, pool).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.model("model", loader);
    let (gate, first) = occupy(&test, &model).await;
    let call = |value, priority| {
        let options = CallOptions::default().with_priority(priority);
        Box::pin(model.call(Act::Reply(value).into(), options))
    };
    let mut waiting = vec![
        call(1, Priority::LOW),
        call(2, Priority::default()),
        call(3, Priority::HIGH),
        call(4, Priority::default()),
    ];
    for call in &mut waiting {
        assert!(is_pending(call).await, "the queue is full");
    }
    gate.open();
    end(first).await.unwrap();
    let answers = waiting.into_iter().map(|call| async { call.await.unwrap() });
    let mut answers: Vec<_> = answers.map(Box::pin).collect();
    let all = std::future::poll_fn(|context| {
        answers.retain_mut(|answer| answer.as_mut().poll(context).is_pending());
        if answers.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("every request ends");
    let served: Vec<u64> = record.batches()[1..].concat();
    assert_eq!(served, [3, 2, 4, 1]);
    test.finish().await;
}
