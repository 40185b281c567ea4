//! `shutdown()` ends everything from whatever state: on time, with every caller answered and a true report.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use model_actors::testing::{Act, Gate, Leak, Scripted, ScriptedLoader, TestSystem};
use model_actors::{BreakerState, Bytes, CallOptions, Error, PoolConfig, System, SystemConfig, SystemState};

/// The time that queued and running requests have here.
const TIMEOUT: Duration = Duration::from_millis(150);
/// Time that a slow machine may add; far below any other time that could be meant.
const SLACK: Duration = Duration::from_secs(3);

fn brief() -> (SystemConfig, PoolConfig) {
    let (system, pool) = single();
    (system.with_shutdown_timeout(TIMEOUT), pool)
}

fn is_shutting_down(result: model_actors::Result<u64>) -> bool {
    matches!(result, Err(Error::ShuttingDown))
}

#[tokio::test]
async fn an_idle_system_ends_at_once() {
    let mut test = start(brief()).await;
    let model = test.model("model", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    let report = test.finish().await;
    assert!(report.is_clean() && report.took < TIMEOUT, "{report:?}");
    assert!(matches!(refused(&model, Act::Reply(2)).await, Error::ShuttingDown));
    assert!(matches!(model.preload().await, Err(Error::ShuttingDown)));
}

#[tokio::test]
async fn what_was_accepted_may_finish() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system.with_shutdown_timeout(SLACK), pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let system = test.system.clone();
    let (gate, running) = occupy(&test, &model).await;
    let waiting = send(&model, Act::Reply(1));
    queued(&test, &model, 1).await;

    let shutdown = tokio::spawn(test.shut_down());
    wait(&system, "it shuts down", SystemState::ShuttingDown).await;
    assert!(matches!(refused(&model, Act::Reply(2)).await, Error::ShuttingDown), "nothing new is taken");
    gate.open();
    assert_eq!((end(running).await.unwrap(), end(waiting).await.unwrap()), (0, 1));
    let (report, leaks) = shutdown.await.unwrap();
    assert!(report.is_clean() && leaks.is_empty(), "{report:?} {leaks:?}");
}

async fn wait(system: &System, what: &str, state: SystemState) {
    model_actors::testing::wait_for(&mut system.watch(), what, |status| status.state == state).await;
}

/// State of a system when it is shut down, with a request that would stay there for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Busy,
    Queued,
    Loading,
    WaitingForRoom,
    Backoff,
    Streaming,
    WaitingForSlot,
}

