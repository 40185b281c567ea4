//! Embeds images with a local model: vectors and how similar they are, for people, or one JSON object a line.
//! A text ranks the images by how well they fit it.
//!
//! ```text
//! cargo run --release --example embed_image
//! cargo run --release --example embed_image -- --model openai/clip-vit-large-patch14 cat.jpg dog.png --text "a cat"
//! ```

mod common;
#[path = "common/images.rs"]
mod images;
#[allow(dead_code, reason = "only the similarity is of use here")]
#[path = "common/vectors.rs"]
mod vectors;

use std::io::Write;
use std::process::ExitCode;

use candle_actors::{Engine, ImageEmbedder, ImageSource, Source};
use clap::Parser;
use common::{Failure, show_progress};
use images::{shown, source};
use vectors::similarity;

/// Images that are not in the default model's training data.
const EXAMPLES: [&str; 4] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/held_out/000.png"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/held_out/001.png"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/held_out/002.png"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/held_out/003.png"),
];

/// Embeds images with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-image-embedding"))]
    model: String,
    /// Rank the images by how well they fit this text.
    #[arg(
        long,
        default_value_if("images", clap::builder::ArgPredicate::IsPresent, None),
        default_value = "a red triangle above a purple square"
    )]
    text: Option<String>,
    /// Print one JSON object a line: index, image, embedding, and with a text the similarity to it.
    #[arg(long)]
    json: bool,
    /// Files, or http and https addresses.
    #[arg(value_name = "IMAGE", default_values = EXAMPLES)]
    images: Vec<String>,
}

/// Output about one image.
#[derive(serde::Serialize)]
struct Line<'a> {
    index: usize,
    image: &'a str,
    embedding: &'a [f32],
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<f32>,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let engine = Engine::builder()
        .image_embedding("model", Source::parse(&arguments.model).follow_links())
        .start()
        .await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let vectors = embed(&engine.image_embedding("model")?, &arguments).await;
    engine.shutdown().await;
    progress.abort();
    let (images, text) = vectors?;
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (index, (image, embedding)) in arguments.images.iter().zip(&images).enumerate() {
        let similarity = text.as_deref().map(|text| similarity(text, embedding));
        lines.push(Line { index, image, embedding, similarity });
    }
    // The best first.
    lines.sort_by(|left, right| right.similarity.unwrap_or(0.0).total_cmp(&left.similarity.unwrap_or(0.0)));
    let mut out = std::io::stdout().lock();
    if arguments.json {
        for line in &lines {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        }
        return Ok(());
    }
    print_table(&mut out, &lines)
}

/// The vector of each image, and of the text.
async fn embed(
    model: &ImageEmbedder,
    arguments: &Arguments,
) -> Result<(Vec<Vec<f32>>, Option<Vec<f32>>), Failure> {
    let images: Vec<ImageSource> =
        arguments.images.iter().map(|image| source(image)).collect::<Result<_, _>>()?;
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(candle_actors::Error::from)?;
    let text = match &arguments.text {
        Some(text) => Some(model.embed_text(text).await?),
        None => None,
    };
    match model.embed_images(images.iter().cloned()).await {
        Ok(vectors) => Ok((vectors, text)),
        Err(error) => Err(first_failure(model, &arguments.images, images).await.unwrap_or(error.into())),
    }
}

/// Takes in images one after another, so that an error names its image.
async fn first_failure(model: &ImageEmbedder, names: &[String], images: Vec<ImageSource>) -> Option<Failure> {
    for (number, (name, image)) in (1..).zip(names.iter().zip(images)) {
        if let Err(error) = model.embed_image(image).await {
            return Some(format!("image {number}, {}: {}", shown(name), error.root()).into());
        }
    }
    None
}

fn print_table(out: &mut impl Write, lines: &[Line<'_>]) -> Result<(), Failure> {
    if lines.iter().any(|line| line.similarity.is_some()) {
        for line in lines {
            writeln!(out, "{:6.3}  {}", line.similarity.unwrap_or(0.0), line.image)?;
        }
        return Ok(());
    }
    for Line { index, image, embedding, .. } in lines {
        let first: Vec<String> = embedding.iter().take(4).map(|x| format!("{x:+.4}")).collect();
        writeln!(out, "[{index}] {image}\n     {} dimensions: {}, …", embedding.len(), first.join(", "))?;
    }
    if lines.len() > 1 {
        writeln!(out, "\nsimilarity")?;
        let numbers: String = (0..lines.len()).map(|index| format!(" {:>6}", format!("[{index}]"))).collect();
        writeln!(out, "      {numbers}")?;
        for left in lines {
            let row: String = lines
                .iter()
                .map(|right| format!(" {:6.3}", similarity(left.embedding, right.embedding)))
                .collect();
            writeln!(out, "{:>6}{row}", format!("[{}]", left.index))?;
        }
    }
    Ok(())
}
