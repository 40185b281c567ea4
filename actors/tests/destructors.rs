//! Destructors of users' types run on threads of workers or on the reaper's, never in an actor: one that panics, takes
//! its time or hangs costs no other request and no other model anything, and those that hang are bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use model_actors::testing::{Gate, TestSystem, wait_for};
use model_actors::{
    Batch, Bytes, CallOptions, Capability, Device, Error, Event, Failure, Footprint, LoadContext, Loader,
    Model, ModelHandle, ModelSpec, NoChunk, PoolConfig, System, SystemConfig, Weights, WorkerPhase,
};

const HANG_LIMIT: Duration = Duration::from_secs(60);

/// Runs code of the test when it is dropped, and notes the thread.
#[derive(Clone)]
struct Will {
    act: Arc<dyn Fn() + Send + Sync>,
    threads: Arc<Mutex<Vec<String>>>,
}

impl Will {
    fn new(act: impl Fn() + Send + Sync + 'static) -> Self {
        Self { act: Arc::new(act), threads: Arc::default() }
    }

    /// Waits at the gate.
    fn hangs(gate: &Gate) -> Self {
        let latch = gate.latch();
        Self::new(move || {
            latch.wait(HANG_LIMIT);
        })
    }

    fn panics() -> Self {
        Self::new(|| panic!("the test says that a destructor panics"))
    }

    fn executor(&self) -> Executor {
        Executor(self.clone())
    }

    /// The thread of each time that it was carried out.
    fn threads(&self) -> Vec<String> {
        self.threads.lock().unwrap().clone()
    }
}

struct Executor(Will);

impl Drop for Executor {
    fn drop(&mut self) {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        self.0.threads.lock().unwrap().push(thread);
        (self.0.act)();
    }
}

/// A capability whose requests and outputs have a last will.
struct Mortal;

struct Request {
    run: Arc<dyn Fn() -> Result<u64, Failure> + Send + Sync>,
    output_will: Option<Will>,
    _will: Option<Executor>,
}

struct Output {
    value: u64,
    _will: Option<Executor>,
}

impl Capability for Mortal {
    type Request = Request;
    type Chunk = NoChunk;
    type Output = Output;
    const NAME: &'static str = "mortal";
}

fn request(run: impl Fn() -> Result<u64, Failure> + Send + Sync + 'static) -> Request {
    Request { run: Arc::new(run), output_will: None, _will: None }
}

/// The wills of a model's parts.
#[derive(Clone, Default)]
struct Parts {
    weights: Option<Will>,
    model: Option<Will>,
    size: Footprint,
    /// The weights panic so many times when they are measured.
    unmeasurable: Arc<AtomicUsize>,
}

struct PartsLoader {
    parts: Parts,
    _will: Option<Executor>,
}

impl Loader<Mortal> for PartsLoader {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(self.parts.size)
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Mortal>>, Failure> {
        let parts = self.parts.clone();
        Ok(Arc::new(PartsWeights { _will: parts.weights.as_ref().map(Will::executor), parts }))
    }
}

struct PartsWeights {
    parts: Parts,
    _will: Option<Executor>,
}

