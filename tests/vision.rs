//! Vision models agree with their reference implementations in preprocessing, encoding and answers, alone and
//! in a batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "vision/conversations.rs"]
mod conversations;
#[path = "vision/refusals.rs"]
mod refusals;
#[path = "vision/gguf.rs"]
mod gguf;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_actors::model_actors::testing::{Gate, HookedLoader};
use candle_actors::{
    CallOptions, DescribeImage, Engine, Error, Failure, Footprint, GenerationLimits, ImageInput,
    ImageSettings, ImageSource, LoadContext, LoadOptions, Loader, Model, ModelHandle, ModelSpec, PoolConfig,
    Sampling, Source, SourceSpec, StandaloneModel, System, SystemConfig, Vision, VisionModel, Weights,
};
use candle_core::{Device, Tensor};
use common::folders::families_of;
use common::{difference, root, steps_after_drop, until_nothing_runs};
use futures_util::FutureExt as _;
use serde::Deserialize;
use tokio::sync::Notify;

/// Longer than any request takes.
const LIMIT: Duration = Duration::from_secs(60);
const TOLERANCE: f32 = 1e-4;
/// 1/255 of a channel's range, once it is divided by the smallest deviation that a processor has.
const PIXEL_TOLERANCE: f32 = 1.0 / 255.0 / 0.26;
/// Tokens of the references' answers.
const TOKENS: usize = 64;

/// Image and question, and the output of the reference.
#[derive(Deserialize)]
struct Case {
    image: String,
    question: String,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    answer: String,
    /// The first tokens with a penalty for repetitions, where that is compared.
    #[serde(default)]
    penalized: Vec<u32>,
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
    DescribeImage::new(ImageSource::Path(root().join("tests/fixtures/vision_images").join(&case.image)))
        .with_question(case.question.clone())
        .with_sampling(Sampling::default())
        .with_max_tokens(TOKENS)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Normalization of a processor, and the photographs that it was given.
#[derive(Deserialize)]
struct Scaling {
    mean: Vec<f32>,
    deviation: Vec<f32>,
    photographs: Vec<String>,
}

/// The largest difference of the preprocessing of real photographs, in units of the 256 values that a byte
/// has, over 255.
fn compare_photographs(family: &str, model: &VisionModel, expected: &HashMap<String, Tensor>) -> f32 {
    #[derive(Deserialize)]
    struct File {
        scaling: Scaling,
    }
    let text = std::fs::read(fixture(family).join("expected.json")).unwrap();
    let Scaling { mean, deviation, photographs } = serde_json::from_slice::<File>(&text).unwrap().scaling;
    let mut largest = 0f32;
    for name in &photographs {
        let image = ImageSource::Path(root().join("tests/fixtures/photographs").join(name));
        let request = DescribeImage::new(image)
            .with_question("What?")
            .with_sampling(Sampling::default())
            .with_max_tokens(1);
        let found = model.examine(&request).unwrap().pixels;
        let tensor = &expected[&format!("photograph.{name}")];
        let plane: usize = tensor.dims().iter().rev().take(2).product();
        let bytes: Vec<u8> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let found = found.concat();
        assert_eq!(found.len(), bytes.len(), "{family}, {name}");
        for (index, (found, byte)) in found.iter().zip(&bytes).enumerate() {
            let channel = index / plane % 3;
            let found = found * deviation[channel] + mean[channel];
            largest = largest.max((found - f32::from(*byte) / 255.0).abs());
        }
    }
    largest
}

/// The part of the answers that is compared.
#[derive(Clone, Copy)]
enum Answers {
    Texts,
    /// The tokens up to one that ends a text. As in llama.cpp, more of them do in a GGUF file, and bytes that are no text are
    /// written in another way.
    Tokens,
}

impl Answers {
    fn compare(self, found: &[u32], expected: &[u32], case: &str) {
        let compared = match self {
            Self::Texts => expected,
            Self::Tokens => &expected[..found.len().max(1)],
        };
        assert_eq!(found, compared, "{case}");
    }
}

/// Largest differences of a family from its reference. Its answers are the same, token by token.
fn compare(family: &str, model: &VisionModel, answers: Answers) {
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
        println!("{family}, {} {:?}: pixels, features, logits {differences:?}", case.image, case.question);
        pixels = pixels.max(differences[0]);
        features = features.max(differences[1]);
        logits = logits.max(differences[2]);
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let completion = model.describe_each(&request(case), |token, piece| {
            tokens.push(token);
            text.push_str(piece.unwrap_or_default());
        });
        let (completion, written) = (completion.unwrap(), tokens.len());
        answers.compare(&tokens, &case.tokens, &format!("{family}, case {index}"));
        if let Answers::Texts = answers {
            assert_eq!(completion.text, case.answer, "{family}, case {index}");
        }
        assert_eq!(text, completion.text);
        if !case.penalized.is_empty() {
            let sampling = Sampling::default().with_repetition_penalty(1.5);
            let penalized = request(case).with_sampling(sampling).with_max_tokens(case.penalized.len());
            tokens.clear();
            model.describe_each(&penalized, |token, _| tokens.push(token)).unwrap();
            answers.compare(&tokens, &case.penalized, &format!("{family}, case {index}"));
        }
        assert_eq!(completion.usage.prompt_tokens, case.prompt.len());
        assert_eq!(completion.usage.completion_tokens, written);
    }
    let photographs = compare_photographs(family, model, &expected);
    println!("{family}: largest difference on photographs {photographs:.2e}, where 1/255 is 3.92e-3");
    assert!(photographs <= 1.0 / 255.0, "{family}: photographs {photographs}");
    println!(
        "{family}: largest difference of pixels {pixels:.2e}, features {features:.2e}, logits {logits:.2e}"
    );
    assert!(pixels <= PIXEL_TOLERANCE, "{family}: pixels {pixels}");
    assert!(features <= TOLERANCE, "{family}: features {features}");
    assert!(logits <= TOLERANCE, "{family}: logits {logits}");
}

