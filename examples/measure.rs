//! Measures the small models of this repository on data that no training saw, and prints the figures of their cards.
//!
//! ```text
//! cargo run --release --example measure
//! ```
//!
//! The data is `models/shapes/held_out/`, made by `models/shapes/held_out.py`, and the triples of
//! `models/english-embedding-small/paraphrases.json`.

use std::path::{Path, PathBuf};

use candle_actors::{Engine, Source};
use clap::Parser;
use model_actors::ImageSource;
use serde::Deserialize;

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

#[derive(Deserialize)]
struct HeldOut {
    /// Among so many pictures a text has to find its own.
    group: usize,
    pictures: Vec<Scene>,
}

#[derive(Deserialize)]
struct Scene {
    file: String,
    caption: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let folder = |name: &str| Source::directory(arguments.models.join(name));
    let engine = Engine::builder()
        .text_embedding("english", folder("english-embedding-small"))
        .image_embedding("finder", folder("shapes-image-embedding"))
        .start()
        .await?;
    let held_out = arguments.models.join("shapes/held_out");
    let data: HeldOut = read(&held_out.join("held_out.json"))?;
    if "english".contains(&arguments.only) {
        let triples = read(&arguments.models.join("english-embedding-small/paraphrases.json"))?;
        measure_english(&engine, triples).await?;
    }
    if "images".contains(&arguments.only) {
        measure_images(&engine, &data, &held_out).await?;
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

fn similarity(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(x, y)| x * y).sum()
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

async fn measure_images(engine: &Engine, data: &HeldOut, folder: &Path) -> Result<(), Failure> {
    let model = engine.image_embedding("finder")?;
    let mut right = 0;
    for scenes in data.pictures.chunks(data.group) {
        let images = scenes.iter().map(|scene| ImageSource::Path(folder.join(&scene.file)));
        let images = model.embed_images(images).await?;
        let texts = model.embed_texts(scenes.iter().map(|scene| scene.caption.clone())).await?;
        for (own, text) in texts.iter().enumerate() {
            let nearest = (0..images.len())
                .max_by(|a, b| similarity(text, &images[*a]).total_cmp(&similarity(text, &images[*b])));
            right += usize::from(nearest == Some(own));
        }
    }
    tell(&format!("images: a text finds its picture among {}", data.group), right, data.pictures.len());
    Ok(())
}
