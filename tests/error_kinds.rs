//! Typical failures from end to end: each has a kind that a server maps to a status without a look at its
//! words, and passes to another process unchanged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use candle_actors::{
    Engine, Error, ErrorKind, GenerateText, GenerationLimits, PoolConfig, QueueCapacity, Source, SourceSpec,
    TextEmbedding, TextGenerator, WhenFull, model_actors,
};
use common::{root, small_model};

/// A failure keeps its kind on the way through JSON, and its `Debug` form is its sentence.
fn assert_kind(error: &Error, expected: ErrorKind) {
    assert_eq!(error.kind(), expected, "{error}");
    assert_eq!(format!("{error:?}"), error.to_string());
    let sent = serde_json::to_string(error).unwrap();
    let arrived: Error = serde_json::from_str(&sent).unwrap();
    assert_eq!((&arrived, arrived.root(), arrived.kind()), (error, error.root(), expected), "{sent}");
}

fn chat_source() -> Source {
    Source::directory(root().join("models/shapes-chat"))
}

async fn chat(config: PoolConfig) -> (Engine, TextGenerator) {
    let limits = GenerationLimits::default().with_kv_cache_tokens(256);
    let spec = SourceSpec::from(chat_source()).with_generation(limits).with_pool_config(config);
    let engine = Engine::builder().text_to_text("chat", spec).start().await.unwrap();
    let model = engine.text_to_text("chat").unwrap();
    (engine, model)
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_inputs_keep_their_type() {
    let (engine, chat) = chat(PoolConfig::default()).await;
    let long = GenerateText::from("a red circle ".repeat(200));
    let error = chat.generate(long.clone()).await.unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt: 257.., limit: 256, .. }), "{error}");
    assert_kind(&error, ErrorKind::InvalidInput);
    // A stream tells it at its first item, and again at its end.
    let mut stream = chat.stream(long).await.unwrap();
    let first = Error::from(stream.next().await.unwrap().unwrap_err());
    assert_eq!((first, Error::from(stream.output().await.unwrap_err())), (error.clone(), error));

    let english = engine.register::<TextEmbedding>("english", Source::directory(small_model())).unwrap();
    let no_texts = english.embed_batch(Vec::<String>::new()).await.unwrap_err();
    let too_long = english.embed("x".repeat((1 << 20) + 1)).await.unwrap_err();
    let no_prompt = english.clone().prompt("no such").embed("a").await.unwrap_err();
    for error in [no_texts, too_long, no_prompt] {
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
        assert_kind(&error, ErrorKind::InvalidInput);
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let (engine, _) = chat(PoolConfig::default()).await;
    assert_kind(&engine.text_to_text("nobody").err().unwrap(), ErrorKind::NotFound);
    assert_kind(&engine.text_embedding("chat").err().unwrap(), ErrorKind::NotFound);
    // A path is looked for when it is registered.
    let error = engine.register::<TextEmbedding>("nowhere", Source::directory("/no/such")).err().unwrap();
    assert!(matches!(error, Error::NoSuchDirectory { .. }), "{error}");
    assert_kind(&error, ErrorKind::NotFound);
    let error = engine.register::<TextEmbedding>("nowhere", Source::parse("/no/such.gguf")).err().unwrap();
    assert!(matches!(error, Error::NoSuchFile { .. }), "{error}");
    assert_kind(&error, ErrorKind::NotFound);
    let builder = Engine::builder().text_embedding("nowhere", Source::directory("/no/such"));
    assert_kind(&builder.start().await.err().unwrap(), ErrorKind::NotFound);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_of_a_load_goes_to_every_caller_at_once() {
    let painter = Source::directory(root().join("models/shapes-text-to-image"));
    let engine = Engine::builder().text_embedding("picture", painter).start().await.unwrap();
    let model = engine.text_embedding("picture").unwrap();
    let calls = (0..20).map(|_| model.embed("It rains."));
    for result in futures_util::future::join_all(calls).await {
        let error = result.unwrap_err();
        assert!(matches!(error.root(), Error::UnsupportedArchitecture { .. }), "{error}");
        assert_kind(&error, ErrorKind::Internal);
    }
    // A directory that goes after its registration.
    let folder = common::model::TinyModel::new().write();
    let gone = engine.register::<TextEmbedding>("gone", Source::directory(folder.path())).unwrap();
    drop(folder);
    let error = gone.embed("It rains.").await.unwrap_err();
    assert!(matches!(error.root(), Error::NoSuchDirectory { .. }), "{error}");
    assert_kind(&error, ErrorKind::NotFound);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back_and_time_that_runs_out_is_a_timeout() {
    let config = PoolConfig::default().with_max_workers(1).with_queue(QueueCapacity::new(1, 1));
    let (_engine, chat) = chat(config).await;
    let story = || GenerateText::from("Tell me a story about a red circle.").with_max_tokens(200);
    let _reading = chat.stream(story()).await.unwrap();
    let error = chat.clone().when_full(WhenFull::Fail).generate(story()).await.unwrap_err();
    let Error::Actor(model_actors::Error::Overloaded { retry_after, .. }) = error else { panic!("{error}") };
    assert!((Duration::from_millis(50)..=Duration::from_secs(60)).contains(&retry_after), "{error}");
    assert_kind(&error, ErrorKind::Overloaded { retry_after });
    assert_eq!(error.kind().retry_after(), Some(retry_after));

    let error = chat.clone().timeout(Duration::from_millis(1)).generate(story()).await.unwrap_err();
    assert_kind(&error, ErrorKind::Timeout);
}
