//! The system runs on the tokio runtime that it was started on; its callers may be on any executor, and a runtime that
//! will not do is refused at the start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, TestSystem};
use model_actors::{CallOptions, Error, PoolConfig, QueueCapacity, RequestPhase, System, SystemConfig};
use tokio::runtime::{Builder, Runtime};

/// Wakes a thread that waits for a future: an executor with nothing of tokio.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    assert!(tokio::runtime::Handle::try_current().is_err());
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

fn elsewhere<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || block_on(future))
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
}

/// A system with one slot, on a runtime of its own, as the tests' threads are on none.
fn one_slot(runtime: &Runtime) -> TestSystem {
    let (system, pool) = single();
    let pool = pool.with_queue(QueueCapacity::new(1, 1));
    let system = system.with_shutdown_timeout(Duration::from_millis(200));
    runtime.block_on(TestSystem::start_with(system, pool))
}

#[test]
fn a_call_from_another_executor_works_whether_the_queue_is_full_or_not() {
    let runtime = runtime();
    let mut test = one_slot(&runtime);
    let model = test.model("model", ScriptedLoader::default());
    let call = |act: Act, options: CallOptions| {
        let model = model.clone();
        elsewhere(async move { model.call(act.into(), options).await })
    };
    let usual = CallOptions::default;
    assert_eq!(call(Act::Reply(1), usual()).join().unwrap().unwrap(), 1);
    let gate = Gate::default();
    let running = call(Act::Work(gate.latch()), usual());
    while !gate.was_reached() {
        std::thread::yield_now();
    }
    let late = call(Act::Reply(2), usual().with_timeout(millis(20))).join().expect("no panic").unwrap_err();
    let Error::Timeout { phase: RequestPhase::WaitingForSlot, .. } = late else { panic!("{late}") };
    let waiting = call(Act::Reply(3), usual());
    gate.open();
    assert_eq!(running.join().unwrap().unwrap(), 0);
    assert_eq!(waiting.join().expect("no panic").unwrap(), 3);
    runtime.block_on(test.finish());
}

#[test]
fn everything_else_works_from_another_executor_too() {
    let runtime = runtime();
    let mut test = one_slot(&runtime);
    let model = test.model("model", ScriptedLoader::default());
    let streams = test.stream_model("stream", ScriptedLoader::default());
    let stream = async move {
        let mut stream = streams.stream(Act::Stream(3).into(), CallOptions::default()).await.unwrap();
        let mut read = 0;
        while stream.next().await.is_some() {
            read += 1;
        }
        (read, stream.output().await.unwrap())
    };
    assert_eq!(elsewhere(stream).join().expect("no panic"), (3, 3));
    let calls = async move {
        model.preload().await.unwrap();
        model.pin(true).await.unwrap();
        model.unload(Duration::from_secs(10)).await.unwrap();
        let gate = Gate::default();
        let mut working = Box::pin(model.call(Act::Work(gate.latch()).into(), CallOptions::default()));
        assert!(is_pending(&mut working).await);
        while !gate.was_reached() {
            std::thread::yield_now();
        }
        let error = model.unload(Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, Error::UnloadIncomplete { .. }), "{error}");
        gate.open();
        working.await.unwrap()
    };
    assert_eq!(elsewhere(calls).join().expect("no panic"), 0);
    let system = test.system.clone();
    assert!(elsewhere(async move { system.shutdown().await }).join().expect("no panic").is_clean());
    runtime.block_on(test.finish());
}

/// The system's runtime may go before its callers do.
#[test]
fn callers_elsewhere_are_told_when_the_systems_runtime_has_gone() {
    let runtime = runtime();
    let mut test = one_slot(&runtime);
    let model = test.model("model", ScriptedLoader::default());
    let gate = Gate::default();
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let (model, act) = (model.clone(), Act::Work(gate.latch()));
            elsewhere(async move { model.call(act.into(), CallOptions::default()).await })
        })
        .collect();
    while !gate.was_reached() {
        std::thread::yield_now();
    }
    drop(runtime);
    for call in calls {
        let error = call.join().expect("no panic").unwrap_err();
        assert!(matches!(error, Error::RecvError { .. } | Error::ShuttingDown), "{error}");
    }
    gate.open();
    let after = block_on(async {
        let system = test.system.clone();
        (
            ask(&model, Act::Reply(1)).await,
            model.preload().await,
            model.pin(true).await,
            system.shutdown().await,
        )
    });
    for error in [after.0.unwrap_err(), after.1.unwrap_err(), after.2.unwrap_err()] {
        assert!(matches!(error, Error::ShuttingDown), "{error}");
    }
    block_on(test.shut_down());
}

#[test]
fn a_start_without_a_runtime_or_with_one_that_has_no_timers_fails() {
    let start = || System::builder(SystemConfig::default()).pool::<Scripted>(PoolConfig::default()).start();
    let error = block_on(start()).map(drop).expect_err("there is no runtime");
    assert!(matches!(error, Error::StartFailed { .. }), "{error}");
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let error = builder.build().unwrap().block_on(start()).map(drop).expect_err("there are no timers");
        let Error::StartFailed { cause } = &error else { panic!("{error}") };
        assert!(cause.message().contains("enable_time"), "{error}");
    }
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let runtime = builder.enable_time().build().unwrap();
        let system = runtime.block_on(start()).expect("timers are all that is needed");
        assert!(runtime.block_on(system.shutdown()).is_clean());
    }
}
