//! More workers of a model take scratch memory but no copy of the weights, also after each has run a batch.
//! This is the only test of its process, because it reads the memory of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::time::Instant;

use candle_actors::{
    BatchLimits, Engine, Event, GenerateText, GenerationLimits, PoolConfig, Sampling, Source, SourceSpec,
};
use common::fixtures::TEXT;
use common::large_llama::write_large_llama;
use common::minilm;

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Three copies more would be three times the weights. What the allocator keeps of freed scratch varies from
/// run to run, so the ratio itself is for the bench to show.
fn assert_shared(directory: &Path, one: usize, four: usize) {
    let copy = std::fs::metadata(directory.join("model.safetensors")).unwrap().len() as usize;
    println!("{}: weights {copy}, resident with one worker {one}, with four {four}", directory.display());
    assert!(four < one + copy, "{one} bytes with one worker, {four} with four: at least one further copy");
}

/// A worker whose stream is not read keeps its text and takes no other, so each text starts a worker.
async fn four_write(directory: &Path) {
    let pool = PoolConfig::default()
        .with_max_workers(4)
        .with_cold_start_workers(1)
        .with_stream_buffer(1)
        .with_batch(BatchLimits::default().with_requests(1));
    let limits = GenerationLimits::default().with_kv_cache_tokens(256).with_max_sequences(1);
    let builder = Engine::builder().pool_config(pool);
    let builder =
        builder.text_to_text("large", SourceSpec::from(Source::directory(directory)).with_generation(limits));
    let engine = builder.start().await.unwrap();
    let generator = engine.text_to_text("large").unwrap();
    let (mut streams, mut residents) = (Vec::new(), Vec::new());
    for seed in 0..4 {
        // Sampled, so that there is something to read of most tokens.
        let sampling = Sampling::default().with_temperature(1.0).with_seed(seed);
        let request = GenerateText::from(TEXT).with_sampling(sampling).with_max_tokens(64);
        let mut stream = generator.stream(request).await.unwrap();
        assert!(matches!(stream.next().await, Some(Ok(_))));
        streams.push(stream);
        residents.push(resident());
    }
    assert_eq!(engine.system().status().workers().count(), 4);
    assert_shared(directory, residents[0], residents[3]);
    for stream in streams {
        assert_eq!(stream.output().await.unwrap().usage.completion_tokens, 64);
    }
    assert!(engine.shutdown().await.is_clean());
}

/// Enough texts for each worker to have a batch.
async fn four_embed(directory: &Path) {
    let texts = vec!["The quick brown fox jumps over the lazy dog near the river bank."; 256];
    let (mut residents, mut ready) = (Vec::new(), Vec::new());
    for workers in [1, 4] {
        let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
        let source = Source::directory(directory);
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
    println!("ready: the only worker after {:?}; of four, each after {:?}", ready[0], &ready[1..]);
    assert_shared(directory, residents[0], residents[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_take_little_more_memory_than_one() {
    let large = tempfile::tempdir().unwrap();
    let parameters = write_large_llama(large.path(), 3);
    println!("a Llama of {:.0} million parameters", parameters / 1e6);
    four_write(large.path()).await;
    if let Some(minilm) = minilm() {
        four_embed(&minilm).await;
    }
}
