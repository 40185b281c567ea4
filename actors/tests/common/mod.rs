//! Helpers of all tests: short ways to ask, to wait and to count.

#![allow(clippy::expect_used, reason = "a test helper fails its test by panicking")]
#![allow(dead_code, unreachable_pub, reason = "each file uses some of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model_actors::testing::{Act, Gate, Scripted, ScriptedLoader, ScriptedRequest, TestSystem};
use model_actors::{
    Bytes, CallOptions, Device, Error, Footprint, ModelHandle, ModelStatus, PoolConfig, Result, SystemConfig,
    WorkerPhase,
};
use tokio::task::JoinHandle;

pub type Pending = JoinHandle<Result<u64>>;

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asks and waits for the answer.
pub async fn ask(model: &ModelHandle<Scripted>, request: impl Into<ScriptedRequest>) -> Result<u64> {
    model.call(request.into(), CallOptions::default()).await
}

/// Asks in a task of its own.
pub fn send(model: &ModelHandle<Scripted>, request: impl Into<ScriptedRequest>) -> Pending {
    send_with(model, request, CallOptions::default())
}

pub fn send_with(
    model: &ModelHandle<Scripted>,
    request: impl Into<ScriptedRequest>,
    options: CallOptions,
) -> Pending {
    let (model, request) = (model.clone(), request.into());
    tokio::spawn(async move { model.call(request, options).await })
}

/// Result of a pending request.
pub async fn end(pending: Pending) -> Result<u64> {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, pending).await.expect("every request ends").expect("the caller did not panic")
}

/// Asks and expects an error.
pub async fn refused(model: &ModelHandle<Scripted>, request: impl Into<ScriptedRequest>) -> Error {
    ask(model, request).await.expect_err("the request fails")
}

pub fn times(count: usize) -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(count))
}

pub fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

/// A loader of a model with so many MiB of weights and 1 MiB for each worker.
pub fn weights(mib: u64) -> ScriptedLoader {
    let footprint = Footprint::new(Bytes::mib(mib), Bytes::mib(1));
    ScriptedLoader { footprint, ..ScriptedLoader::default() }
}

/// Quick settings with one worker to a model.
pub fn single() -> (SystemConfig, PoolConfig) {
    let (system, pool) = TestSystem::quick();
    (system, pool.with_max_workers(1))
}

pub async fn start((system, pool): (SystemConfig, PoolConfig)) -> TestSystem {
    TestSystem::start_with(system, pool).await
}

/// A worker that is busy until the gate opens, and the request that it runs.
pub async fn occupy(test: &TestSystem, model: &ModelHandle<Scripted>) -> (Gate, Pending) {
    let gate = Gate::default();
    let pending = send(model, Act::Work(gate.latch()));
    until_true(|| gate.was_reached()).await;
    refresh(model).await;
    test.until_model(model.id().as_str(), "a worker is busy", |status| busy(status) > 0).await;
    (gate, pending)
}

/// Requests that come and go show in the status a moment later; after this, what came before shows.
pub async fn refresh(model: &ModelHandle<Scripted>) {
    model.pin(false).await.expect("the pool is up");
}

/// Waits until so many requests are queued at the model.
pub async fn queued(test: &TestSystem, model: &ModelHandle<Scripted>, count: usize) {
    let what = format!("{count} requests are queued");
    test.until_model(model.id().as_str(), &what, |status| {
        status.queued_interactive + status.queued_batch == count
    })
    .await;
}

pub fn in_phase(status: &ModelStatus, phase: WorkerPhase) -> usize {
    status.workers.iter().filter(|worker| worker.phase == phase).count()
}

pub fn busy(status: &ModelStatus) -> usize {
    in_phase(status, WorkerPhase::Busy)
}

pub fn idle(status: &ModelStatus) -> usize {
    in_phase(status, WorkerPhase::Idle)
}

pub fn charged(test: &TestSystem) -> Bytes {
    test.system.charged(&Device::host()).expect("the host has a budget").0
}

/// Waits for what no status, event or reply tells of: the last moments of a thread.
pub async fn until_true(mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < end, "it did not come true within 30 s");
        tokio::time::sleep(millis(1)).await;
    }
}

/// Polls once; true if the future is not ready.
pub async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
    })
    .await
}

/// Asks for a run of its own: no two such requests share a batch.
pub fn send_alone(model: &ModelHandle<Scripted>, act: Act) -> Pending {
    send(model, ScriptedRequest { cost: u64::MAX / 2, ..act.into() })
}

/// Waits until nothing of a model is in memory: the threads of an actor that was killed end by themselves.
pub async fn freed(record: &model_actors::testing::Record) {
    until_true(|| count(&record.models_alive) + count(&record.weights_alive) == 0).await;
}

/// Threads of workers, by their names: `model#1`. The test harness has threads of its own, which come and go.
pub fn worker_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("this is Linux").flatten();
    // One that ends just now has no name any more.
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.contains('#')).count()
}
