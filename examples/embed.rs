//! Embeds texts with a local model: vectors and how similar they are, for people, or one JSON object a line.
//!
//! ```text
//! cargo run --release --example embed -- "The cat sleeps." "A cat is sleeping." "Shares fell."
//! ```

mod common;

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use candle_actors::{Engine, Source, TextEmbedder};
use clap::Parser;
use common::{Failure, show_progress};

/// Sentences to compare without arguments.
const EXAMPLES: [&str; 3] = ["The cat sleeps.", "A kitten naps on the couch.", "Shares fell."];

/// Embeds texts with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/english-embedding-small"))]
    model: String,
    /// A prompt that the model's own files define, such as query.
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// A prompt by its words, such as "query: ".
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt")]
    prompt_text: Option<String>,
    /// Keep only so many dimensions.
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Print one JSON object a line: index, text, embedding.
    #[arg(long)]
    json: bool,
    /// The texts; without any, each line of standard input is one, and without those three sentences are
    /// compared.
    texts: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut texts = arguments.texts.clone();
    if texts.is_empty() && !std::io::stdin().is_terminal() {
        texts = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    }
    if texts.is_empty() && !arguments.json {
        texts = EXAMPLES.map(str::to_owned).to_vec();
    }
    let engine = Engine::builder()
        .text_embedding("model", Source::parse(&arguments.model).follow_links())
        .start()
        .await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let vectors = embed(arguments.model(&engine)?, &texts).await;
    engine.shutdown().await;
    progress.abort();
    let (vectors, mut out) = (vectors?, std::io::stdout().lock());
    if arguments.json {
        print_json(&mut out, &texts, &vectors)
    } else {
        print_table(&mut out, &texts, &vectors)
    }
}

impl Arguments {
    /// The model, asked in the way that the person chose.
    fn model(&self, engine: &Engine) -> Result<TextEmbedder, candle_actors::Error> {
        let mut model = engine.text_embedding("model")?;
        if let Some(name) = &self.prompt {
            model = model.prompt(name);
        }
        if let Some(prompt) = &self.prompt_text {
            model = model.prompt_text(prompt);
        }
        Ok(match self.dimensions {
            Some(dimensions) => model.dimensions(dimensions),
            None => model,
        })
    }
}

async fn embed(model: TextEmbedder, texts: &[String]) -> Result<Vec<Vec<f32>>, candle_actors::Error> {
    // A request has limited time; a download may take longer.
    model.model().preload().await?;
    model.embed_batch(texts).await
}

fn print_json(out: &mut impl Write, texts: &[String], vectors: &[Vec<f32>]) -> Result<(), Failure> {
    for (index, (text, embedding)) in texts.iter().zip(vectors).enumerate() {
        #[derive(serde::Serialize)]
        struct Line<'a> {
            index: usize,
            text: &'a str,
            embedding: &'a [f32],
        }
        writeln!(out, "{}", serde_json::to_string(&Line { index, text, embedding })?)?;
    }
    Ok(())
}

fn print_table(out: &mut impl Write, texts: &[String], vectors: &[Vec<f32>]) -> Result<(), Failure> {
    for (index, (text, vector)) in texts.iter().zip(vectors).enumerate() {
        let first: Vec<String> = vector.iter().take(4).map(|x| format!("{x:+.4}")).collect();
        writeln!(out, "[{index}] {text}\n     {} dimensions: {}, …", vector.len(), first.join(", "))?;
    }
    if vectors.len() > 1 {
        writeln!(out, "\nsimilarity")?;
        let numbers: String =
            (0..vectors.len()).map(|index| format!(" {:>6}", format!("[{index}]"))).collect();
        writeln!(out, "      {numbers}")?;
        for (index, left) in vectors.iter().enumerate() {
            let row: String =
                vectors.iter().map(|right| format!(" {:6.3}", similarity(left, right))).collect();
            writeln!(out, "{:>6}{row}", format!("[{index}]"))?;
        }
    }
    Ok(())
}

/// Cosine similarity of two vectors.
fn similarity(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt().max(f32::MIN_POSITIVE)
}
