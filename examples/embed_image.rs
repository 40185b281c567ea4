//! Embeds images with a local model: vectors and how similar they are, for people, or one JSON object a line. A text
//! ranks the images by how well they fit it.
//!
//! ```text
//! cargo run --release --example embed_image -- --model openai/clip-vit-base-patch32 cat.jpg dog.png --text "a cat"
//! ```

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use candle_actors::{Engine, ImageEmbedder, Source};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model_actors::{Event, ImageSource, LoadStage};
use tokio::sync::broadcast::{Receiver, error::RecvError};

type Failure = Box<dyn std::error::Error>;

/// Embeds images with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = "openai/clip-vit-base-patch32")]
    model: String,
    /// Rank the images by how well they fit this text.
    #[arg(long)]
    text: Option<String>,
    /// Print one JSON object a line: index, image, embedding, and with a text the similarity to it.
    #[arg(long)]
    json: bool,
    /// Files, or http and https addresses.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// What is told of an image.
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
    let engine = Engine::builder().image_embedding("model", Source::parse(&arguments.model)).start().await?;
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
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(candle_actors::Error::from)?;
    let text = match &arguments.text {
        Some(text) => Some(model.embed_text(text).await?),
        None => None,
    };
    let images = arguments.images.iter().map(|image| source(image));
    match model.embed_images(images).await {
        Ok(vectors) => Ok((vectors, text)),
        Err(error) => Err(name_image(model, arguments, error).await),
    }
}

/// Finds the image that an error of many is about.
async fn name_image(model: &ImageEmbedder, arguments: &Arguments, error: candle_actors::Error) -> Failure {
    for image in &arguments.images {
        if let Err(error) = model.embed_image(source(image)).await {
            return format!("{image}: {}", error.root()).into();
        }
    }
    error.into()
}

fn source(image: &str) -> ImageSource {
    match image.starts_with("http://") || image.starts_with("https://") {
        true => ImageSource::Url(image.to_owned()),
        false => ImageSource::Path(image.into()),
    }
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

/// The cosine of the angle between two vectors of length 1.
fn similarity(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(x, y)| x * y).sum()
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
