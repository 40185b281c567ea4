//! Runs a chat model in a process of its own, kills the process in the middle of an answer, and asks again. Beside it, in
//! this process, an embedder goes on; and both ways of running it are timed.
//!
//! ```text
//! cargo run --release --example isolated
//! ```

mod common;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use candle_actors::isolation::{ProcessOptions, run_child_if_asked};
use candle_actors::{
    Engine, Error, GenerateText, Message, PoolConfig, Source, SourceSpec, TextEmbedder, TextGenerator,
};
use clap::Parser;
use common::{Failure, show_progress};

/// A question to the small chat model.
const QUESTION: &str = "Tell me a story about a red circle left of a blue square.";
/// Number of requests that are timed.
const ROUNDS: u32 = 50;

/// Runs models in processes of their own, and kills one.
#[derive(Parser)]
struct Arguments {
    /// A text embedding model: a directory, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/english-embedding-small"))]
    embedder: String,
    /// A model that writes text.
    #[arg(long, value_name = "DIR_OR_REPO", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-chat"))]
    chat: String,
}

fn main() -> ExitCode {
    // First of all: the processes are this program again.
    run_child_if_asked();
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(common::main(run)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let source = |text: &str| SourceSpec::from(Source::parse(text).follow_links());
    let apart = |text: &str| source(text).with_isolation(ProcessOptions::default());
    // Its model waits for the reader, so that it is killed in the middle of its answer; and no other process of it is killed.
    let one = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1).with_stream_buffer(1);
    let engine = Engine::builder()
        .text_embedding("embedder here", source(&arguments.embedder))
        .text_embedding("embedder apart", apart(&arguments.embedder))
        .text_to_text("chat here", source(&arguments.chat))
        .text_to_text("chat apart", apart(&arguments.chat))
        .text_to_text("chat that is killed", apart(&arguments.chat).with_pool_config(one))
        .start()
        .await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let (here, apart) = (engine.text_embedding("embedder here")?, engine.text_embedding("embedder apart")?);
    assert_eq!(here.embed(QUESTION).await?, apart.embed(QUESTION).await?);
    let chats = (engine.text_to_text("chat here")?, engine.text_to_text("chat apart")?);
    write(&chats.0).await?;
    write(&chats.1).await?;
    println!("The same vectors and texts come from this process and from others:");
    // In turn, so that what else the machine does falls on both.
    let mut times = [Duration::ZERO; 4];
    for _ in 0..ROUNDS {
        times[0] += embed(&here).await?;
        times[1] += embed(&apart).await?;
    }
    for _ in 0..ROUNDS.div_ceil(10) {
        times[2] += write(&chats.0).await?;
        times[3] += write(&chats.1).await?;
    }
    show("embedding 8 sentences", times[0] / ROUNDS, times[1] / ROUNDS);
    show("writing an answer", times[2] / ROUNDS.div_ceil(10), times[3] / ROUNDS.div_ceil(10));
    kill_in_mid_answer(&engine.text_to_text("chat that is killed")?).await?;
    println!("The embedder of this process still has {} dimensions.", here.embed("still here").await?.len());
    engine.shutdown().await;
    progress.abort();
    Ok(())
}

fn show(what: &str, here: Duration, apart: Duration) {
    let more = 100.0 * (apart.as_secs_f64() / here.as_secs_f64() - 1.0);
    println!("  {what}: {here:.2?} here, {apart:.2?} apart ({more:+.1} %)");
}

async fn embed(model: &TextEmbedder) -> Result<Duration, Failure> {
    let began = Instant::now();
    model.embed_batch([QUESTION; 8]).await?;
    Ok(began.elapsed())
}

async fn write(model: &TextGenerator) -> Result<Duration, Failure> {
    let began = Instant::now();
    let mut stream = model.stream(request()).await?;
    while let Some(text) = stream.next().await {
        text.map_err(Error::from)?;
    }
    Ok(began.elapsed())
}

fn request() -> GenerateText {
    GenerateText::chat([Message::user(QUESTION)]).with_max_tokens(128)
}

/// Kills the processes of this program after the first words of an answer, as the kernel does when memory runs out.
async fn kill_in_mid_answer(model: &TextGenerator) -> Result<(), Failure> {
    let mut stream = model.stream(request()).await?;
    if let Some(text) = stream.next().await {
        println!("The chat begins with {:?}, and its process is killed.", text.map_err(Error::from)?.text);
    }
    let parent = std::process::id().to_string();
    if !Path::new("/proc").exists()
        || !Command::new("pkill").args(["-KILL", "-P", &parent]).status()?.success()
    {
        println!("But there is no pkill here, so that it goes on.");
    }
    let killed = Instant::now();
    while let Some(text) = stream.next().await {
        if let Err(error) = text {
            println!("Its caller is told: {error}");
        }
    }
    let answer = model.generate(request()).await?;
    println!("The next question is answered {:.0?} later: {:?}", killed.elapsed(), answer.text);
    Ok(())
}
