//! Time to the first token of a conversation's turns with a prefix cache and without, and of conversations that begin with
//! one system prompt. Answers are compared: they are the same to the token.
//!
//! ```text
//! cargo bench --bench prefix -- MODEL [--threads N] [--turns N] [--turn TOKENS] [--conversations N]
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::time::{Duration, Instant};

use candle_actors::{
    Bytes, Engine, GenerateText, GenerationLimits, LoadOptions, PoolConfig, Prompt, Source, SourceSpec,
    StandaloneModel, TextGenerationModel, TextGenerator, Usage,
};
use clap::Parser;
use futures_util::future::join_all;

const WORDS: &str =
    "once upon a time there was a small village by the sea where people talked of storms and fish";

/// Measures a model that writes texts.
#[derive(Parser)]
struct Arguments {
    /// A GGUF file, or a folder with a model.
    model: String,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, default_value_t = 10)]
    turns: usize,
    /// Tokens of a turn, half of them the answer's.
    #[arg(long, default_value_t = 200)]
    turn: usize,
    #[arg(long, default_value_t = 64)]
    conversations: usize,
    /// Tokens of their system prompt.
    #[arg(long, default_value_t = 512)]
    system: usize,
    /// Repetitions of the conversation, of which the median counts.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// An answer, and the time to its first token.
struct Turn {
    first: Duration,
    text: String,
    usage: Usage,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let tokens =
        TextGenerationModel::load_with(Source::parse(&arguments.model), LoadOptions::default()).unwrap();
    let text = |count: usize, seed: usize| text_of(&tokens, count, seed);
    let asked: Vec<String> = (0..arguments.turns).map(|turn| text(arguments.turn / 2, turn)).collect();
    let most = arguments.turns * arguments.turn * 2;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..arguments.times {
        for (tokens, figures) in [(0, &mut without), (most, &mut with)] {
            let (engine, model) = start(&arguments, tokens).await;
            figures.push(conversation(&model, &asked, arguments.turn / 2).await);
            engine.shutdown().await;
        }
    }
    println!(
        "turn: prompt tokens, found in the cache; seconds to the first token without and with it, ratio"
    );
    for turn in 0..arguments.turns {
        let median = |figures: &[Vec<Turn>]| {
            let mut times: Vec<f64> = figures.iter().map(|turns| turns[turn].first.as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        assert!(with.iter().chain(&without).all(|turns| turns[turn].text == without[0][turn].text));
        let (Usage { prompt_tokens, cached_tokens, .. }, [off, on]) =
            (with[0][turn].usage, [&without, &with].map(|figures| median(figures)));
        let ratio = on / off;
        println!("{}: {prompt_tokens}, {cached_tokens}; {off:.3} {on:.3}, {ratio:.3}", turn + 1);
    }
    let system = text(arguments.system, 3);
    let prompts: Vec<String> =
        (0..arguments.conversations).map(|one| format!("{system} {}", text(24, one))).collect();
    let mut answers: Vec<Vec<String>> = Vec::new();
    println!("{} conversations over one system prompt at once:", prompts.len());
    for tokens in [0, 8192] {
        let (engine, model) = start(&arguments, tokens).await;
        model.model().preload().await.unwrap();
        let began = Instant::now();
        let all = join_all(prompts.iter().map(|prompt| ask(&model, prompt, 8))).await;
        let seconds = began.elapsed().as_secs_f64();
        let memory = engine.system().status().memory[0].clone();
        let [read, found] = [|usage: Usage| usage.prompt_tokens, |usage: Usage| usage.cached_tokens]
            .map(|count| all.iter().map(|turn| count(turn.usage)).sum::<usize>());
        println!(
            "cache of {tokens}: {seconds:.2} s, {read} tokens of prompts, {found} found; {} charged, {} of it cached, limit {}",
            memory.charged, memory.cached, memory.limit
        );
        assert!(memory.charged <= memory.limit && (tokens > 0) == (memory.cached > Bytes(0)));
        answers.push(all.into_iter().map(|turn| turn.text).collect());
        engine.shutdown().await;
    }
    assert_eq!(answers[0], answers[1]);
}

async fn start(arguments: &Arguments, tokens: usize) -> (Engine, TextGenerator) {
    let limits = GenerationLimits::default().with_prefix_cache_tokens(tokens);
    let source = SourceSpec::from(Source::parse(&arguments.model)).with_generation(limits);
    let pool = PoolConfig::default().with_max_workers(1).with_request_timeout(Duration::from_secs(3600));
    let builder = Engine::builder().pool_config(pool).threads(arguments.threads);
    let engine = builder.text_to_text("model", source).start().await.unwrap();
    let model = engine.text_to_text("model").unwrap();
    (engine, model)
}

/// Each turn's prompt has all that was said before it.
async fn conversation(model: &TextGenerator, asked: &[String], answer: usize) -> Vec<Turn> {
    model.model().preload().await.unwrap();
    let (mut said, mut turns) = (String::new(), Vec::new());
    for words in asked {
        said = format!("{said} {words}");
        let turn = ask(model, &said, answer).await;
        said += &turn.text;
        turns.push(turn);
    }
    turns
}

async fn ask(model: &TextGenerator, prompt: &str, answer: usize) -> Turn {
    let request = GenerateText::from(prompt).with_max_tokens(answer).with_min_tokens(answer);
    let began = Instant::now();
    let mut stream = model.stream(request).await.unwrap();
    let first = stream.next().await.transpose().unwrap();
    let elapsed = began.elapsed();
    drop(first);
    let output = stream.output().await.unwrap();
    Turn { first: elapsed, text: output.text, usage: output.usage }
}

/// A text of about so many tokens.
fn text_of(model: &TextGenerationModel, tokens: usize, seed: usize) -> String {
    let mut text = format!("{seed}:");
    for word in WORDS.split(' ').cycle().skip(seed * 5) {
        if model.tokenize(&Prompt::Raw(text.clone())).unwrap().len() >= tokens {
            break;
        }
        text = format!("{text} {word}");
    }
    text
}
