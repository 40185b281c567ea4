//! Adapters in the budget: each is loaded by the first request for it, charged beside its model, a request's while it is held
//! and a cache's afterwards, given back before a worker goes, and loaded anew by the next request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use candle_actors::{
    Bytes, Engine, Error, ErrorKind, Event, GenerateText, GenerationLimits, MemoryStatus, PoolConfig,
    PrefixCache, Source, SourceSpec, SystemConfig, TextGenerator,
};
use candle_core::{Device, Tensor};
use common::root;
use common::text::{family, one_worker};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;

const MINUTE: Duration = Duration::from_secs(60);

fn adapter(name: &str) -> PathBuf {
    root().join("tests/fixtures/adapters/llama").join(name)
}

/// Bytes that an adapter is charged with.
fn bytes(name: &str) -> Bytes {
    let tensors =
        candle_core::safetensors::load(adapter(name).join("adapter_model.safetensors"), &Device::Cpu)
            .unwrap();
    let numbers: usize = tensors.values().map(Tensor::elem_count).sum();
    PrefixCache::<()>::bytes_of_part(Bytes(4 * numbers as u64), name.len())
}

fn spec(adapters: &[(&str, PathBuf)]) -> SourceSpec {
    let limits = GenerationLimits::default().with_prefix_cache_tokens(0);
    let spec = SourceSpec::from(Source::directory(family("llama"))).with_generation(limits);
    let add = |spec: SourceSpec, (name, folder): &(&str, PathBuf)| {
        spec.with_adapter(*name, Source::directory(folder))
    };
    adapters.iter().fold(spec, add)
}

fn both() -> SourceSpec {
    spec(&[("plain", adapter("plain")), ("patterns", adapter("patterns"))])
}

/// An engine with a model `base` and another one, `other`, without adapters.
async fn engine(
    base: SourceSpec,
    limit: impl Into<Option<Bytes>>,
    pool: PoolConfig,
) -> (Engine, TextGenerator) {
    let engine = Engine::builder()
        .system_config(SystemConfig::default().with_memory_limit(limit))
        .pool_config(pool)
        .text_to_text("base", base)
        .text_to_text("other", spec(&[]));
    let engine = engine.start().await.unwrap();
    let model = engine.text_to_text("base").unwrap();
    (engine, model)
}

fn memory(engine: &Engine) -> MemoryStatus {
    engine.system().status().memory[0].clone()
}

fn ledger(engine: &Engine) -> (Bytes, Bytes) {
    let MemoryStatus { charged, cached, .. } = memory(engine);
    (charged, cached)
}

fn request(adapter: Option<&str>) -> GenerateText {
    GenerateText::from("The cat sleeps").with_max_tokens(16).with_adapter(adapter.map(str::to_owned))
}

