//! The one generic way to the models of an engine: registered, replaced, removed, listed and reached alike for every
//! capability, with the same id in several of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use candle_actors::{
    Bytes, Engine, Error, ErrorKind, GenerateText, GenerationLimits, ImageEmbedding, PoolConfig, Source,
    SourceSpec, TextEmbedding, TextToText, model_actors,
};
use common::{root, small_model};

fn english() -> Source {
    Source::directory(small_model())
}

fn small(name: &str) -> Source {
    Source::directory(root().join("models").join(name))
}

/// Capability and id of each registered model.
fn listed(engine: &Engine) -> Vec<(String, String)> {
    let models = engine.models();
    models.iter().map(|model| (model.capability.to_string(), model.model.to_string())).collect()
}

fn pair(capability: &str, id: &str) -> (String, String) {
    (capability.to_owned(), id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_three_capabilities_are_registered_listed_reached_and_removed_alike() {
    let engine = Engine::builder().text_embedding("english", english()).start().await.unwrap();
    let chat = engine.register::<TextToText>("chat", small("shapes-chat")).unwrap();
    let finder = engine.register::<ImageEmbedding>("finder", small("shapes-image-embedding")).unwrap();
    let expected =
        [pair("text_embedding", "english"), pair("text_to_text", "chat"), pair("image_embedding", "finder")];
    assert_eq!(listed(&engine), expected);

    assert_eq!(
        engine.handle::<TextEmbedding>("english").unwrap().embed("It rains.").await.unwrap().len(),
        192
    );
    assert!(!chat.generate("Tell me a story.").await.unwrap().text.is_empty());
    assert!(!finder.embed_text("a red circle").await.unwrap().is_empty());
    assert_eq!(engine.text_to_text("chat").unwrap().id(), chat.id());

    engine.remove::<TextToText>(chat.id()).unwrap();
    engine.remove::<ImageEmbedding>(finder.id()).unwrap();
    assert_eq!(listed(&engine), [pair("text_embedding", "english")]);
    for error in [
        chat.generate("Hello").await.unwrap_err(),
        engine.text_to_text("chat").err().unwrap(),
        engine.remove::<TextToText>(chat.id()).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Actor(model_actors::Error::UnknownModel { .. })), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_may_name_a_model_in_each_capability() {
    let engine = Engine::builder()
        .text_embedding("small", english())
        .text_to_text("small", small("shapes-chat"))
        .start()
        .await
        .unwrap();
    assert_eq!(engine.text_embedding("small").unwrap().embed("It rains.").await.unwrap().len(), 192);
    assert!(engine.text_to_text("small").unwrap().generate("Hello").await.is_ok());
    assert_eq!(listed(&engine), [pair("text_embedding", "small"), pair("text_to_text", "small")]);
    let again = engine.register::<TextEmbedding>("small", english()).err().unwrap();
    assert!(matches!(&again, Error::Actor(model_actors::Error::AlreadyRegistered { .. })), "{again}");

    engine.remove::<TextEmbedding>("small").unwrap();
    assert!(engine.text_to_text("small").unwrap().generate("Hello").await.is_ok());
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_another_capability_is_told_as_that() {
    let engine = Engine::builder().text_embedding("english", english()).start().await.unwrap();
    let error = engine.text_to_text("english").err().unwrap();
    assert!(error.to_string().contains("is registered for text_embedding, not for text_to_text"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_serves_at_once_and_the_old_ones_bytes_come_back() {
    let engine = Engine::builder().text_embedding("model", english()).start().await.unwrap();
    let old = engine.text_embedding("model").unwrap();
    assert_eq!(old.embed("It rains.").await.unwrap().len(), 192);
    let charged = || engine.system().status().memory[0].charged;
    let before = charged();
    assert!(before > Bytes(0));

    let tiny = common::model::TinyModel::new().write();
    let new = engine.replace::<TextEmbedding>("model", Source::directory(tiny.path())).unwrap();
    let width = new.embed("cat").await.unwrap().len();
    assert_ne!(width, 192);
    assert_eq!(engine.text_embedding("model").unwrap().embed("cat").await.unwrap().len(), width);
    assert_eq!(listed(&engine), [pair("text_embedding", "model")]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while charged() >= before {
        assert!(Instant::now() < deadline, "{} of {before} are still charged", charged());
        tokio::task::yield_now().await;
    }
    // In place of none it is a registration.
    assert!(engine.replace::<TextToText>("chat", small("shapes-chat")).is_ok());
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_one_model_go_with_its_source() {
    let limits = GenerationLimits::default().with_kv_cache_tokens(128).with_max_sequences(1);
    let spec = SourceSpec::from(small("shapes-chat"))
        .with_generation(limits)
        .with_pool_config(PoolConfig::default().with_max_workers(1))
        .with_pinned(true);
    let engine = Engine::builder().text_to_text("chat", spec).start().await.unwrap();
    let chat = engine.text_to_text("chat").unwrap();
    let request = GenerateText::from("a red circle ".repeat(100));
    assert!(matches!(chat.generate(request).await, Err(Error::PromptTooLong { limit: 128, .. })));
    let status = engine.system().status();
    let model = status.model("text_to_text", "chat").unwrap();
    assert!(model.pinned);
    assert_eq!((model.workers.len(), model.batch_limit), (1, 1));

    let wrong = SourceSpec::from(small("shapes-chat")).with_generation(limits.with_max_sequences(0));
    let error = engine.register::<TextToText>("wrong", wrong).err().unwrap();
    assert!(matches!(&error, Error::InvalidSetting { setting, .. } if setting == "max_sequences"), "{error}");
    assert!(engine.shutdown().await.is_clean());
}
