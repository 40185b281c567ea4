//! Orders documents by how well they answer a query, with a local model. None ships with this repository: name a folder, or
//! a repository to fetch.
//!
//! ```text
//! cargo run --release --example rerank -- --model cross-encoder/ms-marco-MiniLM-L6-v2 \
//!     --query "how long do cats sleep" "Cats sleep for 15 hours a day." "The bus was late."
//! ```

mod common;

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use candle_actors::{Engine, Ranking, RerankDocuments, Source};
use clap::Parser;
use common::{Failure, show_progress};

/// Orders documents by how well they answer a query.
#[derive(Parser)]
struct Arguments {
    /// A model directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO")]
    model: String,
    /// The query.
    #[arg(long, value_name = "TEXT")]
    query: String,
    /// The task in words, for models that are instructed.
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// Show only the N best documents.
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Print one JSON object a line: index, score, logit.
    #[arg(long)]
    json: bool,
    /// The documents; without any, each line of standard input is one.
    documents: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut documents = arguments.documents.clone();
    if documents.is_empty() && !std::io::stdin().is_terminal() {
        documents = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    }
    let source = Source::parse(&arguments.model).follow_links();
    let engine = Engine::builder().reranking("model", source).start().await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let ranking = rank(&engine, &arguments, &documents).await;
    engine.shutdown().await;
    progress.abort();
    let (ranking, mut out) = (ranking?, std::io::stdout().lock());
    for document in &ranking.documents {
        match arguments.json {
            true => writeln!(out, "{}", serde_json::to_string(document)?)?,
            false => writeln!(out, "{:7.4}  {}", document.score, documents[document.index])?,
        }
    }
    Ok(())
}

async fn rank(
    engine: &Engine,
    arguments: &Arguments,
    documents: &[String],
) -> candle_actors::Result<Ranking> {
    let model = engine.reranking("model")?;
    // A request has limited time; a download may take longer.
    model.model().preload().await?;
    let request = RerankDocuments::new(arguments.query.as_str(), documents.to_vec())
        .with_instruction(arguments.instruction.clone())
        .with_top_n(arguments.top);
    model.rank(request).await
}
