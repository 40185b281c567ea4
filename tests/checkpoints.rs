//! Published checkpoints agree with their reference implementations: tokens of prompts and greedy texts of chat models in
//! GGUF, vectors of sentences. `tests/checkpoints/fetch.py` brings them into the folder that `CANDLE_ACTORS_MODELS` names;
//! one that is not there is skipped with a line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_actors::{
    Engine, FinishReason, GenerateText, Message, Source, StandaloneModel, TextEmbeddingModel, TextGenerator,
};
use common::difference;
use serde::Deserialize;

/// Of vectors of length 1, whose references are rounded to six digits.
const TOLERANCE: f32 = 1e-4;
/// Time for an answer of a model of a quarter of a billion parameters in a build that is not a release.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
struct References {
    smollm2: Chat,
    gemma3: Chat,
    mpnet: Vec<Vector>,
}

#[derive(Deserialize)]
struct Chat {
    /// The file has a chat template.
    template: bool,
    cases: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    prompt: String,
    /// Number of tokens of the prompt, within the template.
    tokens: usize,
    /// Tokens up to the first step at which the two best ones are too close to tell.
    written: Vec<u32>,
    text: String,
    ended: bool,
}

#[derive(Deserialize)]
struct Vector {
    text: String,
    /// The first numbers of the vector.
    begin: Vec<f32>,
}

fn references() -> References {
    let path = common::root().join("tests/checkpoints/references.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn checkpoint(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("CANDLE_ACTORS_MODELS").map(|folder| Path::new(&folder).join(name));
    let found = path.filter(|path| path.exists());
    if found.is_none() {
        println!("skipped: {name} is not in the folder that CANDLE_ACTORS_MODELS names");
    }
    found
}

async fn start(path: PathBuf) -> (Engine, TextGenerator) {
    let engine = Engine::builder().threads(2).text_to_text("model", Source::parse(path.to_str().unwrap()));
    let engine = engine.start().await.unwrap();
    let model = engine.text_to_text("model").unwrap().timeout(PATIENCE);
    (engine, model)
}

async fn assert_writes_as_recorded(name: &str, recorded: Chat) {
    let Some(path) = checkpoint(name) else { return };
    let (engine, model) = start(path).await;
    let mut tokens = 0;
    for Answer { prompt, tokens: prompt_tokens, written, text, ended } in recorded.cases {
        let request = match recorded.template {
            true => GenerateText::chat([Message::user(prompt.as_str())]),
            false => GenerateText::from(prompt.as_str()),
        };
        let output = model.generate(request.with_max_tokens(written.len().max(1))).await.unwrap();
        assert_eq!(output.usage.prompt_tokens, prompt_tokens, "{prompt}");
        // The last letter may have been cut in its middle.
        let certain = text.trim_end_matches('\u{fffd}');
        assert!(output.text.starts_with(certain), "{prompt}: {:?}, not {certain:?}", output.text);
        assert!(!ended || output.finish_reason == FinishReason::Stop, "{prompt}: {:?}", output.finish_reason);
        tokens += written.len();
    }
    println!("{name}: {tokens} tokens as recorded");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn smollm2_writes_what_its_dequantised_weights_write() {
    assert_writes_as_recorded("smollm2-135m-q4_1.gguf", references().smollm2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gemma_3_writes_what_its_dequantised_weights_write() {
    assert_writes_as_recorded("gemma-3-270m-q4_k_m.gguf", references().gemma3).await;
}

/// Needs no reference.
#[tokio::test(flavor = "multi_thread")]
async fn smollm2_knows_the_capital_of_france() {
    let Some(path) = checkpoint("smollm2-135m-q4_1.gguf") else { return };
    let (engine, model) = start(path).await;
    let question = GenerateText::chat([Message::user("What is the capital of France?")]).with_max_tokens(24);
    let answer = model.generate(question).await.unwrap();
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    assert!(engine.shutdown().await.is_clean());
}

#[test]
fn mpnet_agrees_with_sentence_transformers() {
    let Some(folder) = checkpoint("all-mpnet-base-v2") else { return };
    let model = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
    let cases = references().mpnet;
    assert!(cases.len() >= 200);
    let mut largest = 0f32;
    for batch in cases.chunks(20) {
        let texts: Vec<&str> = batch.iter().map(|case| case.text.as_str()).collect();
        for (case, vector) in batch.iter().zip(model.embed(&texts).unwrap()) {
            let distance = difference(&case.begin, &vector[..case.begin.len()]);
            assert!(distance <= TOLERANCE, "{:?}: {distance}", case.text);
            largest = largest.max(distance);
        }
    }
    println!("{} texts, largest difference {largest:.2e}", cases.len());
}
