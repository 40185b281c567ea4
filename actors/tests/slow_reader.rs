//! A reader that stops reading loses its stream, not the worker; one that is merely slow loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, TestSystem};
use model_actors::{CallOptions, Error, PoolConfig, StallLimits};

const STALL: Duration = Duration::from_millis(120);
const BUFFER: usize = 3;

async fn with_small_buffer() -> TestSystem {
    let (system, pool) = single();
    let stall = StallLimits { run: STALL, ..pool.stall };
    TestSystem::start_with(system, PoolConfig { stall, stream_buffer: BUFFER, ..pool }).await
}

#[tokio::test]
async fn a_reader_that_stalls_loses_its_stream_and_the_next_request_is_served() {
    let mut test = with_small_buffer().await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.stream_model("model", loader);
    let mut unread = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    let next = model.call(Act::Stream(5).into(), CallOptions::default()).await;
    assert_eq!(next.unwrap(), 5, "behind it, on the same worker");

    let mut chunks = Vec::new();
    while let Some(chunk) = unread.next().await {
        chunks.push(chunk);
    }
    assert_eq!(chunks, [0, 1, 2], "what the buffer held is not lost");
    let error = unread.output().await.unwrap_err();
    assert!(matches!(error, Error::SlowReader { stalled: STALL, .. }), "{error}");
    let status = test.until_model("model", "it is idle", |model| idle(model) == 1).await;
    assert_eq!(
        (status.failures, count(&record.builds)),
        (0, 1),
        "the worker is the same, and was never stuck"
    );
    let slots = test.streams().slots();
    assert_eq!(slots.0, slots.1);
    test.finish().await;
}

#[tokio::test]
async fn a_slow_reader_that_goes_on_reading_gets_everything() {
    let mut test = with_small_buffer().await;
    let model = test.stream_model("model", ScriptedLoader::default());
    let mut slow = model.stream(Act::Stream(20).into(), CallOptions::default()).await.unwrap();
    for expected in 0..20 {
        // Together more than the stall limit, each far less.
        tokio::time::sleep(STALL / 10).await;
        assert_eq!(slow.next().await, Some(expected));
    }
    assert_eq!(slow.output().await.unwrap(), 20);
    test.finish().await;
}

/// The others of a batch wait with the reader, but lose nothing.
#[tokio::test]
async fn a_stalled_reader_costs_the_others_of_its_batch_nothing_but_time() {
    let mut test = with_small_buffer().await;
    let model = test.stream_model("model", ScriptedLoader::default());
    let gate = model_actors::testing::Gate::default();
    let first = model.stream(Act::Work(gate.latch()).into(), CallOptions::default()).await.unwrap();
    until_true(|| gate.was_reached()).await;
    let unread = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    let read = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    gate.open();
    assert_eq!(first.output().await.unwrap(), 0);
    assert_eq!(read.output().await.unwrap(), 100);
    assert!(matches!(unread.output().await, Err(Error::SlowReader { .. })));
    test.finish().await;
}
