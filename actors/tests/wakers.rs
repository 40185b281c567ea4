//! A caller's waker is code of the caller's: one that panics, or that drops at once what it wakes, costs nobody else
//! anything, and what it was called for is there when the caller asks again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use common::*;
use futures_core::Stream;
use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, StreamedScript, TestSystem, Victim};
use model_actors::{CallOptions, Error, Event, ModelHandle, QueueCapacity, ReplyStream, RequestPhase};

/// Panics when it is dropped, with another of its kind.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::panic_any(Self);
        }
    }
}

/// Panics whenever it is called.
struct Panics(Arc<AtomicUsize>);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::panic::panic_any(Bomb);
    }
}

/// A future that was polled once by a waker that panics, and the number of calls of that.
struct Watched<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    woken: Arc<AtomicUsize>,
}

impl<T> Watched<T> {
    fn new(future: impl Future<Output = T> + 'static) -> Self {
        let (mut future, woken): (Pin<Box<dyn Future<Output = T>>>, _) = (Box::pin(future), times(0));
        let waker = Waker::from(Arc::new(Panics(woken.clone())));
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        Self { future, woken }
    }

    /// Waits until it is woken, and asks by another waker.
    async fn woken(self) -> T {
        until_true(|| count(&self.woken) > 0).await;
        self.future.await
    }
}

/// A system whose models have one slot.
async fn one_slot() -> TestSystem {
    let (system, pool) = single();
    TestSystem::start_with(system, pool.with_queue(QueueCapacity::new(1, 1))).await
}

fn calls(model: &ModelHandle<Scripted>, act: Act, timeout: u64) -> Watched<model_actors::Result<u64>> {
    let (model, options) = (model.clone(), CallOptions::default().with_timeout(millis(timeout)));
    Watched::new(async move { model.call(act.into(), options).await })
}

#[tokio::test]
async fn a_waker_that_panics_costs_nobody_else_anything() {
    let mut test = one_slot().await;
    let mut events = test.system.events();
    let model = test.model("model", ScriptedLoader::default());
    let streamed = test.stream_model("streamed", ScriptedLoader::default());
    let other = test.model("other", ScriptedLoader::default());

    let event = {
        let mut events = test.system.events();
        Watched::new(async move { events.recv().await })
    };
    let status = {
        let mut status = test.system.watch();
        status.mark_unchanged();
        Watched::new(async move { status.changed().await })
    };
    let preload = {
        let model = model.clone();
        Watched::new(async move { model.preload().await })
    };
    preload.woken().await.unwrap();
    event.woken().await.unwrap();
    status.woken().await.unwrap();

    // Answered by a worker's thread.
    let gate = Gate::default();
    let answered = calls(&model, Act::Work(gate.latch()), 20_000);
    until_true(|| gate.was_reached()).await;
    // Its slot is given back to one that waits for it.
    let waits = calls(&model, Act::Reply(7), 20_000);
    // And another waits in vain, until its time is up.
    let late = calls(&model, Act::Reply(8), 50);
    let error = late.woken().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: RequestPhase::WaitingForSlot, .. }), "{error}");
    gate.open();
    assert_eq!(answered.woken().await.unwrap(), 0);
    assert_eq!(waits.woken().await.unwrap(), 7);

    // Answered by the pool, at the deadline.
    let hang = Gate::default();
    let expired = calls(&model, Act::Hang(hang.latch()), 50);
    let error = expired.woken().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    hang.open();

    let gate = Gate::default();
    let begins = gate.latch();
    let busy = send_stream(&streamed, Act::Work(begins)).await;
    until_true(|| gate.was_reached()).await;
    let chunk = {
        let streamed = streamed.clone();
        Watched::new(async move {
            let options = CallOptions::default();
            let mut stream = streamed.stream(Act::Stream(1).into(), options).await?;
            let first = stream.next().await.unwrap();
            Ok::<_, Error>((first?, stream.output().await?))
        })
    };
    gate.open();
    assert_eq!(busy.output().await.unwrap(), 0);
    assert_eq!(chunk.woken().await.unwrap(), (0, 1));

    let unload = {
        let model = model.clone();
        Watched::new(async move { model.unload(millis(20_000)).await })
    };
    unload.woken().await.unwrap();

    // Nothing has ended that was not told to.
    assert_eq!(ask(&model, Act::Reply(1)).await.unwrap(), 1);
    assert_eq!(ask(&other, Act::Reply(2)).await.unwrap(), 2);
    while let Ok(event) = events.try_recv() {
        let lost = matches!(event, Event::PoolRestarted { .. } | Event::WorkerCrashed { .. });
        assert!(!lost, "{event:?}");
    }
    // One that waits is told of the death of a pool, too.
    let gate = Gate::default();
    let orphan = calls(&model, Act::Work(gate.latch()), 20_000);
    until_true(|| gate.was_reached()).await;
    let waits = calls(&model, Act::Reply(7), 20_000);
    test.kill(Victim::Pool).await;
    let error = orphan.woken().await.unwrap_err();
    assert!(matches!(error, Error::RecvError { .. }), "{error}");
    drop((waits, gate));

    let system = test.system.clone();
    let shutdown = Watched::new(async move { system.shutdown().await });
    assert!(shutdown.woken().await.is_clean());
    test.finish().await;
}

/// Waits for a slot, on the streamed pool.
async fn send_stream(model: &ModelHandle<StreamedScript>, act: Act) -> ReplyStream<StreamedScript> {
    model.stream(act.into(), CallOptions::default()).await.unwrap()
}

/// Drops what it wakes.
struct DropsAtOnce(Mutex<Option<ReplyStream<StreamedScript>>>, AtomicUsize);

impl Wake for DropsAtOnce {
    fn wake(self: Arc<Self>) {
        let stream = self.0.lock().unwrap().take();
        self.1.fetch_add(usize::from(stream.is_some()), Ordering::SeqCst);
        drop(stream);
    }
}

#[tokio::test]
async fn a_stream_that_goes_as_its_chunk_comes_holds_up_nobody() {
    let mut test = TestSystem::start_with(single().0, single().1).await;
    let model = test.stream_model("streamed", ScriptedLoader::default());
    let gate = Gate::default();
    let busy = send_stream(&model, Act::Work(gate.latch())).await;
    until_true(|| gate.was_reached()).await;
    let mut stream = send_stream(&model, Act::Stream(3)).await;
    let drops = Arc::new(DropsAtOnce(Mutex::new(None), AtomicUsize::new(0)));
    let waker = Waker::from(drops.clone());
    let first = Pin::new(&mut stream).poll_next(&mut Context::from_waker(&waker));
    assert!(matches!(first, Poll::Pending));
    *drops.0.lock().unwrap() = Some(stream);
    gate.open();
    busy.output().await.unwrap();
    until_true(|| drops.1.load(Ordering::SeqCst) == 1).await;
    let answer = send_stream(&model, Act::Reply(5)).await.output().await;
    assert_eq!(answer.unwrap(), 5);
    let status = test.system.status();
    assert_eq!(status.model("streamed_script", "streamed").unwrap().failures, 0, "no worker hung");
    test.finish().await;
}
