//! Telemetry for an operator: each loss has a log line, an event and a count; a request is found by its number in
//! spans, events and its handle; every metric has a unit and a description.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock};

use common::*;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use model_actors::testing::{
    Act, FakeLoader, Fault, FaultyLoader, Gate, Scripted, ScriptedLoader, ScriptedRequest, TestSystem,
    Victim, quick_timings, shut_down,
};
use model_actors::{
    CallOptions, Event, Failure, GenerateText, ModelHandle, ModelSpec, RestartConfig, StallLimits, System,
    TextToText, WorkerPhase, telemetry,
};
use tokio::sync::broadcast::Receiver;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Everything that was logged and traced on the thread of a test and on its workers' threads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Logged>>);

#[derive(Default)]
struct Logged {
    lines: Vec<(Level, String)>,
    /// Spans by number: the name, then the fields.
    spans: BTreeMap<u64, String>,
    /// A span and one that it follows from.
    links: Vec<(u64, u64)>,
}

struct Words<'a>(&'a mut String);

impl Visit for Words<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = String::new();
        event.record(&mut Words(&mut line));
        self.0.lock().unwrap().lines.push((*event.metadata().level(), line));
    }

    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut words = span.metadata().name().to_owned();
        span.record(&mut Words(&mut words));
        self.0.lock().unwrap().spans.insert(id.into_u64(), words);
    }

    fn on_record(&self, id: &Id, fields: &Record<'_>, _: Context<'_, S>) {
        let mut logged = self.0.lock().unwrap();
        fields.record(&mut Words(logged.spans.entry(id.into_u64()).or_default()));
    }

    fn on_follows_from(&self, id: &Id, from: &Id, _: Context<'_, S>) {
        self.0.lock().unwrap().links.push((id.into_u64(), from.into_u64()));
    }
}

/// One log and one recorder for all tests of this file, which use models of different names.
fn observed() -> &'static (Log, Snapshotter) {
    static OBSERVED: OnceLock<(Log, Snapshotter)> = OnceLock::new();
    OBSERVED.get_or_init(|| {
        let log = Log::default();
        let subscriber = tracing_subscriber::registry().with(log.clone());
        tracing::subscriber::set_global_default(subscriber).expect("nothing else logs in this process");
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().expect("nothing else records in this process");
        (log, snapshotter)
    })
}

impl Log {
    /// True if a warning or an error holds all of these.
    fn warned(&self, parts: &[&str]) -> bool {
        let logged = self.0.lock().unwrap();
        let serious = logged.lines.iter().filter(|(level, _)| *level <= Level::WARN);
        serious.into_iter().any(|(_, line)| parts.iter().all(|part| line.contains(part)))
    }

    /// The spans of the requests to a model, in order, with their fields.
    fn spans_of(&self, model: &str) -> Vec<String> {
        let logged = self.0.lock().unwrap();
        let begin = format!("{} capability=\"text_to_text\" model={model} ", telemetry::span::REQUEST);
        logged.spans.values().filter(|words| words.starts_with(&begin)).cloned().collect()
    }

    /// The run and the load of the model `traced` follow from the request.
    fn finds_runs_and_loads_of(&self, request: &str) {
        let logged = self.0.lock().unwrap();
        let span = |name: &str, field: &str| {
            let found = logged.spans.iter().find(|(_, words)| {
                words.starts_with(name) && words.contains("traced") && words.contains(field)
            });
            *found.unwrap_or_else(|| panic!("no span {name} with {field}")).0
        };
        let of_request = span(telemetry::span::REQUEST, request);
        for follower in [telemetry::span::LOAD, telemetry::span::RUN] {
            assert!(logged.links.contains(&(span(follower, ""), of_request)), "{follower}");
        }
    }
}

/// The count of a metric with this label, or the highest value of a gauge, and whether it has a unit and a description. Reading a recorder empties
/// it, so what was read is kept.
fn metered(name: &str, label: &str) -> Option<(u64, bool)> {
    static READ: Mutex<BTreeMap<(String, String), (u64, bool)>> = Mutex::new(BTreeMap::new());
    let mut read = READ.lock().unwrap();
    for (key, unit, about, value) in observed().1.snapshot().into_vec() {
        for label in key.key().labels() {
            let place = (key.key().name().to_owned(), label.value().to_owned());
            let (count, described) = read.entry(place).or_default();
            match &value {
                DebugValue::Counter(more) => *count += more,
                DebugValue::Histogram(values) => *count += values.len() as u64,
                DebugValue::Gauge(value) => *count = (*count).max(value.0 as u64),
            }
            *described = unit.is_some() && about.is_some();
        }
    }
    read.get(&(name.to_owned(), label.to_owned())).copied()
}