#[tokio::test]
async fn from_every_state_it_is_on_time_and_answers_every_caller() {
    use State::*;
    for state in [Busy, Queued, Loading, WaitingForRoom, Backoff, Streaming, WaitingForSlot] {
        let (system, mut pool) = brief();
        let system = system.with_memory_limit(Bytes::mib(30));
        pool.room_wait = Duration::from_secs(60);
        (pool.restart.first_backoff, pool.restart.max_backoff) = (millis(60_000), millis(60_000));
        if state == WaitingForSlot {
            pool.queue = Some(model_actors::QueueCapacity::new(1, 1));
        }
        let mut test = TestSystem::start_with(system, pool).await;
        let gate = Gate::default();
        let mut callers = Vec::new();
        match state {
            Busy | Queued | WaitingForSlot => {
                let model = test.model("model", ScriptedLoader::default());
                callers.push(send(&model, Act::Work(gate.latch())));
                test.until_model("model", "it runs", |model| busy(model) == 1).await;
                if state != Busy {
                    callers.push(send(&model, Act::Reply(1)));
                }
                if state == Queued {
                    queued(&test, &model, 1).await;
                }
            }
            Loading => {
                let loader = ScriptedLoader { load_works: Some(gate.latch()), ..ScriptedLoader::default() };
                let model = test.model("model", loader);
                callers.push(send(&model, Act::Reply(1)));
                test.until_model("model", "it loads", |model| model.loading.is_some()).await;
            }
            WaitingForRoom => {
                let first = test.model("first", weights(20));
                let second = test.model("second", weights(20));
                callers.push(send(&first, Act::Work(gate.latch())));
                test.until_model("first", "it runs", |model| busy(model) == 1).await;
                callers.push(send(&second, Act::Reply(1)));
                queued(&test, &second, 1).await;
            }
            Backoff => {
                let model =
                    test.model("model", ScriptedLoader { load_fails: 1, ..ScriptedLoader::default() });
                callers.push(send(&model, Act::Reply(1)));
                test.until_model("model", "it failed", |model| model.failures == 1).await;
            }
            Streaming => {
                let model = test.stream_model("model", ScriptedLoader::default());
                let act = Act::StreamThenWork(2, gate.latch());
                let mut stream = model.stream(act.into(), CallOptions::default()).await.unwrap();
                assert_eq!(stream.next().await.transpose().unwrap(), Some(0));
                callers.push(tokio::spawn(stream.output()));
            }
        }
        let began = Instant::now();
        let (report, _) = test.shut_down().await;
        assert!(began.elapsed() < TIMEOUT + SLACK, "{state:?}: {:?}", began.elapsed());
        let waits_for_slot = usize::from(state == WaitingForSlot);
        assert_eq!(report.abandoned_requests, callers.len() - waits_for_slot, "{state:?}");
        for caller in callers {
            let answer = end(caller).await;
            assert!(is_shutting_down(answer.clone()), "{state:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_open_breaker_delays_nothing() {
    let (system, pool) = brief();
    let restart = pool.restart.with_max_restarts(0).with_breaker_open(Duration::from_secs(60));
    let mut test = TestSystem::start_with(system, pool.with_restart(restart)).await;
    let model = test.model("model", ScriptedLoader { load_fails: 1, ..ScriptedLoader::default() });
    assert!(matches!(refused(&model, Act::Reply(1)).await, Error::CircuitOpen { .. }));
    test.until_model("model", "the breaker is open", |model| model.breaker == BreakerState::Open).await;
    assert!(test.finish().await.took < TIMEOUT);
}

#[tokio::test]
async fn a_worker_that_never_returns_is_reported_and_not_waited_for() {
    for while_loading in [false, true] {
        let mut test = start(brief()).await;
        let gate = Gate::default();
        let load_hangs = while_loading.then(|| gate.latch());
        let model = test.model("acme/model", ScriptedLoader { load_hangs, ..ScriptedLoader::default() });
        let caller = send(&model, Act::Hang(gate.latch()));
        let phase = if while_loading { "it loads" } else { "it runs" };
        test.until_model("acme/model", phase, |model| {
            if while_loading { model.loading.is_some() } else { busy(model) == 1 }
        })
        .await;
        let began = Instant::now();
        let (report, leaks) = test.shut_down().await;
        assert!(began.elapsed() < TIMEOUT + SLACK);
        assert!(is_shutting_down(end(caller).await));
        assert_eq!(
            (report.abandoned_requests, report.unfinished_threads),
            (1, vec!["model#1 scripted".to_owned()])
        );
        assert_eq!(report.remaining, Bytes::mib(11), "what its thread holds");
        assert!(leaks.contains(&Leak::Bytes { bytes: Bytes::mib(11) }));
    }
}

#[tokio::test]
async fn a_quarantined_thread_is_reported_too() {
    let (system, mut pool) = brief();
    pool.stall.run = millis(30);
    let mut test = TestSystem::start_with(system, pool).await;
    let model = test.model("model", ScriptedLoader::default());
    let gate = Gate::default();
    assert!(matches!(refused(&model, Act::Hang(gate.latch())).await, Error::WorkerStuck { .. }));
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    let (report, _) = test.shut_down().await;
    assert_eq!(
        (report.abandoned_requests, &report.unfinished_threads),
        (0, &vec!["model#1 scripted".to_owned()])
    );
    assert!(report.took < TIMEOUT, "a thread that was given up is not waited for: {report:?}");
}

#[tokio::test]
async fn two_callers_of_shutdown_both_return() {
    let mut test = start(brief()).await;
    let model = test.model("model", ScriptedLoader::default());
    ask(&model, Act::Reply(1)).await.unwrap();
    let (system, other) = (test.system.clone(), test.system.clone());
    let (first, second) = tokio::join!(system.shutdown(), other.shutdown());
    assert!(first.is_clean() && second.is_clean());
    test.finish().await;
}

#[tokio::test]
async fn every_caller_of_shutdown_gets_the_same_report() {
    let mut test = start(brief()).await;
    let model = test.model("model", ScriptedLoader::default());
    let gate = Gate::default();
    let caller = send(&model, Act::Hang(gate.latch()));
    test.until_model("model", "it runs", |model| busy(model) == 1).await;
    let (system, other) = (test.system.clone(), test.system.clone());
    let (first, second) = tokio::join!(system.shutdown(), other.shutdown());
    assert_eq!((first.abandoned_requests, first.unfinished_threads.len()), (1, 1), "{first:?}");
    assert_eq!(second, first);
    assert_eq!(system.shutdown().await, first, "and whoever comes later");
    assert!(is_shutting_down(end(caller).await));
    gate.open();
    test.shut_down().await;
}

/// Without `shutdown()` nobody waits, but nobody hangs either and nothing stays in memory.
#[tokio::test]
async fn a_system_that_is_dropped_answers_its_callers_and_frees_its_models() {
    let (config, pool) = brief();
    let system = System::builder(config).pool::<Scripted>(pool).start().await.unwrap();
    let mut status = system.watch();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let client = system.client::<Scripted>().unwrap();
    let model = client.register(model_actors::ModelSpec::new("model", loader)).unwrap();
    let gate = Gate::default();
    let running = send(&model, Act::Work(gate.latch()));
    let is_busy = |status: &model_actors::SystemStatus| {
        status.model("scripted", "model").is_some_and(|model| busy(model) == 1)
    };
    model_actors::testing::wait_for(&mut status, "it runs", is_busy).await;
    let waiting = send(&model, Act::Reply(1));

    drop(system);
    for caller in [running, waiting] {
        let error = end(caller).await.unwrap_err();
        assert!(matches!(error, Error::RecvError { .. } | Error::ShuttingDown), "{error}");
    }
    model_actors::testing::wait_for(&mut status, "it has ended", |status| {
        status.state == SystemState::Stopped
    })
    .await;
    assert!(matches!(refused(&model, Act::Reply(2)).await, Error::ShuttingDown));
    freed(&record).await;
}

/// Set in the child process, which is this test binary again.
const CHILD: &str = "MODEL_ACTORS_STUCK_CHILD";

#[tokio::test]
async fn a_stuck_thread_does_not_delay_the_exit_of_the_process() {
    if std::env::var_os(CHILD).is_some() {
        let mut test = start(brief()).await;
        let model = test.model("model", ScriptedLoader::default());
        let gate = Gate::default();
        let caller = send(&model, Act::Hang(gate.latch()));
        test.until_model("model", "it runs", |model| busy(model) == 1).await;
        let (report, _) = test.shut_down().await;
        assert_eq!(report.unfinished_threads.len(), 1);
        assert!(is_shutting_down(end(caller).await));
        // The gate stays shut: the thread hangs until the process is gone.
        std::mem::forget(gate);
        return;
    }
    let began = Instant::now();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_stuck_thread_does_not_delay_the_exit_of_the_process"]).env(CHILD, "1");
    let output = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(began.elapsed() < Duration::from_secs(20), "a hang lasts 60 s: {:?}", began.elapsed());
}
