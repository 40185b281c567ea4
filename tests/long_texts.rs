//! Texts of megabytes, which are refused or cut without being tokenized to their end, so that they keep nobody waiting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{
    CallOptions, Engine, Error, GenerateText, Message, Source, StandaloneModel, TextEmbeddingModel,
    model_actors,
};
use common::text::{family, one_worker};

/// A prompt that is far too long is refused at once, and by its bytes before it is queued where these tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_far_too_long_is_refused_without_being_tokenized() {
    for name in ["llama", "phi3", "gemma3"] {
        let source = Source::directory(family(name));
        let engine =
            Engine::builder().pool_config(one_worker()).text_to_text(name, source).start().await.unwrap();
        let model = engine.text_to_text(name).unwrap();
        let long = || "The cat sleeps. ".repeat((4 << 20) / 16);
        let refused = |error: Error| match error {
            // Not all of it was counted.
            Error::PromptTooLong { limit: 512, prompt, .. } if prompt < 1_000_000 => {}
            other => panic!("{name}: {other}"),
        };
        let request = |prompt: &str| GenerateText::from(prompt).with_max_tokens(8);
        // Not loaded yet, nothing is known of it.
        refused(model.generate(request(&long())).await.unwrap_err());
        let told = model.model().check(&request(&long()), &CallOptions::default()).unwrap_err();
        assert!(matches!(told, model_actors::Error::InvalidInput { .. }), "{name}: {told}");
        refused(told.into());
        let chat = GenerateText::chat([Message::user(long())]);
        let answers = (0..8).map(|_| model.generate(chat.clone()));
        for answer in futures_util::future::join_all(answers).await {
            refused(answer.unwrap_err());
        }
        assert!(model.model().check(&request("The cat"), &CallOptions::default()).is_ok());
        assert!(model.generate(request("The cat")).await.is_ok());
        assert!(engine.shutdown().await.is_clean());
    }
}

/// With the real model, where it is at hand.
#[test]
fn a_text_of_a_megabyte_has_the_vector_of_its_beginning() {
    let Some(folder) = std::env::var_os("CANDLE_ACTORS_MODELS") else {
        return println!("skipped: CANDLE_ACTORS_MODELS is not set");
    };
    let folder = std::path::Path::new(&folder).join("all-MiniLM-L6-v2");
    let model = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
    let sentence = "The cat, which is né 42, sleeps on the warm windowsill — 猫. ";
    let whole = sentence.repeat((1 << 20) / sentence.len());
    let begin = std::time::Instant::now();
    (0..16).for_each(|_| assert_eq!(model.count_tokens(&whole).unwrap(), model.max_tokens()));
    println!("tokenizing 16 texts of {} bytes: {} ms", whole.len(), begin.elapsed().as_millis());
    let vectors = model.embed(&[whole, sentence.repeat(200)]).unwrap();
    assert_eq!(vectors[0], vectors[1]);
}

/// With a real model, where it is at hand: how long an innocent request takes beside eight prompts of four megabytes.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_megabytes_delay_an_innocent_request_by_little() {
    let Some(folder) = std::env::var_os("CANDLE_ACTORS_MODELS") else {
        return println!("skipped: CANDLE_ACTORS_MODELS is not set");
    };
    let file = std::path::Path::new(&folder).join("smollm2-135m-q4_1.gguf");
    if !file.exists() {
        return println!("skipped: {} is not there", file.display());
    }
    let builder = Engine::builder().pool_config(one_worker());
    let engine = builder.text_to_text("chat", Source::parse(file.to_str().unwrap())).start().await.unwrap();
    let model = engine.text_to_text("chat").unwrap();
    model.model().preload().await.unwrap();
    let innocent = || async {
        let begin = std::time::Instant::now();
        let request = GenerateText::chat([Message::user("What is rain?")]).with_max_tokens(4);
        model.generate(request).await.unwrap();
        begin.elapsed().as_millis()
    };
    let alone = innocent().await;
    let sentence = "The cat, which is né 42, sleeps on the warm windowsill — 猫. ";
    let long = GenerateText::chat([Message::user(sentence.repeat((4 << 20) / sentence.len()))]);
    let long: Vec<_> = (0..8)
        .map(|_| {
            let (model, long) = (model.clone(), long.clone());
            tokio::spawn(async move { model.generate(long).await })
        })
        .collect();
    // They are queued, or at work.
    tokio::task::yield_now().await;
    println!("alone {alone} ms, beside eight prompts of 4 MiB {} ms", innocent().await);
    for answer in long {
        assert!(matches!(answer.await.unwrap(), Err(Error::PromptTooLong { .. })));
    }
    assert!(engine.shutdown().await.is_clean());
}
