//! The engine through its public interface: real models as supervised workers, with their errors, events and
//! memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use candle_actors::{
    Bytes, Engine, EngineResources, Error, Event, LoadOptions, PoolConfig, Source, StandaloneModel as _,
    SystemState, TextEmbedding, TextEmbeddingModel, WhenFull, model_actors,
};
use common::model::TinyModel;
use common::{difference, references, small_model};

async fn small_engine() -> Engine {
    Engine::builder().text_embedding("small", Source::directory(small_model())).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_through_the_actors_are_those_of_the_reference() {
    let engine = small_engine().await;
    let embedder = engine.text_embedding("small").unwrap();
    let cases = references("english_small");
    let texts: Vec<String> = cases.iter().map(|case| case.text.clone()).cycle().take(200).collect();
    let together = embedder.embed_batch(texts.clone()).await.unwrap();
    assert_eq!(together.len(), texts.len());
    for (case, vector) in cases.iter().cycle().zip(&together) {
        assert!(difference(&case.embedding, vector) < 1e-4);
    }
    let alone = embedder.clone().when_full(WhenFull::Fail).embed(texts[0].clone()).await.unwrap();
    assert!(difference(&alone, &together[0]) <= 1e-5);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_costs_no_worker_and_asks_no_hub() {
    let engine = Engine::builder()
        .text_embedding("empty", Source::directory("."))
        .text_embedding("unknown", Source::repository("nobody/nothing"))
        .start()
        .await
        .unwrap();
    let status = engine.system().status();
    assert_eq!(status.state, SystemState::Running);
    assert!(status.pools.iter().all(|pool| pool.models.iter().all(|model| model.workers.is_empty())));
    let error = engine.register::<TextEmbedding>("empty", Source::directory("src")).err().unwrap();
    assert!(matches!(error, Error::Actor(model_actors::Error::AlreadyRegistered { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_error_reaches_its_callers_and_no_other_model() {
    let engine = small_engine().await;
    let empty = tempfile::tempdir().unwrap();
    let broken = engine.register::<TextEmbedding>("broken", Source::directory(empty.path())).unwrap();
    let error = broken.embed("The cat sleeps.").await.unwrap_err();
    assert!(matches!(error.root(), Error::MissingFile { .. }), "{error}");
    assert!(error.to_string().contains(&*empty.path().to_string_lossy()), "{error}");
    assert!(engine.text_embedding("small").unwrap().embed("The cat sleeps.").await.is_ok());
    assert!(engine.text_embedding("never registered").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_fails_only_its_own_request() {
    let engine = small_engine().await;
    let embedder = engine.text_embedding("small").unwrap();
    let error = embedder.embed_batch(Vec::<String>::new()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    let is_invalid = |error: &Error| matches!(error, Error::InvalidInput(_));
    let error = embedder.embed("x".repeat((1 << 20) + 1)).await.unwrap_err();
    assert!(is_invalid(&error), "{error}");
    // These are found by the model, in one batch with good ones.
    let (no_prompt, too_wide) = (embedder.clone().prompt("no such"), embedder.clone().dimensions(100_000));
    let (prompt, wide, good) = tokio::join!(no_prompt.embed("a"), too_wide.embed("a"), embedder.embed("a"));
    let (prompt, wide) = (prompt.unwrap_err(), wide.unwrap_err());
    assert!(is_invalid(&prompt) && is_invalid(&wide), "{prompt}; {wide}");
    assert_eq!(good.unwrap().len(), 192);
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_dimensions_are_the_first_ones_at_length_one() {
    let engine = small_engine().await;
    let embedder = engine.text_embedding("small").unwrap();
    let whole = embedder.embed("The cat sleeps.").await.unwrap();
    let short = embedder.clone().dimensions(64).embed("The cat sleeps.").await.unwrap();
    let length = whole[..64].iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = whole[..64].iter().map(|x| x / length).collect();
    assert!(difference(&short, &expected) < 1e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let engine = Engine::builder()
        .memory_limit(Bytes::mib(1))
        .text_embedding("small", Source::directory(small_model()))
        .start()
        .await
        .unwrap();
    let error = engine.text_embedding("small").unwrap().embed("The cat sleeps.").await.unwrap_err();
    assert!(matches!(error, Error::Actor(model_actors::Error::MemoryExhausted { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_tells_its_progress_and_its_bytes_come_back() {
    let engine = small_engine().await;
    let mut events = engine.events();
    let embedder = engine.text_embedding("small").unwrap();
    embedder.embed("The cat sleeps.").await.unwrap();
    let mut last = None;
    loop {
        match events.recv().await.unwrap() {
            Event::Loading { done, total, .. } => last = Some((done, total)),
            Event::WorkerStarted { .. } => break,
            _ => {}
        }
    }
    let (done, total) = last.unwrap();
    assert_eq!(Some(done), total);
    embedder.model().unload(Duration::from_secs(10)).await.unwrap();
    let report = engine.shutdown().await;
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_several_threads_give_the_same_vectors() {
    let folder = TinyModel::new().write();
    let mut vectors = Vec::new();
    for threads in [1, 3] {
        let source = Source::directory(folder.path());
        let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
        let engine = Engine::builder().threads(threads).pool_config(pool).text_embedding("tiny", source);
        let engine = engine.start().await.unwrap();
        vectors
            .push(engine.text_embedding("tiny").unwrap().embed_batch(["cat sleeps", "dog"]).await.unwrap());
    }
    for (one, three) in vectors[0].iter().zip(&vectors[1]) {
        assert!(difference(one, three) <= 1e-5);
    }
    assert!(Engine::builder().threads(0).start().await.is_err());
    for threads in [0, 1025] {
        let options = LoadOptions::default().with_threads(threads);
        let refused =
            TextEmbeddingModel::load_with(Source::directory("/no/such"), options.clone()).err().unwrap();
        assert!(
            matches!(&refused, Error::InvalidSetting { setting, .. } if setting == "threads"),
            "{refused}"
        );
        assert_eq!(EngineResources::new(&options).err().unwrap(), refused);
        let system = Engine::builder().system().unwrap().start().await.unwrap();
        let attached = Engine::builder().threads(threads).attach(system);
        assert_eq!(attached.err().unwrap(), refused);
    }
}