impl Weights<Mortal> for PartsWeights {
    fn footprint(&self) -> Footprint {
        let left = self.parts.unmeasurable.load(Ordering::SeqCst);
        if left > 0 {
            self.parts.unmeasurable.store(left - 1, Ordering::SeqCst);
            assert!(left != 1, "the test says that the weights cannot be measured");
        }
        self.parts.size
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Mortal>>, Failure> {
        Ok(Box::new(PartsModel { _will: self.parts.model.as_ref().map(Will::executor) }))
    }
}

struct PartsModel {
    _will: Option<Executor>,
}

impl Model<Mortal> for PartsModel {
    fn run(&mut self, batch: &mut Batch<Mortal>) -> Result<(), Failure> {
        for item in batch.items() {
            batch.tick();
            let value = (item.request().run)()?;
            item.finish(Output { value, _will: item.request().output_will.as_ref().map(Will::executor) });
        }
        Ok(())
    }
}

async fn start_with((system, pool): (SystemConfig, PoolConfig)) -> System {
    System::builder(system).pool::<Mortal>(pool).start().await.unwrap()
}

fn model(system: &System, id: &str, parts: Parts) -> ModelHandle<Mortal> {
    let loader = PartsLoader { parts, _will: None };
    system.client::<Mortal>().unwrap().register(ModelSpec::new(id, loader)).unwrap()
}

async fn call(model: &ModelHandle<Mortal>, request: Request) -> model_actors::Result<u64> {
    let answer = model.call(request, CallOptions::default());
    let answer = tokio::time::timeout(Duration::from_secs(30), answer).await.expect("every request ends");
    answer.map(|output| output.value)
}

fn charged(system: &System) -> Bytes {
    system.charged(&Device::host()).unwrap().0
}

fn mib(mib: u64) -> Footprint {
    Footprint::new(Bytes::mib(mib), Bytes::mib(1))
}

/// No restarts, so that the weights are let go of as soon as their worker has died.
fn unforgiving() -> (SystemConfig, PoolConfig) {
    let (system, pool) = single();
    let restart = pool.restart.with_max_restarts(0);
    (system, pool.with_restart(restart))
}

fn of_workers(will: &Will) -> bool {
    !will.threads().is_empty() && will.threads().iter().all(|name| name.contains('#'))
}

#[tokio::test]
async fn weights_that_take_their_time_to_go_hold_up_no_other_model_and_stay_charged_until_then() {
    let system = start_with(unforgiving()).await;
    let gate = Gate::default();
    let weights = Will::hangs(&gate);
    let slow =
        model(&system, "slow", Parts { weights: Some(weights.clone()), size: mib(10), ..Parts::default() });
    let other = model(&system, "other", Parts::default());
    let error = call(&slow, request(|| panic!("the run panics"))).await.unwrap_err();
    assert_eq!(error.reason(), "poison");
    let unload = slow.unload(millis(50)).await;
    until_true(|| gate.was_reached()).await;
    for value in 0..5 {
        assert_eq!(call(&other, request(move || Ok(value))).await.unwrap(), value);
    }
    // With the crashed worker's own bytes, if its thread was the last to hold the weights.
    let held = [Bytes::mib(10), Bytes::mib(11)];
    assert!(held.contains(&charged(&system)));
    assert!(
        matches!(&unload, Err(Error::UnloadIncomplete { remaining, .. }) if held.contains(remaining)),
        "{unload:?}"
    );
    gate.open();
    slow.unload(HANG_LIMIT).await.unwrap();
    assert_eq!(charged(&system), Bytes::ZERO);
    assert!(of_workers(&weights), "{:?}", weights.threads());
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_panic_of_weights_model_or_output_costs_no_other_request_anything() {
    let system = start_with(unforgiving()).await;
    let (weights, own, output) = (Will::panics(), Will::panics(), Will::panics());
    let parts =
        Parts { weights: Some(weights.clone()), model: Some(own.clone()), size: mib(10), ..Parts::default() };
    let bad = model(&system, "bad", parts);
    let other = model(&system, "other", Parts::default());
    let gate = Gate::default();
    let (latch, innocent) = (gate.latch(), other.clone());
    let running = request(move || {
        latch.wait(HANG_LIMIT);
        Ok(7)
    });
    let running = tokio::spawn(async move { call(&innocent, running).await });
    until_true(|| gate.was_reached()).await;
    // Its caller has gone by the time that it is answered.
    let (asked, reached) = (Gate::default(), Gate::default());
    let (latch, at) = (asked.latch(), reached.latch());
    let unwanted = Request {
        output_will: Some(output.clone()),
        ..request(move || {
            at.wait(Duration::ZERO);
            latch.wait(HANG_LIMIT);
            Ok(1)
        })
    };
    let caller = bad.clone();
    let caller = tokio::spawn(async move { caller.call(unwanted, CallOptions::default()).await.map(drop) });
    until_true(|| reached.was_reached()).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    asked.open();
    until_true(|| !output.threads().is_empty()).await;
    assert_eq!(call(&bad, request(|| Ok(2))).await.unwrap(), 2, "and its worker lives");
    call(&bad, request(|| panic!("the run panics"))).await.unwrap_err();
    bad.unload(HANG_LIMIT).await.unwrap();
    assert_eq!((charged(&system), of_workers(&weights), of_workers(&own)), (Bytes::ZERO, true, true));
    gate.open();
    assert_eq!(running.await.unwrap().unwrap(), 7, "the pool lives");
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_request_that_panics_or_hangs_when_it_is_dropped_costs_no_other_anything() {
    let system = start_with(single()).await;
    let gate = Gate::default();
    let model = model(&system, "model", Parts::default());
    for will in [Will::panics(), Will::hangs(&gate), Will::panics(), Will::hangs(&gate)] {
        let mortal = Request { _will: Some(will.executor()), ..request(|| Ok(1)) };
        assert_eq!(call(&model, mortal).await.unwrap(), 1);
        for value in 0..20 {
            assert_eq!(call(&model, request(move || Ok(value))).await.unwrap(), value);
        }
        until_true(|| !will.threads().is_empty()).await;
        assert_eq!(will.threads(), ["destructors"]);
    }
    assert_eq!(system.status().model("mortal", "model").unwrap().failures, 0);
    gate.open();
    assert!(system.shutdown().await.is_clean());
}

/// The caller waits for the rerun, and for no destructor of what the run panicked with.
#[tokio::test]
async fn a_panic_with_a_value_that_hangs_when_it_is_dropped_holds_up_no_rerun_and_no_other_load() {
    let system = start_with(single()).await;
    let gate = Gate::default();
    let model = model(&system, "model", Parts::default());
    let (will, first) = (Will::hangs(&gate), AtomicUsize::new(1));
    let panics_once = request(move || {
        if first.swap(0, Ordering::SeqCst) == 1 {
            std::panic::panic_any(will.executor());
        }
        Ok(5)
    });
    assert_eq!(call(&model, panics_once).await.unwrap(), 5);
    gate.open();
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test]
async fn a_shutdown_waits_for_the_requests_that_are_being_dropped_and_reports_those_that_hang() {
    for opens in [true, false] {
        let (config, pool) = single();
        let timeout = if opens { HANG_LIMIT } else { millis(100) };
        let system = start_with((config.with_shutdown_timeout(timeout), pool)).await;
        let gate = Gate::default();
        let model = model(&system, "model", Parts::default());
        let mortal = Request { _will: Some(Will::hangs(&gate).executor()), ..request(|| Ok(1)) };
        assert_eq!(call(&model, mortal).await.unwrap(), 1);
        until_true(|| gate.was_reached()).await;
        let mut shutdown = Box::pin(system.shutdown());
        assert!(is_pending(&mut shutdown).await);
        if opens {
            gate.open();
            assert!(shutdown.await.is_clean());
        } else {
            assert_eq!(shutdown.await.unfinished_threads, ["destructors"]);
        }
    }
}

#[tokio::test]
async fn a_loader_goes_on_the_reapers_thread_once_its_model_is_removed() {
    let system = start_with(single()).await;
    let will = Will::panics();
    let loader = PartsLoader { parts: Parts::default(), _will: Some(will.executor()) };
    let client = system.client::<Mortal>().unwrap();
    let model = client.register(ModelSpec::new("model", loader)).unwrap();
    assert_eq!(call(&model, request(|| Ok(1))).await.unwrap(), 1);
    client.remove(model.id()).unwrap();
    drop(model);
    until_true(|| !will.threads().is_empty()).await;
    assert_eq!(will.threads(), ["destructors"]);
    assert!(system.shutdown().await.is_clean());
}

/// With a footprint of nothing no budget ends it.
#[tokio::test]
async fn threads_that_hang_in_a_destructor_are_bounded() {
    let (system, pool) = single();
    let stall = pool.stall.with_run(millis(100)).with_load(millis(100));
    let system = start_with((system, pool.with_stall(stall))).await;
    let gate = Gate::default();
    let hung = Arc::new(AtomicUsize::new(0));
    let (latch, count) = (gate.latch(), hung.clone());
    let own = Will::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        latch.wait(HANG_LIMIT);
    });
    let leaky = model(&system, "leaky", Parts { model: Some(own), ..Parts::default() });
    let mut refusal = None;
    for _ in 0..20 {
        if let Err(error) = call(&leaky, request(|| Ok(1))).await {
            refusal = Some(error);
            break;
        }
        let _ = leaky.unload(millis(20)).await;
    }
    let refusal = refusal.expect("there is an end of it");
    assert!(
        matches!(&refusal, Error::SpawnFailed { cause, .. } if cause.to_string().contains("stuck")),
        "{refusal}"
    );
    assert!(hung.load(Ordering::SeqCst) <= 3, "one worker, and so many threads hang: {hung:?}");
    gate.open();
    let ends = |status: &model_actors::SystemStatus| {
        let model = status.model("mortal", "leaky").unwrap();
        in_phase(model, WorkerPhase::Stuck) == 0
    };
    tokio::time::timeout(HANG_LIMIT, system.watch().wait_for(ends)).await.unwrap().unwrap();
    assert_eq!(call(&leaky, request(|| Ok(1))).await.unwrap(), 1, "it works again");
    assert!(system.shutdown().await.is_clean());
}

/// A crashed worker's weights are kept for its replacement; the pool that keeps them may fail meanwhile.
#[tokio::test]
async fn weights_that_a_dead_pool_had_kept_are_known_to_the_next() {
    let (config, mut pool) = single();
    (pool.restart.first_backoff, pool.restart.max_backoff) = (HANG_LIMIT, HANG_LIMIT);
    let builder = System::builder(config).pool::<Mortal>(pool).name("keeper");
    let system = builder.start().await.unwrap();
    let (gate, shared) = (Gate::default(), mib(10).shared);
    let parts = Parts { weights: Some(Will::hangs(&gate)), size: mib(10), ..Parts::default() };
    let model = model(&system, "model", parts);
    let crashed = tokio::spawn({
        let model = model.clone();
        async move { call(&model, request(|| panic!("the test says that a run panics"))).await }
    });
    let bytes_are = |bytes: Bytes| {
        move |status: &model_actors::SystemStatus| {
            status.model("mortal", "model").is_some_and(|model| model.bytes == bytes && model.failures < 2)
        }
    };
    wait_for(&mut system.watch(), "the weights are kept", bytes_are(shared)).await;
    let mut events = system.events();
    ractor::registry::where_is("keeper/mortal").unwrap().kill_and_wait(None).await.unwrap();
    assert!(matches!(crashed.await.unwrap(), Err(Error::RecvError { .. })));
    let restarted = |event: &Event| matches!(event, Event::PoolRestarted { .. }).then_some(());
    TestSystem::event(&mut events, "the pool is back", restarted).await;
    wait_for(&mut system.watch(), "the weights are known of", bytes_are(shared)).await;
    let error = model.unload(millis(50)).await.unwrap_err();
    assert!(matches!(&error, Error::UnloadIncomplete { remaining, .. } if *remaining == shared), "{error}");
    gate.open();
    model.unload(HANG_LIMIT).await.unwrap();
    assert_eq!(charged(&system), Bytes::ZERO);
    assert!(system.shutdown().await.is_clean());
}

/// The weights are measured twice in a load, before and after their model is built. Two panics at a time would end the
/// process.
#[tokio::test]
async fn a_destructor_that_panics_while_another_panic_is_under_way_costs_the_load_alone() {
    for measurement in [1, 2] {
        let system = start_with(single()).await;
        let parts = Parts {
            weights: Some(Will::panics()),
            model: Some(Will::panics()),
            size: mib(10),
            unmeasurable: Arc::new(AtomicUsize::new(measurement)),
        };
        let model = model(&system, "model", parts);
        assert_eq!(call(&model, request(|| Ok(1))).await.unwrap(), 1, "the second load succeeds");
        assert_eq!(system.status().model("mortal", "model").unwrap().failures, 1);
        model.unload(HANG_LIMIT).await.unwrap();
        assert_eq!(charged(&system), Bytes::ZERO);
        assert!(system.shutdown().await.is_clean());
    }
}
