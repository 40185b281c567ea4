//! Measures the small models of this repository on held-out data, and prints the figures of their cards.
//! `models/README.md` says what was held out.
//!
//! ```text
//! cargo run --release --example measure
//! ```
//!
//! The data is `models/shapes/held_out/`, made by `models/shapes/held_out.py`, and the triples of
//! `models/english-embedding-small/paraphrases.json`. What is said of a scene is compared in `common/scenes.rs`.

#[path = "common/scenes.rs"]
mod scenes;
#[path = "common/vectors.rs"]
mod vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_actors::{Engine, ImageDescriber, Source};
use clap::Parser;
use model_actors::{DescribeImage, GenerateText, ImageSource, Message, PaintImage, Sampling};
use scenes::HeldOut;
use vectors::{nearest, similarity};

type Failure = Box<dyn std::error::Error>;

/// Measures the small models of this repository on held-out data.
#[derive(Parser)]
struct Arguments {
    /// The folder of the models.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models"))]
    models: PathBuf,
    /// Only what contains this in its name.
    #[arg(default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let folder = |name: &str| Source::directory(arguments.models.join(name));
    let engine = Engine::builder()
        .text_embedding("english", folder("english-embedding-small"))
        .image_embedding("finder", folder("shapes-image-embedding"))
        .vision("describer", folder("shapes-vision"))
        .text_to_image("painter", folder("shapes-text-to-image"))
        .text_to_text("chat", folder("shapes-chat"))
        .start()
        .await?;
    let data = HeldOut::read(&arguments.models)?;
    if "english".contains(&arguments.only) {
        let triples = read(&arguments.models.join("english-embedding-small/paraphrases.json"))?;
        measure_english(&engine, triples).await?;
    }
    if "images".contains(&arguments.only) {
        measure_images(&engine, &data, &arguments.models).await?;
    }
    if "vision".contains(&arguments.only) {
        measure_vision(&engine, &data, &arguments.models).await?;
    }
    if "painting".contains(&arguments.only) {
        measure_painting(&engine, &data).await?;
    }
    if "chat".contains(&arguments.only) {
        measure_chat(&engine, &data).await?;
        measure_stories(&engine, &data).await?;
    }
    engine.shutdown().await;
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn tell(what: &str, right: usize, of: usize) {
    println!("{what:<70} {right:>4} of {of:<4} {:>5.1} %", 100.0 * right as f64 / of as f64);
}

async fn measure_english(engine: &Engine, triples: Vec<[String; 3]>) -> Result<(), Failure> {
    let model = engine.text_embedding("english")?;
    let mut right = 0;
    for triple in &triples {
        let vectors = model.embed_batch(triple.clone()).await?;
        right += usize::from(similarity(&vectors[0], &vectors[1]) > similarity(&vectors[0], &vectors[2]));
    }
    tell("english: a paraphrase is nearer than an unrelated sentence", right, triples.len());
    Ok(())
}

async fn measure_images(engine: &Engine, data: &HeldOut, models: &Path) -> Result<(), Failure> {
    let model = engine.image_embedding("finder")?;
    let mut right = 0;
    for scenes in data.pictures.chunks(data.group) {
        let images = model.embed_images(scenes.iter().map(|scene| scene.image(models))).await?;
        let texts = model.embed_texts(scenes.iter().map(|scene| scene.caption.clone())).await?;
        let finds = |(own, text): &(usize, &Vec<f32>)| nearest(text, &images) == Some(*own);
        right += texts.iter().enumerate().filter(finds).count();
    }
    tell(&format!("images: a text finds its picture among {}", data.group), right, data.pictures.len());
    Ok(())
}

async fn measure_vision(engine: &Engine, data: &HeldOut, models: &Path) -> Result<(), Failure> {
    let model = engine.vision("describer")?;
    let (mut asked, mut answered, mut described) = (0, 0, 0);
    for scene in &data.pictures {
        let image = scene.image(models);
        for (question, answer) in &scene.questions {
            asked += 1;
            answered += usize::from(look(&model, image.clone(), question).await? == *answer);
        }
        described += usize::from(look(&model, image, "Describe the picture.").await? == scene.description);
    }
    tell("vision: questions about colours and numbers, word for word", answered, asked);
    tell("vision: descriptions, word for word", described, data.pictures.len());
    Ok(())
}

async fn look(model: &ImageDescriber, image: ImageSource, question: &str) -> Result<String, Failure> {
    let (question, sampling) = (question.to_owned(), Sampling::default());
    let completion = model.describe(DescribeImage { image, question, sampling, max_tokens: 64 }).await?;
    Ok(completion.text.trim().to_owned())
}

/// The vision model says what was painted.
async fn measure_painting(engine: &Engine, data: &HeldOut) -> Result<(), Failure> {
    let (painter, describer) = (engine.text_to_image("painter")?, engine.vision("describer")?);
    let (mut same_things, mut same_places) = (0, 0);
    for (prompt, seed) in data.prompts.iter().zip(1..) {
        let picture = painter.paint(PaintImage { seed: Some(seed), ..PaintImage::from(prompt) }).await?;
        let said = look(&describer, ImageSource::Picture(picture), "Describe the picture.").await?;
        same_things += usize::from(scenes::things(&said) == scenes::things(prompt));
        same_places += usize::from(scenes::layout(&said) == scenes::layout(prompt));
    }
    tell("painting: the described colours and shapes are the prompt's", same_things, data.prompts.len());
    tell("painting: and they stand as the prompt says", same_places, data.prompts.len());
    Ok(())
}

async fn measure_chat(engine: &Engine, data: &HeldOut) -> Result<(), Failure> {
    let model = engine.text_to_text("chat")?;
    let requests = data.chats.iter().map(|(question, _)| GenerateText::chat([Message::user(question)]));
    let answers = model.generate_batch(requests).await?;
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (answer, (question, expected)) in answers.iter().zip(&data.chats) {
        let (right, of) = kinds.entry(kind(question)).or_default();
        *right += usize::from(answer.text.trim() == expected);
        *of += 1;
    }
    let right = kinds.values().map(|(right, _)| right).sum();
    tell("chat: questions about a scene in words, word for word", right, data.chats.len());
    for (kind, (right, of)) in kinds {
        tell(&format!("      {kind} …"), right, of);
    }
    Ok(())
}

/// The first two words of the question that stands after a scene in words.
fn kind(question: &str) -> String {
    let asked = question.rsplit(". ").next().unwrap_or(question);
    asked.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

async fn measure_stories(engine: &Engine, data: &HeldOut) -> Result<(), Failure> {
    let model = engine.text_to_text("chat")?;
    let requests = data.stories.iter().map(|request| GenerateText::chat([Message::user(request)]));
    let stories = model.generate_batch(requests).await?;
    let good = stories.iter().filter(|story| data.is_story(&story.text)).count();
    let own = data.stories.iter().zip(&stories);
    let own = own
        .filter(|(request, story)| scenes::layout(request).first() == scenes::layout(&story.text).first())
        .count();
    tell("chat: stories of which every sentence is grammatical", good, stories.len());
    tell("chat: stories about the thing that was asked for", own, stories.len());
    let different: BTreeSet<&str> = stories.iter().map(|story| story.text.trim()).collect();
    tell("chat: different ones among these stories", different.len(), stories.len());
    Ok(())
}
