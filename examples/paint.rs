//! Paints a picture with a local model: a progress bar and a PNG file, for people, or one JSON object a line.
//!
//! ```text
//! cargo run --release --example paint
//! cargo run --release --example paint -- "a red circle" --model stabilityai/sdxl-turbo --out circle.png
//! cargo run --release --example paint -- "a red circle" --model stabilityai/sdxl-turbo --image sketch.png --strength 0.6
//! ```

mod common;
#[path = "common/png.rs"]
mod png;

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{
    Capability, Engine, Error, ImagePainter, ImageSource, PaintImage, Picture, Source, TextToImage,
};
use clap::Parser;
use common::{Failure, is_closed_pipe, show_progress};
use indicatif::{ProgressBar, ProgressStyle};

/// Patience for one picture: a large model takes minutes for a step without an accelerator.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Paints a picture with a local model.
#[derive(Parser)]
struct Arguments {
    /// Prompt to paint.
    #[arg(default_value = "a red circle left of a blue square")]
    prompt: String,
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-text-to-image"))]
    model: String,
    /// File for the picture.
    #[arg(long, value_name = "FILE.png", default_value = "painted.png")]
    out: PathBuf,
    /// Negative prompt: things to avoid.
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Image to begin with.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// How much of the image is painted anew, above 0 and up to 1.
    #[arg(long, requires = "image")]
    strength: Option<f32>,
    /// Mask of the image: only what is white in it is painted anew.
    #[arg(long, value_name = "FILE", requires = "image")]
    mask: Option<PathBuf>,
    /// Diffusion steps; without, the model's own number.
    #[arg(long)]
    steps: Option<usize>,
    /// Width and height in pixels; without, the model's own.
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    size: Option<(usize, usize)>,
    /// Classifier-free guidance scale; without, the model's own.
    #[arg(long)]
    guidance: Option<f32>,
    /// Makes the picture repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// The scheduler's name; without, the model's own.
    #[arg(long)]
    scheduler: Option<String>,
    /// Print one JSON object a line: each step, then the file.
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let sides =
        text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "a size is given as 512x512".to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let request = PaintImage::default()
        .with_prompt(arguments.prompt.clone())
        .with_negative_prompt(arguments.negative.clone())
        .with_image(arguments.image.clone().map(ImageSource::Path))
        .with_strength(arguments.strength)
        .with_mask(arguments.mask.clone().map(ImageSource::Path))
        .with_size(arguments.size)
        .with_steps(arguments.steps)
        .with_guidance(arguments.guidance)
        .with_seed(arguments.seed)
        .with_scheduler(arguments.scheduler.clone());
    // Told before the download and the work, not after them.
    TextToImage::check(&request).map_err(Error::from)?;
    check_writable(&arguments.out)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let source = Source::parse(&arguments.model).follow_links();
    let engine = Engine::builder().threads(threads).text_to_image("model", source).start().await?;
    let loading = tokio::spawn(show_progress(engine.events()));
    let painter = engine.text_to_image("model")?.timeout(PATIENCE);
    let picture = paint(&painter, request, arguments.json).await;
    engine.shutdown().await;
    loading.abort();
    png::save(&picture?, &arguments.out)?;
    #[derive(serde::Serialize)]
    struct Line<'a> {
        image: &'a Path,
    }
    match arguments.json {
        true => print(&Line { image: &arguments.out }),
        false => Ok(writeln!(std::io::stdout(), "{}", arguments.out.display())?),
    }
}

async fn paint(painter: &ImagePainter, request: PaintImage, json: bool) -> Result<Picture, Failure> {
    // A request has limited time; a download may take longer.
    painter.model().preload().await.map_err(Error::from)?;
    let mut stream = painter.stream(request).await?;
    let bar = bar("{msg} [{wide_bar}] {pos}/{len} {eta}");
    bar.set_message("paint");
    while let Some(step) = stream.next().await {
        let step = step.map_err(Error::from)?;
        bar.set_length(step.of as u64);
        bar.set_position(step.step as u64);
        if json {
            #[derive(serde::Serialize)]
            struct Line {
                step: usize,
                of: usize,
            }
            // Nobody reads the steps any more; the picture is wanted all the same.
            match print(&Line { step: step.step, of: step.of }) {
                Err(error) if !is_closed_pipe(&*error) => return Err(error),
                _ => {}
            }
        }
    }
    bar.finish_and_clear();
    Ok(stream.output().await.map_err(Error::from)?)
}

fn print(line: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    Ok(out.flush()?)
}

/// An error if the file cannot be written. Changes no file, and no link either.
fn check_writable(path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::from(format!("cannot write {}: {error}", path.display()));
    let mut options = std::fs::OpenOptions::new();
    match options.append(true).create_new(true).open(path) {
        Ok(_) => Ok(std::fs::remove_file(path)?),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match options.create_new(false).open(path) {
                // A link to where no file is yet.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                opened => opened.map(drop).map_err(failed),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// On standard error, if a person sees it.
fn bar(template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
