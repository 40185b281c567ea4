//! The trained models of this repository in processes of their own: they answer as in this one, typed errors included, and
//! serve again soon after their process was killed.
//!
//! Children are this executable, so its `main` begins as an application's does, and there is no test harness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "children are found in /proc"))]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_actors::isolation::{Isolation, ProcessOptions, run_child_if_asked};
use candle_actors::{
    DescribeImage, Engine, EngineBuilder, EngineResources, Error, GenerateText, ImageInput, ImageSettings,
    ImageSource, LoadOptions, Message, ModelId, ModelSpec, PaintImage, Picture, PoolConfig, Sampling, Source,
    SourceSpec, StandaloneModel, TextEmbedding, TextEmbeddingModel,
};

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    if std::env::var_os("MODEL_ACTORS_CHILD").is_none() {
        block_on(a_main_without_the_first_line_is_told_so());
    }
    run_child_if_asked();
    block_on(images_are_decoded_as_here());
    block_on(answers_and_errors_are_the_same());
    block_on(a_specification_of_an_applications_own());
    block_on(adapters_go_along());
    block_on(a_killed_process_is_replaced());
    println!("test result: ok");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(300), test).await.expect("it ends") });
}

fn source(name: &str) -> Source {
    Source::directory(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(name))
}

fn builder(isolation: impl Into<Isolation>) -> EngineBuilder {
    Engine::builder()
        .isolation(isolation)
        .pool_config(PoolConfig::default().with_max_workers(1))
        .text_embedding("texts", source("english-embedding-small"))
        .image_embedding("images", source("shapes-image-embedding"))
        .text_to_text("chat", source("shapes-chat"))
        .vision("eyes", source("shapes-vision"))
        .text_to_image("painter", source("shapes-text-to-image"))
}

async fn a_main_without_the_first_line_is_told_so() {
    let refused =
        ImageInput::new(ImageSettings::default().with_isolation(ProcessOptions::default())).unwrap_err();
    assert!(matches!(refused, Error::InvalidSetting { .. }), "{refused}");
    assert!(refused.to_string().contains("run_child_if_asked at the top of main"), "{refused}");
    let refused = builder(ProcessOptions::default()).start().await.unwrap_err();
    assert!(refused.to_string().contains("run_child_if_asked at the top of main"), "{refused}");
    let spec = SourceSpec::from(source("english-embedding-small")).with_isolation(Isolation::Thread);
    let engine =
        Engine::builder().isolation(ProcessOptions::default()).text_embedding("texts", spec).start().await;
    engine.unwrap().shutdown().await;
}

/// A question that has to be rendered, and whose answer streams.
fn question() -> GenerateText {
    GenerateText::chat([Message::user("Tell me a short story about a small red circle.")])
        .with_sampling(Sampling::default().with_temperature(0.7).with_seed(3))
}

fn picture() -> Picture {
    let rgb = (0..64 * 64).flat_map(|place| if place % 64 < 32 { [255, 0, 0] } else { [0, 0, 255] });
    Picture::new(64, 64, rgb.collect())
}

/// Everything that the models say, in words that compare.
async fn answers(engine: &Engine) -> Vec<String> {
    let texts = engine.text_embedding("texts").unwrap().embed_batch(["A cat sleeps.", "Shares fell."]).await;
    let images = engine.image_embedding("images").unwrap();
    let image = || ImageSource::Picture(picture());
    let images = images.embed_image(image()).await;
    let mut stream = engine.text_to_text("chat").unwrap().stream(question()).await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    let told = stream.output().await.unwrap();
    let whole: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert_eq!(whole, told.text);
    let seen = DescribeImage::new(image()).with_question("Describe the picture.");
    let seen = engine.vision("eyes").unwrap().describe(seen).await;
    let painted = PaintImage::from("a red circle left of a blue square").with_seed(5).with_steps(2);
    let painted = engine.text_to_image("painter").unwrap().paint(painted).await.unwrap();
    let too_long = GenerateText::chat([Message::user("word ".repeat(20_000))]);
    let too_long = engine.text_to_text("chat").unwrap().generate(too_long).await.unwrap_err();
    assert!(matches!(too_long, Error::PromptTooLong { .. }), "{too_long}");
    vec![
        format!("{:?}", texts.unwrap()),
        format!("{:?}", images.unwrap()),
        format!("{told:?}"),
        format!("{:?}", seen.unwrap()),
        format!("{painted:?} {:?}", painted.rgb),
        too_long.to_string(),
    ]
}

async fn answers_and_errors_are_the_same() {
    let here = builder(Isolation::Thread).start().await.unwrap();
    let apart = builder(ProcessOptions::default()).start().await.unwrap();
    for (here, apart) in answers(&here).await.into_iter().zip(answers(&apart).await) {
        assert_eq!(here, apart);
    }
    assert_eq!(children().len(), 5);
    assert!(here.shutdown().await.is_clean());
    assert!(apart.shutdown().await.is_clean());
    assert_eq!(children(), Vec::<i32>::new());
}

async fn a_specification_of_an_applications_own() {
    let engine = Engine::builder().isolation(ProcessOptions::default()).start().await.unwrap();
    let spec = |id: ModelId, resources: &EngineResources| {
        let loader = TextEmbeddingModel::loader(source("english-embedding-small"), LoadOptions::default())?;
        Ok(ModelSpec::isolated(id, loader, resources.isolation())?)
    };
    let texts = engine.register::<TextEmbedding>("own", spec).unwrap();
    let here = TextEmbeddingModel::load(source("english-embedding-small")).unwrap();
    assert_eq!(texts.embed("A cat sleeps.").await.unwrap(), here.embed(&["A cat sleeps."]).unwrap()[0]);
    assert!(!children().is_empty());
    assert!(engine.shutdown().await.is_clean());
}

