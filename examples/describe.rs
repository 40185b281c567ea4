//! Describes an image with a local model, or answers a question about it: text as it is written, for people,
//! or JSON objects, one a line.
//!
//! ```text
//! cargo run --release --example describe
//! cargo run --release --example describe -- --model Qwen/Qwen3-VL-2B-Instruct cat.jpg --question "What colour is it?"
//! ```

mod common;
#[path = "common/images.rs"]
mod images;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{Capability, Completion, DescribeImage, Engine, Error, ImageDescriber, Source, Vision};
use clap::Parser;
use common::{Failure, show_progress};
use images::source;

/// Time to wait for the first word: on a processor, a large model looks at a large image for minutes.
const PATIENCE: Duration = Duration::from_secs(1800);

const SMALL_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-vision");
/// The question that the small model was trained to answer.
const SMALL_QUESTION: &str = "Describe the picture.";

/// Describes an image with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision; without, the small one of
    /// this repository, which knows drawings of coloured shapes.
    #[arg(long, value_name = "DIR_OR_REPO")]
    model: Option<String>,
    /// Question about the image; for a captioning model the beginning of the caption. By default the small model is
    /// asked to describe the picture, and others answer without a question.
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Most tokens to write.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Print JSON objects, one a line: text, and at the end finish_reason and usage.
    #[arg(long)]
    json: bool,
    /// A file, or an http or https address.
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/held_out/000.png"))]
    image: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let engine = Engine::builder()
        .vision("model", Source::parse(arguments.model.as_deref().unwrap_or(SMALL_MODEL)).follow_links())
        .start()
        .await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let described = describe(&engine.vision("model")?.timeout(PATIENCE), &arguments).await;
    engine.shutdown().await;
    progress.abort();
    described
}

async fn describe(model: &ImageDescriber, arguments: &Arguments) -> Result<(), Failure> {
    let unasked = if arguments.model.is_none() { SMALL_QUESTION } else { "" };
    let request = DescribeImage::new(source(&arguments.image)?)
        .with_question(arguments.question.as_deref().unwrap_or(unasked))
        .with_max_tokens(arguments.max_tokens);
    // What cannot be asked is told before a model is fetched for it.
    Vision::check(&request).map_err(Error::from)?;
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(Error::from)?;
    let mut stream = model.stream(request).await?;
    let mut out = std::io::stdout();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(Error::from)?;
        match arguments.json {
            true => writeln!(out, "{}", serde_json::json!({ "text": chunk.text }))?,
            false => write!(out, "{chunk}")?,
        }
        out.flush()?;
    }
    let Completion { finish_reason, usage, .. } = stream.output().await.map_err(Error::from)?;
    match arguments.json {
        true => {
            writeln!(out, "{}", serde_json::json!({ "finish_reason": finish_reason, "usage": usage }))?;
        }
        false => writeln!(out)?,
    }
    Ok(())
}