/// Waits until the ledger is so: a worker's thread lets go of what a request held once it has answered.
async fn until(engine: &Engine, expected: (Bytes, Bytes)) {
    let wait = async {
        while ledger(engine) != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(MINUTE, wait)
        .await
        .unwrap_or_else(|_| panic!("{:?}, not {expected:?}", ledger(engine)));
}

/// Bytes of the base and of the other model, with a worker each.
async fn sizes() -> (Bytes, Bytes) {
    let (engine, model) = engine(both(), None, one_worker()).await;
    model.model().preload().await.unwrap();
    let base = memory(&engine).charged;
    engine.text_to_text("other").unwrap().model().preload().await.unwrap();
    let all = memory(&engine).charged;
    assert!(engine.shutdown().await.is_clean());
    (base, all - base)
}

async fn answers() -> Vec<String> {
    let (engine, model) = engine(both(), None, one_worker()).await;
    let mut answers = Vec::new();
    for adapter in [None, Some("plain"), Some("patterns")] {
        answers.push(model.generate(request(adapter)).await.unwrap().text);
    }
    assert!(answers[0] != answers[1] && answers[1] != answers[2]);
    assert!(engine.shutdown().await.is_clean());
    answers
}

fn evicted(events: &mut Receiver<Event>) -> usize {
    let told = std::iter::from_fn(|| events.try_recv().ok());
    told.filter(|event| matches!(event, Event::WorkerEvicted { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_charged_by_itself_from_its_first_request_to_the_end_of_its_model() {
    let (base, _) = sizes().await;
    let (engine, model) = engine(both(), None, one_worker()).await;
    model.generate(request(None)).await.unwrap();
    assert_eq!(ledger(&engine), (base, Bytes::ZERO), "none is loaded with the model");
    let mut stream = model.stream(request(Some("plain")).with_max_tokens(4000)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(ledger(&engine), (base + bytes("plain"), Bytes::ZERO), "a request holds it");
    drop(stream);
    until(&engine, (base + bytes("plain"), bytes("plain"))).await;
    // At once, one that is there and one that is not.
    let (one, other) =
        tokio::join!(model.generate(request(Some("plain"))), model.generate(request(Some("patterns"))));
    let expected = answers().await;
    assert_eq!([one.unwrap().text, other.unwrap().text], expected[1..]);
    let adapters = bytes("plain") + bytes("patterns");
    until(&engine, (base + adapters, adapters)).await;
    model.model().unload(MINUTE).await.unwrap();
    assert_eq!(ledger(&engine), (Bytes::ZERO, Bytes::ZERO));
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_adapter_goes_before_a_worker_and_comes_back_when_it_is_asked_for() {
    let ((base, other), expected) = (sizes().await, answers().await);
    // The last that is missing for both models is half of what one adapter takes.
    let limit = base + other + Bytes(bytes("plain").0 / 2);
    let (engine, model) = engine(both(), limit, one_worker().with_min_residency(Duration::ZERO)).await;
    let mut events = engine.system().events();
    assert_eq!(model.generate(request(Some("plain"))).await.unwrap().text, expected[1]);
    until(&engine, (base + bytes("plain"), bytes("plain"))).await;
    engine.text_to_text("other").unwrap().model().preload().await.unwrap();
    assert_eq!((ledger(&engine), evicted(&mut events)), ((base + other, Bytes::ZERO), 0), "no worker went");
    // Now it is the other model that is idle, and no cache has anything.
    assert_eq!(model.generate(request(Some("plain"))).await.unwrap().text, expected[1]);
    assert_eq!(evicted(&mut events), 1);
    until(&engine, (base + bytes("plain"), bytes("plain"))).await;
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_adapters_with_room_for_one_the_idle_one_goes_and_one_that_is_held_stays() {
    let ((base, _), expected) = (sizes().await, answers().await);
    let larger = bytes("plain").max(bytes("patterns"));
    let (engine, model) = engine(both(), base + larger, one_worker()).await;
    for _ in 0..2 {
        for (adapter, text) in ["plain", "patterns"].iter().zip(&expected[1..]) {
            assert_eq!(&model.generate(request(Some(adapter))).await.unwrap().text, text);
            until(&engine, (base + bytes(adapter), bytes(adapter))).await;
        }
    }
    let mut stream = model.stream(request(Some("plain")).with_max_tokens(4000)).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    // It waits for room, and others go on meanwhile.
    let asked = model.clone().timeout(MINUTE);
    let waits = tokio::spawn(async move { asked.generate(request(Some("patterns"))).await });
    let text = model.generate(request(None)).await.unwrap().text;
    assert_eq!(text, expected[0]);
    assert_eq!(ledger(&engine), (base + bytes("plain"), Bytes::ZERO));
    drop((stream, first));
    assert_eq!(waits.await.unwrap().unwrap().text, expected[2]);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_can_never_have_room_fails_its_own_requests_alone() {
    let (base, _) = sizes().await;
    let (engine, model) = engine(both(), base + Bytes(100), one_worker()).await;
    model.generate(request(None)).await.unwrap();
    // The only idle worker is its own, which runs as long as it waits.
    let error = model.clone().timeout(MINUTE).generate(request(Some("plain"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    let Error::NoRoomForAdapter { adapter, limit, .. } = error.root() else { panic!("{error}") };
    assert_eq!((adapter.as_str(), limit), ("plain", base + Bytes(100)));
    model.generate(request(None)).await.unwrap();
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_for_a_while_fails_the_requests_of_that_time() {
    let folder = TempDir::new().unwrap();
    let copy = |name: &str| {
        std::fs::copy(adapter("plain").join(name), folder.path().join(name)).unwrap();
    };
    copy("adapter_config.json");
    let (engine, model) = engine(spec(&[("late", folder.path().to_owned())]), None, one_worker()).await;
    for _ in 0..2 {
        let error = model.generate(request(Some("late"))).await.unwrap_err().root();
        assert!(matches!(error, Error::BrokenAdapter { .. }), "{error}");
    }
    copy("adapter_model.safetensors");
    let answer = model.generate(request(Some("late"))).await.unwrap();
    assert_eq!(answer.text, answers().await[1]);
    assert!(engine.shutdown().await.is_clean());
}
