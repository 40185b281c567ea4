//! More workers of a model cost scratch, not another copy of the weights. The only test of its process, because it
//! reads the memory of the whole process.

mod common;

use std::time::Instant;

use candle_actors::{Engine, Source};
use common::minilm;
use model_actors::{Event, PoolConfig};

/// Bytes of this process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn four_workers_take_little_more_memory_than_one_and_the_later_ones_start_at_once() {
    let Some(directory) = minilm() else { return };
    let pool = PoolConfig { max_workers: 4, cold_start_workers: 1, ..PoolConfig::default() };
    let engine = Engine::builder().pool_config(pool).text_embedding("minilm", Source::directory(directory));
    let engine = engine.start().await.unwrap();
    let embedder = engine.text_embedding("minilm").unwrap();
    let mut events = engine.events();

    let began = Instant::now();
    embedder.model().preload().await.unwrap();
    let first = began.elapsed();
    let text = "The quick brown fox jumps over the lazy dog near the river bank.";
    let texts = || vec![text; 64];
    embedder.embed(text.repeat(40)).await.unwrap();
    let one = resident();

    // Enough at a time to keep four workers busy until all have started.
    let mut started = 0;
    while started < 4 {
        embedder.embed_batch([texts(), texts(), texts(), texts()].concat()).await.unwrap();
        while let Ok(event) = events.try_recv() {
            started += usize::from(matches!(event, Event::WorkerStarted { .. }));
        }
    }
    embedder.embed_batch([texts(), texts(), texts(), texts()].concat()).await.unwrap();
    let four = resident();
    println!("resident with one worker {one}, with four {four}: {:.3}", four as f64 / one as f64);
    println!("the first worker was ready after {first:?}");
    assert!(four as f64 <= 1.2 * one as f64, "{one} bytes with one worker, {four} with four");
}
