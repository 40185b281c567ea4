//! Talks with a local model: one answer to a prompt, or a conversation line by line. The text streams as it is made, for
//! people or as JSON lines.
//!
//! ```text
//! cargo run --release --example chat -- --model HuggingFaceTB/SmolLM2-135M-Instruct --prompt "What is rain?"
//! ```

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use candle_actors::{Engine, Source, TextGenerator};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model_actors::{Completion, Event, GenerateText, LoadStage, Message, Prompt, Sampling};
use tokio::sync::broadcast::{Receiver, error::RecvError};

type Failure = Box<dyn std::error::Error>;

/// Talks with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, a GGUF file, or a Hugging Face repository with an optional @revision.
    #[arg(long, value_name = "DIR_OR_REPO")]
    model: String,
    /// Answer this and end; without it, each line of standard input is a turn of a conversation.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Give the model the prompt as it is, without its chat template.
    #[arg(long)]
    raw: bool,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; the higher, the more even is the choice.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Makes the choice repeatable.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print one JSON object a line: pieces of text, then the finish reason and the usage.
    #[arg(long)]
    json: bool,
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
    let source = Source::parse(&arguments.model);
    let engine = Engine::builder().text_to_text("model", source).start().await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let talked = talk(&engine.text_to_text("model")?, &arguments).await;
    engine.shutdown().await;
    progress.abort();
    talked
}

async fn talk(model: &TextGenerator, arguments: &Arguments) -> Result<(), Failure> {
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(candle_actors::Error::from)?;
    if let Some(prompt) = &arguments.prompt {
        let prompt = match arguments.raw {
            true => Prompt::Raw(prompt.clone()),
            false => Prompt::Messages(vec![Message::user(prompt)]),
        };
        answer(model, arguments, prompt).await?;
        return Ok(());
    }
    let mut messages = Vec::new();
    loop {
        if std::io::stdin().is_terminal() {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let prompt = match arguments.raw {
            true => Prompt::Raw(line.to_owned()),
            false => {
                messages.push(Message::user(line));
                Prompt::Messages(messages.clone())
            }
        };
        let completion = answer(model, arguments, prompt).await?;
        messages.push(Message::assistant(completion.text));
    }
}

/// Prints an answer as it is made.
async fn answer(model: &TextGenerator, arguments: &Arguments, prompt: Prompt) -> Result<Completion, Failure> {
    let Arguments { temperature, seed, max_tokens, json, .. } = *arguments;
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    let request = GenerateText { prompt, sampling, max_tokens, stop: Vec::new() };
    let mut stream = model.stream(request).await?;
    let mut out = std::io::stdout();
    while let Some(text) = stream.next().await {
        match json {
            true => writeln!(out, "{}", serde_json::json!({ "text": text }))?,
            false => write!(out, "{text}")?,
        }
        out.flush()?;
    }
    let completion = stream.output().await.map_err(candle_actors::Error::from)?;
    match json {
        true => {
            let Completion { finish_reason, usage, .. } = &completion;
            writeln!(out, "{}", serde_json::json!({ "finish_reason": finish_reason, "usage": usage }))?;
        }
        false => writeln!(out)?,
    }
    Ok(completion)
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
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