async fn adapters_go_along() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let fixture = |path: &str| Source::directory(fixtures.join(path));
    let start = async |isolation: Isolation| {
        let spec = SourceSpec::from(fixture("text_to_text/llama"))
            .with_adapter("plain", fixture("adapters/llama/plain"))
            .with_adapter("of another model", fixture("adapters/gemma/excluded"));
        Engine::builder().isolation(isolation).text_to_text("base", spec).start().await.unwrap()
    };
    let (here, apart) =
        (start(Isolation::Thread).await, start(Isolation::Process(ProcessOptions::default())).await);
    let mut told = Vec::new();
    for adapter in [None, Some("plain"), Some("of another model"), Some("unknown")] {
        let asked = GenerateText::from("The cat").with_max_tokens(16);
        let asked = asked.with_adapter(adapter.map(str::to_owned));
        let answer = async |engine: &Engine| {
            let answer = engine.text_to_text("base").unwrap().generate(asked.clone()).await;
            answer.map(|completion| completion.text).map_err(|error| error.root())
        };
        told.push(answer(&apart).await);
        assert_eq!(told.last(), Some(&answer(&here).await), "{adapter:?}");
    }
    assert!(told[0].is_ok() && told[1].is_ok() && told[0] != told[1]);
    assert!(matches!(told[2], Err(Error::BrokenAdapter { .. })), "{:?}", told[2]);
    assert!(matches!(told[3], Err(Error::UnknownAdapter { .. })), "{:?}", told[3]);
    let facts = apart.text_to_text("base").unwrap().model().facts().unwrap();
    assert_eq!(facts.adapters, ["of another model", "plain"]);
    assert!(here.shutdown().await.is_clean());
    assert!(apart.shutdown().await.is_clean());
}

/// Every image of the fixtures, damaged ones among them, in each way in which it can be given.
async fn images_are_decoded_as_here() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    let here = ImageInput::new(ImageSettings::default()).unwrap();
    let settings = ImageSettings::default().with_isolation(ProcessOptions::default()).with_decoders(2);
    let apart = ImageInput::new(settings.clone()).unwrap();
    let (mut decoded, mut refused) = (0, 0);
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(bytes) = std::fs::read(&file) else { continue };
        for source in [ImageSource::Path(file.clone()), ImageSource::Bytes(bytes)] {
            let (here, apart) = (here.picture(source.clone()).await, apart.picture(source).await);
            assert_eq!(here, apart, "{}", file.display());
            if apart.is_ok() { decoded += 1 } else { refused += 1 }
        }
    }
    println!("{decoded} images are decoded as here, {refused} refused");
    assert!(decoded > 20);
    let gif = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7".to_owned();
    assert_eq!(apart.picture(ImageSource::Base64(gif.clone())).await.unwrap().width, 1);
    let broken = apart.picture(ImageSource::Bytes(b"no image".to_vec())).await.unwrap_err();
    assert!(matches!(broken, Error::UnsupportedImage { .. }), "{broken}");
    assert!((1..=2).contains(&children().len()), "{:?}", children());
    // Those that an engine has started are gone once it has shut down.
    drop(apart);
    let engine = Engine::builder()
        .image_input(settings)
        .image_embedding("images", source("shapes-image-embedding"))
        .start()
        .await
        .unwrap();
    let images = engine.image_embedding("images").unwrap();
    images.embed_image(ImageSource::Base64(gif)).await.unwrap();
    assert!(!children().is_empty());
    assert!(engine.shutdown().await.is_clean());
    let none = async {
        while !children().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), none).await.expect("no process is left");
}

/// The children of this process.
fn children() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()).collect()
}

async fn a_killed_process_is_replaced() {
    is_replaced(source("english-embedding-small")).await;
    let folder =
        std::env::var_os("CANDLE_ACTORS_MODELS").map(|folder| PathBuf::from(folder).join("all-MiniLM-L6-v2"));
    match folder.filter(|folder| folder.is_dir()) {
        Some(folder) => is_replaced(Source::directory(folder)).await,
        None => println!("skipped: all-MiniLM-L6-v2 is not in the folder that CANDLE_ACTORS_MODELS names"),
    }
}

async fn is_replaced(source: Source) {
    let name = source.to_string();
    let pool = PoolConfig::default().with_max_workers(1);
    let engine = Engine::builder().isolation(ProcessOptions::default()).pool_config(pool);
    let engine = engine.text_embedding("texts", source).start().await.unwrap();
    let texts = engine.text_embedding("texts").unwrap();
    let before = texts.embed("A cat sleeps.").await.unwrap();
    let killed = children();
    assert_eq!(killed.len(), 1);
    let status = std::process::Command::new("kill").args(["-KILL", &killed[0].to_string()]).status().unwrap();
    assert!(status.success());
    let began = Instant::now();
    assert_eq!(texts.embed("A cat sleeps.").await.unwrap(), before, "its caller sees nothing of it");
    println!("{name} answered {:.0?} after its process was killed", began.elapsed());
    assert_ne!(children(), killed);
    assert!(engine.shutdown().await.is_clean());
}
