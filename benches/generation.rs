//! A model that writes: its load beside a plain read of its weights, and tokens a second of one stream's answer, a long
//! prompt, eight streams together. The model's file is named, so that the same one can be given to another program:
//! `benches/peers/llama_cpp.py` does that.
//!
//! ```text
//! cargo bench --bench generation -- FILE [--threads N] [--prompt TOKENS] [--exact]
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_actors::{GenerateText, LoadOptions, Prompt, Source, StandaloneModel, TextGenerationModel};
use clap::Parser;

/// Tokens of each answer that is measured.
const TOKENS: usize = 96;
const STREAMS: usize = 8;
const OPENING: &str = "Once upon a time, in a small village by the sea,";

/// Measures a model that writes texts.
#[derive(Parser)]
struct Arguments {
    /// A GGUF file, or a folder with a model.
    model: String,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Tokens of the long prompt.
    #[arg(long, default_value_t = 501)]
    prompt: usize,
    /// Repetitions, of which the best counts.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// Multiplies quantised weights exactly.
    #[arg(long)]
    exact: bool,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    // The tokenizer's part of the load is told there, by its own thread.
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr);
    tracing::subscriber::set_global_default(lines.finish()).unwrap();
    let options = LoadOptions::default().with_threads(arguments.threads).with_exact_products(arguments.exact);
    let (memory, load) = (peak_memory(), || {
        let began = Instant::now();
        let model = TextGenerationModel::load_with(Source::parse(&arguments.model), options.clone()).unwrap();
        (began.elapsed().as_secs_f64(), model)
    });
    let (_, model) = load();
    let peak = peak_memory().saturating_sub(memory);
    // The first one has brought the file into the page cache.
    let (seconds, _) = load();
    let (reading, bytes) = read(arguments.model.as_ref());
    println!(
        "load: {seconds:.2} s, a plain read of its weights {reading:.2} s; at most {:.2} of their {} MiB in memory",
        peak as f64 / bytes as f64,
        bytes >> 20
    );
    let best = |requests: &[GenerateText]| {
        let times = (0..arguments.times).map(|_| Run::of(&model, requests));
        times.reduce(Run::better).unwrap()
    };
    let together = |text: &str, tokens| best(&vec![request(text, tokens); STREAMS]);

    let (first, all) = (best(&[request(OPENING, 1)]), best(&[request(OPENING, TOKENS)]));
    all.after(first).print("decode", all.tokens - 1);
    let long = long_prompt(&model, arguments.prompt);
    let count = model.tokenize(&Prompt::Raw(long.clone())).unwrap().len();
    best(&[request(&long, 1)]).print("prompt", count);
    let (first, all) = (together(OPENING, 1), together(OPENING, TOKENS));
    all.after(first).print("streams", all.tokens - STREAMS);
    let all = together(&long, TOKENS);
    all.print("streams with prompts", all.tokens);
}

/// Seconds that a plain read of a model's weights into memory takes, and their bytes.
fn read(model: &Path) -> (f64, usize) {
    let is_weights =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "gguf" || end == "safetensors");
    let files: Vec<PathBuf> = match std::fs::read_dir(model) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).filter(is_weights).collect(),
        Err(_) => vec![model.to_owned()],
    };
    let began = Instant::now();
    let read: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    (began.elapsed().as_secs_f64(), read.iter().map(Vec::len).sum())
}

/// Bytes that this process has had in memory at most, where the system tells.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok()).unwrap_or(0) << 10
}

fn request(text: &str, tokens: usize) -> GenerateText {
    GenerateText::from(text).with_max_tokens(tokens)
}

/// A text of about so many tokens.
fn long_prompt(model: &TextGenerationModel, tokens: usize) -> String {
    let mut text = OPENING.to_owned();
    let count = |text: &str| model.tokenize(&Prompt::Raw(text.to_owned())).unwrap().len();
    for word in OPENING.split(' ').cycle() {
        if count(&text) >= tokens {
            break;
        }
        text = format!("{text} {word}");
    }
    text
}

/// Time that answers took.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    /// Of all threads together.
    processor: f64,
    /// That were written.
    tokens: usize,
}

impl Run {
    fn of(model: &TextGenerationModel, requests: &[GenerateText]) -> Self {
        let (began, before) = (Instant::now(), processor_seconds());
        let answers = model.generate(requests).unwrap();
        let tokens = answers.iter().map(|answer| answer.usage.completion_tokens).sum();
        Self { seconds: began.elapsed().as_secs_f64(), processor: processor_seconds() - before, tokens }
    }

    fn better(self, other: Self) -> Self {
        let (seconds, processor) = (self.seconds.min(other.seconds), self.processor.min(other.processor));
        Self { seconds, processor, ..self }
    }

    /// Returns the rest, without a part of it.
    fn after(self, part: Self) -> Self {
        let (seconds, processor) = (self.seconds - part.seconds, self.processor - part.processor);
        Self { seconds, processor, ..self }
    }

    fn print(self, figure: &str, tokens: usize) {
        let [clock, processor] = [self.seconds, self.processor].map(|seconds| tokens as f64 / seconds);
        println!("{figure}: {clock:.1} tokens/s, {processor:.1} by processor time");
    }
}

/// Seconds that the threads of this process had of a processor, where the system tells.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}