/// Runs all cases several times at once on one worker, so that images are encoded while other requests
/// generate.
async fn compare_together(family: &str) {
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
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
async fn every_family_agrees_with_its_reference() {
    for family in families_of("vision") {
        compare(&family, &VisionModel::load(Source::directory(fixture(&family))).unwrap(), Answers::Texts);
        compare_together(&family).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_brings_the_answer_in_pieces() {
    let engine = Engine::builder().vision("model", Source::directory(fixture("blip"))).start().await.unwrap();
    let case = &cases("blip")[1];
    let mut stream = engine.vision("model").unwrap().stream(request(case)).await.unwrap();
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece.unwrap().text);
    }
    assert_eq!(text, case.answer);
    assert_eq!(stream.output().await.unwrap().text, case.answer);
}

/// Weights of a model that is loaded already, so that its steps can be counted.
struct Loaded(VisionModel);

impl Loader<Vision> for Loaded {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(self.0.footprint())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Vision>>, Failure> {
        Ok(Arc::new(Loaded(self.0.try_clone()?)))
    }
}

impl Weights<Vision> for Loaded {
    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Vision>>, Failure> {
        Ok(Box::new(self.0.try_clone()?))
    }
}

/// A system with one worker of a family's model, whose readers' buffers hold whole answers.
/// `hook` is done at each tick of the worker.
async fn counted(
    family: &str,
    hook: impl Fn() + Send + Sync + 'static,
) -> (System, ModelHandle<Vision>, VisionModel) {
    let model = VisionModel::load(Source::directory(fixture(family))).unwrap();
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1).with_stream_buffer(4096);
    let system = System::builder(SystemConfig::default()).pool::<Vision>(pool).start().await.unwrap();
    let loader = HookedLoader::new(Loaded(model.try_clone().unwrap()), hook);
    let spec = ModelSpec::new("model", loader).continuous();
    let handle = system.client::<Vision>().unwrap().register(spec).unwrap();
    (system, handle, model)
}

