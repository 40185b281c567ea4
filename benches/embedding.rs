//! A real model through the pool with 64 callers beside a plain loop over the same model code that uses all
//! cores, at each fixed batch size, in one run; the same pool with weights of 8 bits beside that with 32, and with
//! one, two and four workers; and what a second worker costs in time, and four in memory.
//!
//! With `CANDLE_ACTORS_MODELS` set it runs all-MiniLM-L6-v2 over `english.txt` from beside that folder, else
//! the model of this repository over its own sentences.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_actors::{
    ComputeDevice, Engine, Event, LoadOptions, PoolConfig, Source, SourceSpec, StandaloneModel,
    TextEmbeddingModel,
};

const CALLERS: usize = 64;
const ROUNDS: usize = 5;
const WORKERS: [usize; 3] = [1, 2, 4];
const BATCH_SIZES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

fn input() -> (PathBuf, Vec<String>) {
    if let Some(models) = std::env::var_os("CANDLE_ACTORS_MODELS").map(PathBuf::from) {
        let lines = std::fs::read_to_string(models.join("../data/english.txt"))
            .expect("english.txt beside the models");
        return (models.join("all-MiniLM-L6-v2"), lines.lines().map(str::to_owned).collect());
    }
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models/english-embedding-small"));
    let json = std::fs::read_to_string(directory.join("paraphrases.json")).expect("the model's sentences");
    let sentences = json.split('"').filter(|part| part.contains(' ')).map(str::to_owned);
    (directory, sentences.cycle().take(800).collect())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn resident() -> usize {
    memory_stats::memory_stats().expect("this platform tells its resident memory").physical_mem
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn engine(directory: &PathBuf, workers: usize, eight_bit: bool) -> Engine {
    let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
    let model = SourceSpec::from(Source::directory(directory)).with_eight_bit(eight_bit);
    Engine::builder().threads(1).pool_config(pool).text_embedding("model", model).start().await.unwrap()
}

/// When each worker was ready, from the beginning of the load.
async fn load(engine: &Engine, workers: usize) -> Vec<Duration> {
    let mut events = engine.events();
    let began = Instant::now();
    engine.text_embedding("model").unwrap().model().preload().await.unwrap();
    let mut ready = Vec::new();
    while ready.len() < workers {
        if let Event::WorkerStarted { .. } = events.recv().await.unwrap() {
            ready.push(began.elapsed());
        }
    }
    ready
}

/// Texts a second with so many callers, each of whom sends its next text when it has its vector.
async fn through_the_pool(engine: &Engine, texts: &Arc<Vec<String>>) -> f64 {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (next, texts) = (next.clone(), texts.clone());
            let embedder = engine.text_embedding("model").unwrap();
            tokio::spawn(async move {
                while let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    embedder.embed(text.clone()).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    texts.len() as f64 / began.elapsed().as_secs_f64()
}

fn in_a_loop(model: &TextEmbeddingModel, texts: &[String], size: usize) -> f64 {
    let began = Instant::now();
    for batch in texts.chunks(size) {
        model.embed(batch).unwrap();
    }
    texts.len() as f64 / began.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let (directory, texts) = input();
    let texts = Arc::new(texts);
    println!("{} texts, {} cores, {}", texts.len(), cores(), directory.file_name().unwrap().display());

    memory(&directory, &texts).await;
    second_worker(&directory).await;
    by_workers(&directory, &texts).await;

    let pool = engine(&directory, cores(), false).await;
    let eight_bit_pool = engine(&directory, cores(), true).await;
    load(&pool, cores()).await;
    load(&eight_bit_pool, cores()).await;
    let options = LoadOptions::default().with_device(ComputeDevice::Cpu).with_threads(cores());
    let model = TextEmbeddingModel::load_with(Source::directory(&directory), options).unwrap();
    let mut rounds = vec![Vec::new(); BATCH_SIZES.len()];
    let [mut plain, mut eight_bit] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        plain.push(through_the_pool(&pool, &texts).await);
        eight_bit.push(through_the_pool(&eight_bit_pool, &texts).await);
        for (round, size) in rounds.iter_mut().zip(BATCH_SIZES) {
            round.push(tokio::task::block_in_place(|| in_a_loop(&model, &texts, size)));
        }
    }
    let loops: Vec<f64> = rounds.into_iter().map(median).collect();
    for (size, texts) in BATCH_SIZES.iter().zip(&loops) {
        println!("plain loop, batches of {size:<4} {texts:>8.0} texts/s");
    }
    let best = loops.into_iter().fold(0.0, f64::max);
    let [plain, eight_bit] = [plain, eight_bit].map(median);
    println!("the pool, {CALLERS} callers     {plain:>8.0} texts/s   x {:.2} of the best loop", plain / best);
    println!("the same in 8 bits       {eight_bit:>8.0} texts/s   x {:.2} of the pool", eight_bit / plain);
    assert!(pool.shutdown().await.is_clean());
    assert!(eight_bit_pool.shutdown().await.is_clean());
}

/// Texts a second by the number of workers, each with one thread, also where there are more than cores.
async fn by_workers(directory: &PathBuf, texts: &Arc<Vec<String>>) {
    let mut engines = Vec::new();
    for workers in WORKERS {
        let engine = engine(directory, workers, false).await;
        load(&engine, workers).await;
        engines.push(engine);
    }
    let mut rounds = vec![Vec::new(); WORKERS.len()];
    for _ in 0..ROUNDS {
        for (round, engine) in rounds.iter_mut().zip(&engines) {
            round.push(through_the_pool(engine, texts).await);
        }
    }
    let rates: Vec<f64> = rounds.into_iter().map(median).collect();
    for (workers, rate) in WORKERS.iter().zip(&rates) {
        println!("{workers} workers                {rate:>8.0} texts/s   x {:.2} of one", rate / rates[0]);
    }
    for engine in engines {
        assert!(engine.shutdown().await.is_clean());
    }
}

/// Resident memory with one worker and with four, each having run every text; one after the other in one
/// process.
async fn memory(directory: &PathBuf, texts: &Arc<Vec<String>>) {
    let mut sizes = Vec::new();
    for workers in [1, 4] {
        let engine = engine(directory, workers, false).await;
        load(&engine, workers).await;
        through_the_pool(&engine, texts).await;
        sizes.push(resident());
        assert!(engine.shutdown().await.is_clean());
    }
    let [one, four] = sizes[..] else { return };
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "resident: {:.0} MiB with one worker, {:.0} MiB with four   x {:.2}",
        mib(one),
        mib(four),
        four as f64 / one as f64
    );
}

async fn second_worker(directory: &PathBuf) {
    let mut shares = Vec::new();
    let mut first = Vec::new();
    for _ in 0..ROUNDS {
        let engine = engine(directory, 2, false).await;
        let ready = load(&engine, 2).await;
        first.push(ready[0].as_secs_f64() * 1000.0);
        shares.push((ready[1] - ready[0]).as_secs_f64() / ready[0].as_secs_f64());
        assert!(engine.shutdown().await.is_clean());
    }
    println!(
        "the first worker is ready after {:.1} ms, the second after {:.1} % of that more",
        median(first),
        median(shares) * 100.0
    );
}
