//! The second worker of any family takes no copy of the weights, at its start or later. This is the only test
//! of its process, because it counts every byte of the process's heap. Fixtures are too small for resident
//! memory, which counts pages and the allocator's caches; `sharing.rs` reads that for a large model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::System;
use std::path::Path;

use candle_actors::{Engine, Event, LoadOptions, PoolConfig};
use candle_core::{DType, Device, Tensor};
use common::fixtures::{Fixture, fixtures};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn live_bytes() -> isize {
    let stats = HEAP.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Bytes of the weight files, which is at most what the weights take in memory.
fn weight_bytes(folder: &Path) -> isize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: &Path| match path.extension().and_then(|extension| extension.to_str()) {
        _ if path.is_dir() => weight_bytes(path),
        Some("safetensors" | "gguf" | "bin")
            if !path.file_name().unwrap().to_string_lossy().starts_with("expected") =>
        {
            std::fs::metadata(path).unwrap().len() as isize
        }
        _ => 0,
    };
    entries.map(|path| of(&path)).sum()
}

/// The heap with so many workers of a model, each of them ready. No request is made: at the first product of
/// a thread the library of matrix products takes 2 MiB for it, many times what a fixture's weights are.
async fn with_workers(fixture: &Fixture, workers: usize) -> isize {
    let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
    let builder = (fixture.kind.register)(Engine::builder().pool_config(pool), fixture.source());
    let engine = builder.start().await.unwrap();
    let mut events = engine.events();
    (fixture.kind.preload)(&engine).await.unwrap_or_else(|error| panic!("{}: {error}", fixture.name()));
    let mut ready = 0;
    while ready < workers {
        ready += usize::from(matches!(events.recv().await.unwrap(), Event::WorkerStarted { .. }));
    }
    let live = live_bytes();
    assert!(engine.shutdown().await.is_clean());
    live
}

/// Memory that the library of matrix products keeps for each thread that has multiplied: as much as the processor's
/// second cache, which is several times what a fixture's weights are.
fn kept_of_a_thread() -> isize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {});
    let before = live_bytes();
    pool.install(|| {
        let matrix = Tensor::ones((64, 64), DType::F32, &Device::Cpu).unwrap();
        matrix.matmul(&matrix).unwrap();
    });
    let kept = live_bytes() - before;
    assert!(kept > 100_000, "{kept} bytes: it keeps nothing any more, and the test can do without");
    kept
}

/// Memory that a second model over the same weights keeps after its first request, as a worker would. Most
/// run on this thread, for which the matrix library has allocated its buffers by then.
fn kept_of_a_request(fixture: &Fixture) -> isize {
    let [mut first, mut second] = (fixture.kind.clones)(fixture.source(), LoadOptions::default());
    first();
    let before = live_bytes();
    second();
    live_bytes() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_of_any_family_has_no_weights_of_its_own() {
    let mut copies = Vec::new();
    // Before there are engines, whose threads may still be at their end. Those that paint compute on threads of their own,
    // and take long.
    let of_a_thread = kept_of_a_thread();
    println!("a thread that has multiplied keeps {of_a_thread} bytes");
    let paints = |fixture: &Fixture| fixture.kind.folder == "text_to_image";
    for fixture in fixtures().into_iter().filter(|fixture| !paints(fixture)) {
        let (weights, kept) = (weight_bytes(&fixture.path), kept_of_a_request(&fixture));
        println!(
            "{}: weights {weights}, after a request a second model has {kept} bytes more",
            fixture.name()
        );
        // Those of candle-transformers compute on threads of their own, and multiply on some.
        let on_own_thread = fixture.kind.folder == "transformers";
        let is_of_a_thread = on_own_thread && (kept - of_a_thread).abs() <= weights / 2;
        if kept > weights / 2 && !is_of_a_thread {
            copies.push(fixture.name());
        }
    }
    for fixture in fixtures() {
        // What the first use of anything keeps for good is not counted.
        with_workers(&fixture, 1).await;
        let weights = weight_bytes(&fixture.path);
        // Now and then a thread of the engine before is still at its end, so the least of three counts.
        let mut more = isize::MAX;
        for _ in 0..3 {
            let (one, two) = (with_workers(&fixture, 1).await, with_workers(&fixture, 2).await);
            more = more.min((two - one).abs());
        }
        println!("{}: weights {weights}, a second worker {more} bytes more", fixture.name());
        if more > weights / 2 {
            copies.push(fixture.name());
        }
    }
    assert!(copies.is_empty(), "a second worker costs as much as weights: {copies:?}");
}
