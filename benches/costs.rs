//! The cost of a constraint and of adapters beside a plain answer: of a random model of the shape of Llama 3.2 1B, in pairs
//! one after the other in one run, so that what else a machine does hits both.
//!
//! ```text
//! cargo bench --bench costs -- [constraint] [adapters] [--threads N] [--layers N] [--pairs N] [--tokens N]
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

#[path = "costs/model.rs"]
mod model;

use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(feature = "structured")]
use candle_actors::{Constraint, LoadOptions, StandaloneModel, TextGenerationModel};
use candle_actors::{Engine, GenerateText, PoolConfig, Sampling, Source, SourceSpec, TextGenerator};
use clap::Parser;
use futures_util::future::join_all;
use model::{RANK, ROWS, Shape};

/// Streams of a batch, each with an adapter of its own.
const STREAMS: usize = 4;

/// Measures what a constraint and adapters cost a token.
#[derive(Parser)]
struct Arguments {
    /// The parts to measure; all, unless named.
    parts: Vec<String>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Layers of the model.
    #[arg(long, default_value_t = 16)]
    layers: usize,
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 24)]
    tokens: usize,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let is_wanted = |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|one| one == part);
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape::one_billion(arguments.layers);
    let parameters = shape.write(folder.path());
    println!(
        "{:.0} M parameters in 16 bits, a vocabulary of {ROWS}, {} threads",
        parameters as f64 / 1e6,
        arguments.threads
    );
    if is_wanted("constraint") {
        constraint(&arguments, folder.path());
    }
    if is_wanted("adapters") {
        adapters(&arguments, folder.path(), shape).await;
    }
}

fn request(tokens: usize, seed: u64) -> GenerateText {
    let sampling = Sampling::default().with_temperature(1.0).with_seed(seed);
    GenerateText::from("a").with_max_tokens(tokens).with_min_tokens(tokens).with_sampling(sampling)
}

