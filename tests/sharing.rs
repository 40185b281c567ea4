//! More workers of a model cost scratch, not another copy of the weights. The only test of its process, because it
//! reads the memory of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

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
    let texts = vec!["The quick brown fox jumps over the lazy dog near the river bank."; 256];
    let (mut residents, mut ready) = (Vec::new(), Vec::new());
    for workers in [1, 4] {
        let pool = PoolConfig { max_workers: workers, cold_start_workers: workers, ..PoolConfig::default() };
        let source = Source::directory(&directory);
        let engine =
            Engine::builder().pool_config(pool).text_embedding("minilm", source).start().await.unwrap();
        let embedder = engine.text_embedding("minilm").unwrap();
        let mut events = engine.events();
        let began = Instant::now();
        embedder.model().preload().await.unwrap();
        for _ in 0..workers {
            while !matches!(events.recv().await.unwrap(), Event::WorkerStarted { .. }) {}
            ready.push(began.elapsed());
        }
        for _ in 0..workers {
            embedder.embed_batch(texts.clone()).await.unwrap();
        }
        residents.push(resident());
        assert!(engine.shutdown().await.is_clean());
    }
    let (one, four) = (residents[0], residents[1]);
    println!("resident with one worker {one}, with four {four}: {:.3}", four as f64 / one as f64);
    println!("ready: the only worker after {:?}; of four, each after {:?}", ready[0], &ready[1..]);
    // Three copies more would be 270 MB. What the allocator keeps of freed scratch varies from run to run, so the ratio
    // itself is for the bench to show.
    let copy = std::fs::metadata(directory.join("model.safetensors")).unwrap().len() as usize;
    assert!(four < one + copy, "{one} bytes with one worker, {four} with four: at least one further copy");
}