/// Request with decoded pixels and a long answer.
async fn with_pixels(case: &Case) -> DescribeImage {
    let images = ImageInput::new(ImageSettings::default()).unwrap();
    let mut request = request(case).with_max_tokens(400);
    for image in request.images_mut() {
        *image = ImageSource::Picture(images.picture(image.clone()).await.unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_looked_at_once_for_all_answers() {
    let (system, handle, model) = counted("llava", || {}).await;
    let request = with_pixels(&cases("llava")[1]).await.with_max_tokens(8).with_sampling(Sampling::default());
    let mut steps = Vec::new();
    for answers in [1, 3] {
        let before = model.steps();
        handle.call(request.clone().with_answers(answers), CallOptions::default()).await.unwrap();
        steps.push(model.steps() - before);
    }
    assert_eq!(steps[0], steps[1]);
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_model_within_a_step() {
    let (system, handle, model) = counted("llava", || {}).await;
    let request = with_pixels(&cases("llava")[1]).await;
    model.describe(&request).unwrap();
    let whole = model.steps();
    for pieces in 1..=5 {
        let more = steps_after_drop(&handle, request.clone(), pieces, || model.steps()).await;
        println!("{more} steps after the drop");
        // One may have been about to begin.
        assert!(more <= 1, "{more}");
    }
    assert!(model.steps() - whole < 5 * whole, "it wrote to the end each time: {whole} steps");
    assert!(system.shutdown().await.is_clean());
}

/// While the image is encoded and the prompt prefilled, a stream has no chunk yet. The worker is held at each
/// of its ticks in turn while the stream is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_before_its_first_piece_stops_the_model_within_a_step() {
    let (ticks_left, held) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let gate: Arc<Mutex<Gate>> = Arc::default();
    let hook = {
        let (ticks_left, held, gate) = (ticks_left.clone(), held.clone(), gate.clone());
        move || {
            let before = ticks_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
            if before == Ok(1) {
                let latch = gate.lock().unwrap().latch();
                held.notify_one();
                assert!(latch.wait(LIMIT), "the test lets the worker go on");
            }
        }
    };
    let (system, handle, model) = counted("llava_next", hook).await;
    let request = with_pixels(&cases("llava_next")[2]).await;
    let mut early = 0;
    for tick in 1.. {
        *gate.lock().unwrap() = Gate::default();
        ticks_left.store(tick, SeqCst);
        let mut stream = handle.stream(request.clone(), CallOptions::default()).await.unwrap();
        tokio::time::timeout(LIMIT, held.notified()).await.expect("the worker comes to the tick");
        let is_early = stream.next().now_or_never().is_none();
        drop(stream);
        let dropped = model.steps();
        gate.lock().unwrap().open();
        until_nothing_runs(&handle).await;
        let more = model.steps() - dropped;
        assert!(more <= 1, "{more} steps after the drop at tick {tick}");
        if !is_early {
            break;
        }
        early += 1;
    }
    println!("{early} ticks before the first piece");
    assert!(early > 2, "{early}");
    assert!(system.shutdown().await.is_clean());
}

/// Result of loading a copy of a family's fixture with a file changed.
fn load_changed(
    family: &str,
    file: &str,
    change: impl FnOnce(&mut serde_json::Value),
) -> Result<VisionModel, Error> {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join(file);
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    VisionModel::load(Source::directory(folder.path()))
}

fn changed(family: &str, file: &str, change: impl FnOnce(&mut serde_json::Value)) -> Error {
    load_changed(family, file, change).err().unwrap_or_else(|| panic!("{family} loads with {file} changed"))
}

#[test]
fn the_largest_image_is_in_the_footprint() {
    let per_worker = |pixels: u64| {
        let change = |settings: &mut serde_json::Value| settings["size"]["longest_edge"] = pixels.into();
        load_changed("qwen3_vl", "preprocessor_config.json", change).unwrap().footprint().per_worker.0
    };
    // Patches of 8 · 8 pixels, of which the tower holds five rows of 32 numbers each; the context has room for 2,048.
    let more = per_worker(1024 * 64) - per_worker(512 * 64);
    assert!(more >= 512 * 5 * 32 * 4, "{more}");
    assert_eq!(per_worker(1 << 20), per_worker(1 << 21));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    for family in ["llava", "qwen3_vl", "moondream", "blip"] {
        let model = VisionModel::load(Source::directory(fixture(family))).unwrap();
        let request = request(&cases(family)[0]).with_question("word ".repeat(700));
        let error = model.describe(&request).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { limit, .. } if limit == model.context()), "{error}");
        let message = error.to_string();
        assert!(message.contains(&model.context().to_string()), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kv_cache_tokens_limits_prompt_and_answer() {
    for family in ["llava", "blip"] {
        let source = || Source::directory(fixture(family));
        let limits = GenerationLimits::default().with_kv_cache_tokens(128).with_max_sequences(2);
        let options = LoadOptions::default().with_generation(limits);
        let small = VisionModel::load_with(source(), options).unwrap();
        let usual = VisionModel::load(source()).unwrap();
        assert!(small.context() <= 128);
        assert!(small.footprint().per_worker < usual.footprint().per_worker, "{family}");
        let case = &cases(family)[0];
        let endless = request(case).with_question("word ".repeat(150));
        let error = small.describe(&endless).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { limit, .. } if limit == small.context()), "{error}");

        // More requests than fit together wait for each other, and are answered as they would be alone.
        let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
        let builder = Engine::builder()
            .pool_config(pool)
            .vision("model", SourceSpec::from(source()).with_generation(limits));
        let engine = builder.start().await.unwrap();
        let model = engine.vision("model").unwrap();
        let answers = (0..6).map(|_| model.describe(request(case)));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.unwrap(), small.describe(&request(case)).unwrap(), "{family}");
        }
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_fail_alone() {
    let engine = Engine::builder().vision("model", Source::directory(fixture("blip"))).start().await.unwrap();
    let model = engine.vision("model").unwrap();
    let case = &cases("blip")[0];
    let broken = DescribeImage::new(ImageSource::Bytes(vec![1, 2, 3]));
    let endless = request(case).with_question("word ".repeat(200));
    let (broken, endless, good) =
        tokio::join!(model.describe(broken), model.describe(endless), model.describe(request(case)));
    assert!(broken.is_err() && endless.is_err());
    assert_eq!(good.unwrap().text, case.answer);
}
