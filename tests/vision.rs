//! Vision models see, read and write what the reference implementations do, alone and with others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_actors::{Engine, Error, Source, VisionModel};
use candle_core::{Device, Tensor};
use common::{difference, root};
use model_actors::{DescribeImage, ImageSource, PoolConfig, Sampling};
use serde::Deserialize;

const TOLERANCE: f32 = 1e-4;
/// 1/255 of a channel's range, once it is divided by the smallest deviation that a processor has.
const PIXEL_TOLERANCE: f32 = 1.0 / 255.0 / 0.26;
/// Tokens that the references write.
const TOKENS: usize = 64;

/// An image and a question, and what the reference makes of them.
#[derive(Deserialize)]
struct Case {
    image: String,
    question: String,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    answer: String,
}

fn fixture(family: &str) -> PathBuf {
    root().join("tests/fixtures/vision").join(family)
}

fn cases(family: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let text = std::fs::read(fixture(family).join("expected.json")).unwrap();
    serde_json::from_slice::<File>(&text).unwrap().cases
}

fn request(case: &Case) -> DescribeImage {
    DescribeImage {
        image: ImageSource::Path(fixture("images").join(&case.image)),
        question: case.question.clone(),
        sampling: Sampling::default(),
        max_tokens: TOKENS,
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// One family's largest differences from its reference; its answers are the reference's, token by token.
fn compare(family: &str) {
    let model = VisionModel::load(Source::directory(fixture(family))).unwrap();
    let expected = candle_core::safetensors::load(fixture(family).join("expected.safetensors"), &Device::Cpu);
    let expected: HashMap<String, Tensor> = expected.unwrap();
    let (mut pixels, mut features, mut logits) = (0f32, 0f32, 0f32);
    for (index, case) in cases(family).iter().enumerate() {
        let found = model.examine(&request(case)).unwrap();
        let of = |name: &str| values(&expected[&format!("{index}.{name}")]);
        assert_eq!(found.prompt, case.prompt, "{family}, case {index}");
        let differences = [
            difference(&found.pixels.concat(), &of("pixels")),
            difference(&found.features, &of("features")),
            difference(&found.logits, &of("logits")),
        ];
        println!("{family}, {} {:?}: pixels, features, logits {differences:.2e?}", case.image, case.question);
        pixels = pixels.max(differences[0]);
        features = features.max(differences[1]);
        logits = logits.max(differences[2]);
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let completion = model.describe_each(&request(case), |token, piece| {
            tokens.push(token);
            text.push_str(piece.unwrap_or_default());
        });
        let completion = completion.unwrap();
        assert_eq!(tokens, case.tokens, "{family}, case {index}");
        assert_eq!(completion.text, case.answer, "{family}, case {index}");
        assert_eq!(text, completion.text);
        assert_eq!(completion.usage.prompt_tokens, case.prompt.len());
        assert_eq!(completion.usage.completion_tokens, case.tokens.len());
    }
    println!(
        "{family}: largest difference of pixels {pixels:.2e}, features {features:.2e}, logits {logits:.2e}"
    );
    assert!(pixels <= PIXEL_TOLERANCE, "{family}: pixels {pixels}");
    assert!(features <= TOLERANCE, "{family}: features {features}");
    assert!(logits <= TOLERANCE, "{family}: logits {logits}");
}

/// All cases several times over on one worker at once, so that images are looked at while others write.
async fn compare_together(family: &str) {
    let pool = PoolConfig { max_workers: 1, cold_start_workers: 1, ..PoolConfig::default() };
    let engine = Engine::builder().pool_config(pool).vision("model", Source::directory(fixture(family)));
    let engine = engine.start().await.unwrap();
    let model = engine.vision("model").unwrap();
    let cases = cases(family);
    let mut answers = Vec::new();
    for index in 0..3 * cases.len() {
        let (model, request) = (model.clone(), request(&cases[index % cases.len()]));
        answers.push(tokio::spawn(async move { model.describe(request).await }));
    }
    for (index, answer) in answers.into_iter().enumerate() {
        let case = &cases[index % cases.len()];
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.text, case.answer, "{family}, request {index}");
        assert_eq!(answer.usage.completion_tokens, case.tokens.len());
    }
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn blip_agrees_with_its_reference() {
    compare("blip");
    compare_together("blip").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn llava_agrees_with_its_reference() {
    compare("llava");
    compare_together("llava").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn llava_next_agrees_with_its_reference() {
    compare("llava_next");
    compare_together("llava_next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moondream_agrees_with_its_reference() {
    compare("moondream");
    compare_together("moondream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qwen3_vl_agrees_with_its_reference() {
    compare("qwen3_vl");
    compare_together("qwen3_vl").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_brings_the_answer_in_pieces() {
    let engine = Engine::builder().vision("model", Source::directory(fixture("blip"))).start().await.unwrap();
    let case = &cases("blip")[1];
    let mut stream = engine.vision("model").unwrap().stream(request(case)).await.unwrap();
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece);
    }
    assert_eq!(text, case.answer);
    assert_eq!(stream.output().await.unwrap().text, case.answer);
}

#[test]
fn an_unsupported_architecture_is_named_with_what_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "kosmos-2"}"#).unwrap();
    let error = VisionModel::load(Source::directory(folder.path())).err().unwrap();
    assert!(matches!(error, Error::UnsupportedArchitecture { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("kosmos-2") && message.contains("blip"), "{message}");
}
