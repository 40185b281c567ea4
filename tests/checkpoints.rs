//! Published checkpoints agree with their reference implementations: tokens of prompts and greedy texts of chat models in
//! GGUF, vectors of sentences. `tests/checkpoints/fetch.py` brings them into the folder that `CANDLE_ACTORS_MODELS` names;
//! one that is not there is skipped with a line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use candle_actors::model_actors::testing::Fuse;
use candle_actors::{
    Engine, FinishReason, GenerateText, LoadOptions, Message, ModelSpec, Prompt, Source, SourceSpec,
    StandaloneModel, TextEmbeddingModel, TextGenerationModel, TextGenerator,
};
use common::fragile::fragile;
use common::{difference, similarity};
use serde::Deserialize;

/// Of vectors of length 1, whose references are rounded to six digits.
const TOLERANCE: f32 = 1e-4;
/// Gap of the two best logits up to which products of integers may change the best token: about three times the drift of
/// logits, as it was measured here.
const MARGIN: f32 = 0.75;

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

fn source(path: &Path) -> Source {
    Source::parse(path.to_str().unwrap())
}

/// With exact products and nothing else set: a prompt of 1,700 tokens, too, is answered within the limits of time that
/// everybody has.
async fn start(path: &Path) -> (Engine, TextGenerator) {
    let source = SourceSpec::from(source(path)).with_exact_products(true);
    let engine = Engine::builder().text_to_text("model", source).start().await.unwrap();
    let model = engine.text_to_text("model").unwrap();
    // A request has limited time until it is begun.
    model.model().preload().await.unwrap();
    (engine, model)
}

async fn assert_writes_as_recorded(name: &str, recorded: Chat) {
    let Some(path) = checkpoint(name) else { return };
    let (engine, model) = start(&path).await;
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

/// Logits after the recorded tokens by products of integers, which are the default, beside those of the dequantised
/// weights: the same token is the best one wherever the two best differ by more than `margin`.
fn assert_drifts_less(name: &str, recorded: Chat, margin: f32) {
    let Some(path) = checkpoint(name) else { return };
    let load = |exact| {
        let options = LoadOptions::default().with_threads(2).with_exact_products(exact);
        TextGenerationModel::load_with(source(&path), options).unwrap()
    };
    let (rounded, exact) = (load(false), load(true));
    let (mut drift, mut narrowest, mut compared) = (0f64, 0f32, 0usize);
    // The longest prompts would take minutes by exact products.
    for Answer { prompt, written, .. } in recorded.cases.into_iter().filter(|case| case.tokens < 100) {
        let prompt = match recorded.template {
            true => Prompt::Messages(vec![Message::user(prompt.as_str())]),
            false => Prompt::Raw(prompt),
        };
        let mut tokens = rounded.tokenize(&prompt).unwrap();
        let begin = tokens.len().saturating_sub(1);
        tokens.extend(written);
        let pairs = rounded.logits(&tokens).unwrap().into_iter().zip(exact.logits(&tokens).unwrap());
        for (ours, theirs) in pairs.skip(begin) {
            let squares = ours.iter().zip(&theirs).map(|(a, b)| f64::from(a - b).powi(2));
            drift += squares.sum::<f64>() / theirs.len() as f64;
            compared += 1;
            let (best, other) = (best(&ours), best(&theirs));
            if best != other {
                narrowest = narrowest.max(theirs[other] - theirs[best]);
            }
        }
    }
    let drift = (drift / compared as f64).sqrt();
    println!(
        "{name}: logits drift by {drift:.3} over {compared} tokens; others are best at gaps to {narrowest:.3}"
    );
    assert!(compared > 100 && narrowest <= margin, "{narrowest}");
}

fn best(logits: &[f32]) -> usize {
    let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
    best.map(|(token, _)| token).unwrap()
}

#[test]
fn smollm2_by_integers_writes_what_its_dequantised_weights_write_but_at_narrow_margins() {
    assert_drifts_less("smollm2-135m-q4_1.gguf", references().smollm2, MARGIN);
}

#[test]
fn gemma_3_by_integers_writes_what_its_dequantised_weights_write_but_at_narrow_margins() {
    assert_drifts_less("gemma-3-270m-q4_k_m.gguf", references().gemma3, MARGIN);
}

/// Needs no references: what each model is asked has one right answer.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_right_and_the_same_while_workers_crash() {
    let [Some(chat), Some(gemma), Some(mpnet)] =
        ["smollm2-135m-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf", "all-mpnet-base-v2"].map(checkpoint)
    else {
        return;
    };
    let engine = Engine::builder().start().await.unwrap();
    let writer = |path, options| TextGenerationModel::loader(source(path), options).unwrap();
    // By products of integers this file is at the brink: as llama.cpp does, it begins with "L'Étoile" then.
    let exact = LoadOptions::default().with_exact_products(true);
    let embedder = TextEmbeddingModel::loader(source(&mpnet), LoadOptions::default()).unwrap();
    let fuses = [
        fragile(&engine, "chat", writer(&chat, exact), ModelSpec::continuous),
        fragile(&engine, "gemma", writer(&gemma, LoadOptions::default()), ModelSpec::continuous),
        fragile(&engine, "mpnet", embedder, |spec| spec),
    ];
    let (chat, gemma) = (engine.text_to_text("chat").unwrap(), engine.text_to_text("gemma").unwrap());
    let mpnet = engine.text_embedding("mpnet").unwrap();
    for model in [&chat, &gemma] {
        model.model().preload().await.unwrap();
    }
    mpnet.model().preload().await.unwrap();
    let ask = || async {
        let question = GenerateText::chat([Message::user("What is the capital of France?")]);
        let capital = chat.generate(question.with_max_tokens(12)).await.unwrap().text;
        let pairs = "English: The house is big.\nFrench: La maison est grande.\n\
                     English: The dog is small.\nFrench: Le chien est petit.\nEnglish: The house is small.\nFrench:";
        let french = gemma.generate(GenerateText::from(pairs).with_max_tokens(6)).await.unwrap().text;
        let sentences = ["A kitten naps on the couch.", "The stock market fell sharply on Monday."];
        let vectors = mpnet.embed_batch(["The cat sleeps on the sofa."].into_iter().chain(sentences)).await;
        (capital, french, vectors.unwrap())
    };
    let calm = ask().await;
    let (capital, french, vectors) = &calm;
    assert!(capital.contains("Paris"), "{capital}");
    assert!(french.trim().starts_with("La maison est petite"), "{french}");
    assert!(similarity(&vectors[0], &vectors[1]) > similarity(&vectors[0], &vectors[2]) + 0.3);
    for ticks in [1, 3] {
        fuses.iter().for_each(|fuse| fuse.light(ticks));
        assert!(ask().await == calm, "an answer after a crash at tick {ticks} differs");
    }
    assert!(!fuses.iter().any(Fuse::is_lit), "every model's worker crashed");
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