/// The event has come, the log speaks of it, and the metric counts it.
async fn told(
    events: &mut Receiver<Event>,
    (label, line, metric): (&str, &str, &str),
    is: impl Fn(&Event) -> bool,
) {
    TestSystem::event(events, line, |event| is(event).then_some(())).await;
    assert!(observed().0.warned(&[label, line]), "{line}");
    let (count, described) = metered(metric, label).unwrap_or_else(|| panic!("{metric} is not recorded"));
    assert!(count > 0 && described, "{metric}: {count}, described: {described}");
}

fn quick_breaker() -> RestartConfig {
    RestartConfig::default()
        .with_first_backoff(millis(1))
        .with_max_backoff(millis(1))
        .with_breaker_open(millis(1))
}

#[tokio::test]
async fn each_loss_has_a_line_an_event_and_a_count() {
    observed();
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system, pool.with_restart(quick_breaker())).await;
    let mut events = test.system.events();

    let fragile = test.model("fragile", ScriptedLoader::default());
    refused(&fragile, Act::Panic).await;
    told(&mut events, ("fragile", "a worker crashed", telemetry::metric::CRASHES), |event| {
        matches!(event, Event::WorkerCrashed { .. })
    })
    .await;
    told(
        &mut events,
        ("fragile", "requests are run again", telemetry::metric::RERUNS),
        |event| matches!(event, Event::RequestsRerun { requests, .. } if requests.len() == 1),
    )
    .await;
    told(&mut events, ("fragile", "a replacement starts", telemetry::metric::RESTARTS), |event| {
        matches!(event, Event::WorkerRestarted { .. })
    })
    .await;
    told(&mut events, ("fragile", "workers died running this request", telemetry::metric::POISON), |event| {
        matches!(event, Event::PoisonFound { .. })
    })
    .await;

    let hungry = test.model("hungry", ScriptedLoader::default());
    refused(&hungry, Act::NeedsBatchOf(0)).await;
    told(&mut events, ("hungry", "a run went out of memory", telemetry::metric::OUT_OF_MEMORY), |event| {
        matches!(event, Event::OutOfMemory { requests: 1, .. })
    })
    .await;

    let broken = test.model("broken", ScriptedLoader { load_fails: 4, ..ScriptedLoader::default() });
    refused(&broken, Act::Reply(1)).await;
    told(&mut events, ("broken", "could not be started", telemetry::metric::START_FAILURES), |event| {
        matches!(event, Event::StartFailed { .. })
    })
    .await;
    told(&mut events, ("broken", "failed too often", telemetry::metric::BREAKER_OPENED), |event| {
        matches!(event, Event::BreakerOpened { .. })
    })
    .await;
    until_answered(&broken).await;
    TestSystem::event(&mut events, "the breaker closes", |event| {
        matches!(event, Event::BreakerClosed { .. }).then_some(())
    })
    .await;
    assert!(observed().0.warned(&["broken", "takes requests again"]));

    test.kill(Victim::Pool).await;
    told(&mut events, ("scripted", "a pool failed", telemetry::metric::POOL_RESTARTS), |event| {
        matches!(event, Event::PoolRestarted { .. })
    })
    .await;
    test.finish().await;
}

#[tokio::test]
async fn a_stuck_worker_has_a_line_an_event_and_a_count() {
    observed();
    let (system, pool) = single();
    let stall = StallLimits::default().with_run(millis(200));
    let mut test = TestSystem::start_with(system, pool.with_stall(stall)).await;
    let mut events = test.system.events();
    let slow = test.model("slow", ScriptedLoader::default());
    let gate = Gate::default();
    let hung = send(&slow, Act::Hang(gate.latch()));
    told(&mut events, ("slow", "made no progress", telemetry::metric::STALLS), |event| {
        matches!(event, Event::WorkerStuck { .. })
    })
    .await;
    end(hung).await.unwrap_err();
    test.until_model("slow", "it is stuck", |model| in_phase(model, WorkerPhase::Stuck) == 1).await;
    assert_eq!(metered(telemetry::metric::STUCK_THREADS, "slow"), Some((1, true)));
    gate.open();
    test.until_model("slow", "its thread has ended", |model| in_phase(model, WorkerPhase::Stuck) == 0).await;
    test.finish().await;
}

