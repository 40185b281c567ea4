//! Describes an image with a local model, or answers a question about it: text as it is written, for people, or JSON
//! objects, one a line.
//!
//! ```text
//! cargo run --release --example describe -- cat.jpg
//! cargo run --release --example describe -- --model Qwen/Qwen3-VL-2B-Instruct cat.jpg --question "What colour is it?"
//! ```

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{Engine, ImageDescriber, Source};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model_actors::{Completion, DescribeImage, Event, ImageSource, LoadStage, Sampling};
use tokio::sync::broadcast::{Receiver, error::RecvError};

type Failure = Box<dyn std::error::Error>;

/// Time for the first word: a large model looks at a large image for minutes on a processor.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Describes an image with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = "Salesforce/blip-image-captioning-base")]
    model: String,
    /// What to say about the image; for a captioning model the beginning of the caption.
    #[arg(long, value_name = "TEXT", default_value = "")]
    question: String,
    /// Most tokens to write.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Print JSON objects, one a line: text, and at the end finish_reason and usage.
    #[arg(long)]
    json: bool,
    /// A file, or an http or https address.
    image: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            // What a load says for itself is all that a person at a terminal needs.
            let error = match error.downcast_ref::<candle_actors::Error>() {
                Some(error) => error.root().to_string(),
                None => error.to_string(),
            };
            eprintln!("error: {}", error.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let engine = Engine::builder().vision("model", Source::parse(&arguments.model)).start().await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let described = describe(&engine.vision("model")?.timeout(PATIENCE), &arguments).await;
    engine.shutdown().await;
    progress.abort();
    described
}

async fn describe(model: &ImageDescriber, arguments: &Arguments) -> Result<(), Failure> {
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(candle_actors::Error::from)?;
    let request = DescribeImage {
        image: source(&arguments.image),
        question: arguments.question.clone(),
        sampling: Sampling::default(),
        max_tokens: arguments.max_tokens,
    };
    let mut stream = model.stream(request).await?;
    let mut out = std::io::stdout();
    while let Some(text) = stream.next().await {
        match arguments.json {
            true => writeln!(out, "{}", serde_json::json!({ "text": text }))?,
            false => write!(out, "{text}")?,
        }
        out.flush()?;
    }
    let Completion { finish_reason, usage, .. } =
        stream.output().await.map_err(candle_actors::Error::from)?;
    match arguments.json {
        true => {
            writeln!(out, "{}", serde_json::json!({ "finish_reason": finish_reason, "usage": usage }))?;
        }
        false => writeln!(out)?,
    }
    Ok(())
}

fn source(image: &str) -> ImageSource {
    match image.starts_with("http://") || image.starts_with("https://") {
        true => ImageSource::Url(image.to_owned()),
        false => ImageSource::Path(image.into()),
    }
}

/// A bar for download and load, on standard error, if a person sees it.
async fn show_progress(mut events: Receiver<Event>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} [{wide_bar}] {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    loop {
        match events.recv().await {
            Ok(Event::Loading { stage, done, total, .. }) => {
                bar.set_message(match stage {
                    LoadStage::Download => "download",
                    LoadStage::Load => "load",
                    LoadStage::WarmUp => "warm-up",
                });
                bar.set_length(total.unwrap_or(done).0);
                bar.set_position(done.0);
            }
            Ok(Event::WorkerStarted { .. } | Event::StartFailed { .. }) | Err(RecvError::Closed) => break,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
        }
    }
    bar.finish_and_clear();
}

/// Whoever read the output has seen enough.
fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
