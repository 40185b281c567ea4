//! Seconds of a diffusion step, and images a second that an encoder embeds. The models' folders are named, so that the
//! same ones can be given to another program: `benches/peers/pytorch_images.py` does that.
//!
//! ```text
//! cargo bench --bench images -- [--painter FOLDER] [--embedder FOLDER] [--threads N]
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::time::Instant;

use candle_actors::{
    Engine, ImageEmbeddingModel, LoadOptions, PaintImage, Picture, Source, StandaloneModel as _,
};
use clap::Parser;

/// Side of the pictures painted, in pixels.
const PAINTED: usize = 256;
/// Side of the images embedded, in pixels.
const EMBEDDED: usize = 224;
const BATCH: usize = 8;

/// Measures a painter and an encoder of images.
#[derive(Parser)]
struct Arguments {
    /// A folder with a text to image model.
    #[arg(long)]
    painter: Option<String>,
    /// A folder with an image embedding model.
    #[arg(long)]
    embedder: Option<String>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Repetitions, of which the best counts.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.painter {
        println!("step: {:.4} s", step(folder, &arguments).await);
    }
    if let Some(folder) = &arguments.embedder {
        println!("batch: {:.4} s", batch(folder, &arguments));
    }
}

/// Seconds of the quickest step with guidance; a step ends with its chunk.
async fn step(folder: &str, arguments: &Arguments) -> f64 {
    let engine = Engine::builder().threads(arguments.threads).text_to_image("painter", Source::parse(folder));
    let engine = engine.start().await.unwrap();
    let painter = engine.text_to_image("painter").unwrap();
    painter.model().preload().await.unwrap();
    let request = PaintImage::from("a red circle left of a blue square")
        .with_size((PAINTED, PAINTED))
        .with_steps(arguments.times + 1)
        .with_guidance(7.5);
    let mut stream = painter.stream(request).await.unwrap();
    let (mut best, mut before) = (f64::INFINITY, None::<Instant>);
    while let Some(chunk) = stream.next().await {
        chunk.unwrap();
        if let Some(before) = before.replace(Instant::now()) {
            best = best.min(before.elapsed().as_secs_f64());
        }
    }
    engine.shutdown().await;
    best
}

/// Seconds of the quickest batch of images that already have the model's size.
fn batch(folder: &str, arguments: &Arguments) -> f64 {
    let options = LoadOptions::default().with_threads(arguments.threads);
    let model = ImageEmbeddingModel::load_with(Source::parse(folder), options).unwrap();
    let picture = |index: usize| {
        let pixels = (0..EMBEDDED * EMBEDDED * 3).map(|pixel| (pixel * 31 + index * 17) as u8).collect();
        Picture::new(EMBEDDED, EMBEDDED, pixels)
    };
    let pictures: Vec<_> = (0..BATCH).map(picture).collect();
    let times = (0..=arguments.times).map(|_| {
        let began = Instant::now();
        model.embed_images(&pictures).unwrap();
        began.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}