/// Asks until the breaker lets a probe through, which it does at a request alone.
async fn until_answered(model: &ModelHandle<Scripted>) {
    let answered = async {
        while ask(model, Act::Reply(1)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(millis(30_000), answered).await.expect("the breaker closes again");
}

#[tokio::test]
async fn a_request_is_measured_from_its_call_to_its_end() {
    observed();
    let mut test = start(single()).await;
    let model = test.stream_model("measured", ScriptedLoader::default());
    let stream = model.stream(Act::Stream(3).into(), CallOptions::default()).await.unwrap();
    assert_eq!(stream.output().await.unwrap(), 3);
    for (metric, count) in [
        (telemetry::metric::QUEUE_WAIT, 1),
        (telemetry::metric::LOAD_TIME, 1),
        (telemetry::metric::TIME_TO_FIRST_OUTPUT, 1),
        (telemetry::metric::TIME_BETWEEN_OUTPUTS, 2),
        (telemetry::metric::REQUEST_TIME, 1),
    ] {
        assert_eq!(metered(metric, "measured"), Some((count, true)), "{metric}");
    }
    test.until_model("measured", "it is at rest", |model| idle(model) == 1).await;
    assert_eq!(metered(telemetry::metric::WORKERS, "measured"), Some((1, true)));
    test.finish().await;
}

#[tokio::test]
async fn a_request_is_found_by_its_number() {
    let (log, _) = observed();
    let mut test = start(single()).await;
    let model = test.stream_model("traced", ScriptedLoader::default());
    let stream = model.stream(Act::Stream(1).into(), CallOptions::default()).await.unwrap();
    let request = format!(" request={}", stream.id().0);
    stream.output().await.unwrap();
    log.finds_runs_and_loads_of(&request);
    test.finish().await;
}

#[tokio::test]
async fn the_span_of_a_request_says_how_long_it_waited_what_it_cost_and_how_it_ended() {
    let (log, _) = observed();
    let (system, pool) = quick_timings();
    let system = System::builder(system).pool::<TextToText>(pool).start().await.unwrap();
    let client = system.client::<TextToText>().unwrap();
    let faults = FaultyLoader::new(FakeLoader::default()).with_run_faults([
        Fault::None,
        Fault::None,
        Fault::Fail(Failure::failed("the model fell")),
    ]);
    let model = client.register(ModelSpec::new("told", faults)).unwrap();
    let request = || GenerateText::from("one two three").with_max_tokens(2);
    let ask = async || {
        let stream = model.stream(request(), CallOptions::default()).await.unwrap();
        let number = format!(" request={} ", stream.id().0);
        (stream, number)
    };
    model.call(request(), CallOptions::default()).await.unwrap();
    let (answered, number) = ask().await;
    answered.output().await.unwrap();
    let (failed, failing) = ask().await;
    failed.output().await.unwrap_err();
    let (dropped, gone) = ask().await;
    drop(dropped);

    let spans = log.spans_of("told");
    let with = |words: &str| spans.iter().filter(|span| span.contains(words)).collect::<Vec<_>>();
    assert_eq!(spans.len(), 4, "{spans:?}");
    let answered = with(" input_tokens=3 cached_tokens=0 output_tokens=2");
    assert!(answered.len() == 2 && answered.iter().any(|span| span.contains(&number)), "{answered:?}");
    assert!(answered.iter().all(|span| span.contains(" queue_wait_seconds=") && !span.contains(" error=")));
    let [failed] = with(&failing)[..] else { panic!("one span has the number {failing}") };
    assert!(failed.ends_with(" error=\"model_error\"") && !failed.contains("_tokens="), "{failed}");
    let [cancelled] = with(&gone)[..] else { panic!("one span has the number {gone}") };
    assert!(cancelled.ends_with(" error=\"cancelled\""), "{cancelled}");
    let (report, leaks) = shut_down(&system).await;
    assert!(report.is_clean() && leaks.is_empty(), "{leaks:?}");
}

/// The next position that a request is told.
async fn position(events: &mut Receiver<Event>) -> (u64, usize) {
    TestSystem::event(events, "a position is told", |event| match event {
        Event::Queued { request, position, .. } => Some((request.0, *position)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_position_is_told_when_it_changes_and_not_to_a_request_that_need_not_wait() {
    let mut test = start(single()).await;
    let model = test.model("queueing", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    let mut events = test.system.events();
    ask(&model, Act::Reply(1)).await.unwrap();
    let (gate, running) = occupy(&test, &model).await;
    let alone = |act: Act| send(&model, ScriptedRequest { cost: u64::MAX / 2, ..act.into() });
    let second_gate = Gate::default();
    let next = alone(Act::Work(second_gate.latch()));
    let (first, at) = position(&mut events).await;
    assert_eq!(at, 0, "neither of those that found a worker idle was told of a queue");
    let last = alone(Act::Reply(2));
    let (second, at) = position(&mut events).await;
    assert!(second > first && at == 1);
    gate.open();
    assert_eq!(position(&mut events).await, (second, 0), "the one before it runs now");
    second_gate.open();
    for pending in [running, next, last] {
        end(pending).await.unwrap();
    }
    test.finish().await;
}