/// Median and quarters of some numbers.
fn spread(mut numbers: Vec<f64>) -> String {
    numbers.sort_by(f64::total_cmp);
    let at = |part: usize| numbers[(numbers.len() - 1) * part / 4];
    format!("{:.3} (quarters {:.3} and {:.3})", at(2), at(1), at(3))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[cfg(not(feature = "structured"))]
fn constraint(_: &Arguments, _: &Path) {
    println!("constraint: not without the feature `structured`");
}

/// Seconds a token of a plain answer and of one that keeps to a schema, in pairs.
#[cfg(feature = "structured")]
fn constraint(arguments: &Arguments, folder: &Path) {
    let thin = tempfile::tempdir().unwrap();
    Shape::thin().write(thin.path());
    let load = |folder: &Path| {
        let options = LoadOptions::default().with_threads(arguments.threads);
        TextGenerationModel::load_with(Source::directory(folder), options).unwrap()
    };
    let (large, thin) = (load(folder), load(thin.path()));
    for (name, rule) in constraints() {
        let measure = |model: &TextGenerationModel, tokens: usize| -> (Vec<f64>, Vec<f64>) {
            let pairs = |pair: usize| {
                let seconds = |is_held: bool| {
                    let request = request(tokens, pair as u64);
                    let request = if is_held { request.with_constraint(rule.clone()) } else { request };
                    let began = Instant::now();
                    let answer = model.generate(&[request]).unwrap().remove(0);
                    assert_eq!(answer.usage.completion_tokens, tokens, "no text ended early");
                    began.elapsed().as_secs_f64() / tokens as f64
                };
                // Each is the first of a pair as often as the other.
                let held_first = pair % 2 == 1;
                let (one, other) = (seconds(held_first), seconds(!held_first));
                if held_first { (other, one) } else { (one, other) }
            };
            // The first pair warms up.
            (0..=arguments.pairs).map(pairs).skip(1).unzip()
        };
        let (plain, held) = measure(&thin, 16 * arguments.tokens);
        let mask = median(plain.iter().zip(&held).map(|(plain, held)| held - plain).collect());
        let (plain, held) = measure(&large, arguments.tokens);
        let ratios = plain.iter().zip(&held).map(|(plain, held)| held / plain).collect();
        let step = median(plain);
        println!(
            "constraint, {name}: {:.3} ms a token by a thin model of the same vocabulary; a token of the large one \
             {:.1} ms, so {:.2} % of it; a constrained token to a plain one in pairs {}",
            mask * 1e3,
            step * 1e3,
            100.0 * mask / step,
            spread(ratios)
        );
    }
}

/// A schema that a text cannot come to the end of, any JSON, and an expression.
#[cfg(feature = "structured")]
fn constraints() -> [(&'static str, Constraint); 3] {
    let entry = serde_json::json!({
        "type": "object", "properties": {
            "name": {"type": "string", "minLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 5},
            "kind": {"enum": ["person", "place", "thing"]}, "at": {"type": "string", "format": "date-time"}
        }, "required": ["name", "age", "tags", "kind", "at"], "additionalProperties": false
    });
    let list = serde_json::json!({"type": "array", "items": entry, "minItems": 500});
    let any = serde_json::json!({"type": "array", "items": {}, "minItems": 500});
    [
        ("schema", Constraint::json_schema(&list)),
        ("any JSON", Constraint::json_schema(&any)),
        ("expression", Constraint::Regex("([a-z]{2,9} [0-9]{1,4}(, |; ))+".to_owned())),
    ]
}

/// Tokens a second of one stream and of a batch, without an adapter, with one, and with one for each.
async fn adapters(arguments: &Arguments, folder: &Path, shape: Shape) {
    let folders: Vec<_> = (0..STREAMS).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut spec = SourceSpec::from(Source::directory(folder));
    let mut parameters = 0;
    for (number, folder) in folders.iter().enumerate() {
        parameters = shape.write_adapter(folder.path());
        spec = spec.with_adapter(number.to_string(), Source::directory(folder.path()));
    }
    let pool = PoolConfig::default().with_max_workers(1).with_request_timeout(Duration::from_secs(3600));
    let builder = Engine::builder().pool_config(pool).threads(arguments.threads);
    let engine = builder.text_to_text("model", spec).start().await.unwrap();
    let model = engine.text_to_text("model").unwrap();
    println!("adapters of rank {RANK}, {:.1} M parameters each", parameters as f64 / 1e6);
    let none: fn(usize) -> Option<usize> = |_| None;
    for (name, streams, other) in [
        ("one stream with an adapter", 1, (|_| Some(0)) as fn(usize) -> Option<usize>),
        ("a batch with one adapter", STREAMS, |_| Some(0)),
        ("a batch with an adapter each", STREAMS, Some),
        ("a batch of which half has one each", STREAMS, |stream| (stream % 2 == 0).then_some(stream)),
    ] {
        let mut pairs = Vec::new();
        for pair in 0..=arguments.pairs {
            let mut rates = [0.0; 2];
            for turn in 0..2 {
                // Each is the first of a pair as often as the other.
                let which = (turn + pair) % 2;
                let adapter = if which == 0 { none } else { other };
                rates[which] = rate(&model, streams, arguments.tokens, adapter).await;
            }
            pairs.push(rates);
        }
        // The first pair warms up, and loads.
        let pairs = pairs.split_off(1);
        let plain = median(pairs.iter().map(|[plain, _]| *plain).collect());
        let ratios = pairs.iter().map(|[plain, other]| other / plain).collect();
        println!("{name} ({streams}): {plain:.2} tokens/s without, with it times {}", spread(ratios));
    }
    assert!(engine.shutdown().await.is_clean());
}

/// Tokens a second of so many streams, the reading of their short prompts included.
async fn rate(
    model: &TextGenerator,
    streams: usize,
    tokens: usize,
    adapter: impl Fn(usize) -> Option<usize>,
) -> f64 {
    let ask = |stream: usize| {
        let adapter = adapter(stream).map(|adapter| adapter.to_string());
        let request = request(tokens, stream as u64).with_adapter(adapter);
        async move { model.generate(request).await.unwrap().usage.completion_tokens }
    };
    let began = Instant::now();
    let written: usize = join_all((0..streams).map(ask)).await.iter().sum();
    assert_eq!(written, streams * tokens, "no text ended early");
    written as f64 / began.elapsed().as_secs_f64()
}
