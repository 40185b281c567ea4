//! Every family's tiny model, and all-MiniLM-L6-v2 where it is at hand, through the pool with 1, 8 and 64
//! callers beside a plain loop over the same model code; and what continuous batching gives on a model large
//! enough to be bound by its weights. Ratios in one run; `-- NAME` picks the families whose names contain it,
//! `-- batching` the second part, `-- library` models of candle-transformers of that size; with the feature `benchmarks`, `-- counterparts`
//! families of this crate beside the library's.
//!
//! The tiny models take tens of microseconds to milliseconds, so their ratios show what the tree costs a
//! request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a benchmark")]

#[path = "../tests/common/folders.rs"]
mod folders;
#[path = "../tests/common/fixtures.rs"]
mod fixtures;
#[path = "../tests/common/large_llama.rs"]
mod large_llama;
#[cfg(feature = "transformers")]
#[path = "../tests/common/large_library.rs"]
mod large_library;
#[cfg(feature = "transformers")]
#[path = "models/library.rs"]
mod library;
#[cfg(all(feature = "transformers", feature = "benchmarks"))]
#[path = "models/counterparts.rs"]
mod counterparts;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "transformers")]
use candle_actors::isolation::ProcessOptions;
use candle_actors::{Engine, GenerateText, LoadOptions, PoolConfig, Source};
#[cfg(feature = "transformers")]
use candle_actors::{EngineBuilder, SourceSpec};
#[cfg(feature = "transformers")]
use fixtures::Kind;
use fixtures::{Fixture, KINDS, TEXT, fixtures};
use large_llama::write_large_llama;

/// Shortest duration of a measurement.
const MEASURE: Duration = Duration::from_millis(400);
const CALLERS: [usize; 3] = [1, 8, 64];
const STREAMS: usize = 8;
const TOKENS: usize = 64;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() {
    // What candle-transformers computes of GGUF files runs in processes of this executable.
    candle_actors::isolation::run_child_if_asked();
    tokio::runtime::Runtime::new().unwrap().block_on(rows());
}

async fn rows() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));

    let mut models = fixtures();
    if let Some(folder) = std::env::var_os("CANDLE_ACTORS_MODELS") {
        models.push(Fixture { kind: KINDS[0], path: Path::new(&folder).join("all-MiniLM-L6-v2") });
    }
    // MobileCLIP's sizes are constants, so that its random model is no fixture.
    if let Some(folder) = std::env::var_os("CANDLE_ACTORS_OPEN_CLIP") {
        models.extend(
            KINDS
                .into_iter()
                .filter(|kind| kind.folder == "image_embedding")
                .map(|kind| Fixture { kind, path: folder.clone().into() }),
        );
    }
    println!("{} cores; requests a second; the pool as a ratio to the plain loop", cores());
    println!("{:<40} {:>10}  {:>8} {:>8} {:>8}", "", "plain loop", "1 caller", "8", "64");
    for model in models.iter().filter(|model| is_wanted(&model.name())) {
        let plain = best_plain_loop(model);
        print!("{:<40} {plain:>10.1} ", model.name());
        let engine = Arc::new(engine(model).await);
        for callers in CALLERS {
            print!(" {:>8.2}", through_the_pool(model, &engine, callers).await / plain);
        }
        println!();
    }
    #[cfg(feature = "transformers")]
    for model in processes().iter().filter(|model| is_wanted(&model.name())) {
        print!("{:<40} {:>10}  requests a second:", model.name(), "none");
        let engine = Arc::new(engine(model).await);
        for callers in CALLERS {
            print!(" {:.1}", through_the_pool(model, &engine, callers).await);
        }
        println!();
    }
    if is_wanted("batching") {
        continuous_batching().await;
    }
    #[cfg(feature = "transformers")]
    library::rows(is_wanted).await;
    #[cfg(all(feature = "transformers", feature = "benchmarks"))]
    counterparts::rows(is_wanted);
}

/// Models that run in processes of their own alone, so that no loop is beside them.
#[cfg(feature = "transformers")]
fn processes() -> Vec<Fixture> {
    let register = |builder: EngineBuilder, source| {
        let spec = SourceSpec::from(source).with_isolation(ProcessOptions::default());
        builder.text_to_text("model", spec)
    };
    let kind = KINDS.into_iter().find(|kind| kind.folder == "text_to_text").unwrap();
    let kind = Kind { folder: "transformers_gguf", register, ..kind };
    let path = |name| root().join("tests/fixtures").join(kind.folder).join(name);
    folders::families_of(kind.folder).into_iter().map(|name| Fixture { kind, path: path(name) }).collect()
}

/// Requests a second of one loop, with one thread or with as many as there are cores, whichever is faster.
fn best_plain_loop(model: &Fixture) -> f64 {
    let rate = |threads| {
        let options = LoadOptions::default().with_threads(threads);
        let [mut request, _] = (model.kind.clones)(model.source(), options);
        request();
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < MEASURE {
            request();
            count += 1;
        }
        f64::from(count) / began.elapsed().as_secs_f64()
    };
    rate(1).max(rate(cores()))
}

async fn engine(model: &Fixture) -> Engine {
    let max_workers = cores().clamp(1, 4);
    let pool = PoolConfig::default()
        .with_request_timeout(Duration::from_secs(600))
        .with_max_workers(max_workers)
        .with_cold_start_workers(max_workers.min(2));
    let builder = (model.kind.register)(Engine::builder().threads(1).pool_config(pool), model.source());
    let engine = builder.start().await.unwrap();
    (model.kind.preload)(&engine).await.unwrap();
    // As many at once as make the pool start all its workers.
    futures_util::future::join_all((0..16).map(|_| (model.kind.ask)(&engine))).await;
    engine
}

/// Requests a second with so many callers, each of whom asks again when it is answered.
async fn through_the_pool(model: &Fixture, engine: &Arc<Engine>, callers: usize) -> f64 {
    let (began, done) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (engine, done, ask) = (engine.clone(), done.clone(), model.kind.ask);
            tokio::spawn(async move {
                while began.elapsed() < MEASURE {
                    ask(&engine).await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

/// Tokens a second of one stream alone and of eight together, on one worker with one thread.
async fn continuous_batching() {
    let folder = tempfile::tempdir().unwrap();
    // About 100 million parameters.
    let parameters = write_large_llama(folder.path(), 14);
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
    let builder = Engine::builder().threads(1).pool_config(pool);
    let engine = builder.text_to_text("large", Source::directory(folder.path())).start().await.unwrap();
    let generator = engine.text_to_text("large").unwrap().timeout(Duration::from_secs(600));
    let request = || GenerateText::from(TEXT).with_max_tokens(TOKENS);
    generator.generate(request()).await.unwrap();
    let mut rates = Vec::new();
    for streams in [1, STREAMS] {
        let began = Instant::now();
        let texts = futures_util::future::join_all((0..streams).map(|_| generator.generate(request()))).await;
        let tokens: usize = texts.into_iter().map(|text| text.unwrap().usage.completion_tokens).sum();
        assert_eq!(tokens, streams * TOKENS, "no text ended early");
        rates.push(tokens as f64 / began.elapsed().as_secs_f64());
    }
    println!(
        "\ncontinuous batching, {:.0} M parameters in 32 bits, one worker with one thread",
        parameters / 1e6
    );
    println!("one stream               {:>8.1} tokens/s", rates[0]);
    println!("{STREAMS} streams together       {:>8.1} tokens/s   x {:.2}", rates[1], rates[1] / rates[0]);
    assert!(engine.shutdown().await.is_clean());
}
