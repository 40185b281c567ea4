//! Chats with a local model: one answer to a prompt, or a conversation line by line. The text streams as it
//! is generated, for people or as JSON lines.
//!
//! ```text
//! cargo run --release --example chat -- --prompt "Tell me a story about a red circle."
//! cargo run --release --example chat -- --model HuggingFaceTB/SmolLM2-135M-Instruct --prompt "What is rain?"
//! ```

mod common;

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use candle_actors::{
    Completion, Engine, Error, GenerateText, Message, Prompt, Sampling, Source, TextGenerator,
};
use clap::Parser;
use common::{Failure, show_progress};

/// Small model for questions about a scene in words, and for short stories, one in a conversation.
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes-chat");
/// Prompt without arguments.
const EXAMPLE: &str = "There is a red circle left of a blue square. What colour is the square?";

/// Talks with a local model.
#[derive(Parser)]
struct Arguments {
    /// A model directory, a GGUF file, or a Hugging Face repository with an optional @revision.
    /// Without it the small model of this repository answers each line for itself.
    #[arg(long, value_name = "DIR_OR_REPO")]
    model: Option<String>,
    /// Answer this and end; without it, each line of standard input is a turn of a conversation, and where
    /// there is none an example is answered.
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
    /// Processor threads; all cores, unless set.
    #[arg(long, value_name = "N", default_value_t = cores())]
    threads: usize,
    /// Fail an answer that has not ended after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print one JSON object a line: pieces of text, then the finish reason and the usage.
    #[arg(long)]
    json: bool,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[tokio::main]
async fn main() -> ExitCode {
    common::main(run).await
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let source = Source::parse(arguments.model.as_deref().unwrap_or(SMALL)).follow_links();
    let engine = Engine::builder().threads(arguments.threads).text_to_text("model", source).start().await?;
    let progress = tokio::spawn(show_progress(engine.events()));
    let model = engine.text_to_text("model")?;
    let model = match arguments.timeout {
        Some(seconds) => model.total_timeout(Duration::from_secs(seconds)),
        None => model,
    };
    let talked = talk(&model, &arguments).await;
    engine.shutdown().await;
    progress.abort();
    talked
}

async fn talk(model: &TextGenerator, arguments: &Arguments) -> Result<(), Failure> {
    // A request has limited time; a download may take longer.
    model.model().preload().await.map_err(Error::from)?;
    if let Some(prompt) = &arguments.prompt {
        return answer_one(model, arguments, prompt).await;
    }
    let (mut messages, mut turns) = (Vec::new(), 0);
    if arguments.model.is_none() && std::io::stdin().is_terminal() {
        eprintln!("The small model knows scenes of coloured shapes, and stories about them. Try: {EXAMPLE}");
    }
    loop {
        if std::io::stdin().is_terminal() {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return match turns {
                0 => answer_one(model, arguments, EXAMPLE).await,
                _ => Ok(()),
            };
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        turns += 1;
        if arguments.raw {
            answer(model, arguments, Prompt::Raw(line.to_owned())).await?;
            continue;
        }
        if arguments.model.is_none() {
            messages.clear();
        }
        messages.push(Message::user(line));
        let completion = loop {
            match answer(model, arguments, Prompt::Messages(messages.clone())).await {
                // The oldest question and its answer make room in the model's context.
                Err(error) if is_too_long(&*error) && messages.len() > 2 => drop(messages.drain(..2)),
                answered => break answered?,
            }
        };
        messages.push(Message::assistant(completion.text));
    }
}

fn is_too_long(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(Error::PromptTooLong { .. }))
}

async fn answer_one(model: &TextGenerator, arguments: &Arguments, prompt: &str) -> Result<(), Failure> {
    let prompt = match arguments.raw {
        true => Prompt::Raw(prompt.to_owned()),
        false => Prompt::Messages(vec![Message::user(prompt)]),
    };
    answer(model, arguments, prompt).await.map(drop)
}

/// Prints an answer as it is made.
async fn answer(model: &TextGenerator, arguments: &Arguments, prompt: Prompt) -> Result<Completion, Failure> {
    let Arguments { temperature, seed, max_tokens, json, .. } = *arguments;
    let sampling = Sampling::default().with_temperature(temperature).with_seed(seed);
    let request =
        GenerateText::default().with_prompt(prompt).with_sampling(sampling).with_max_tokens(max_tokens);
    let mut stream = model.stream(request).await?;
    let mut out = std::io::stdout();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(Error::from)?;
        match json {
            true => writeln!(out, "{}", serde_json::json!({ "text": chunk.text }))?,
            false => write!(out, "{chunk}")?,
        }
        out.flush()?;
    }
    let completion = stream.output().await.map_err(Error::from)?;
    match json {
        true => {
            let Completion { finish_reason, usage, .. } = &completion;
            writeln!(out, "{}", serde_json::json!({ "finish_reason": finish_reason, "usage": usage }))?;
        }
        false => writeln!(out)?,
    }
    Ok(completion)
}
