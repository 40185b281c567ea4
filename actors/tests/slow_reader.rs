//! A reader that stops reading loses its stream, not the worker; one that is merely slow loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, ScriptedLoader, StreamedScript, TestSystem};
use model_actors::{
    Batch, CallOptions, EmitError, Error, Failure, Footprint, LoadContext, Loader, Model, ModelHandle,
    ModelSpec, RequestId, Weights,
};

const STALL: Duration = Duration::from_millis(120);
const BUFFER: usize = 3;

async fn with_small_buffer() -> TestSystem {
    let (system, pool) = single();
    let stall = pool.stall.with_run(STALL);
    TestSystem::start_with(system, pool.with_stall(stall).with_stream_buffer(BUFFER)).await
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
        chunks.extend(chunk);
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
        assert_eq!(slow.next().await.transpose().unwrap(), Some(expected));
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

/// Streams to all of its readers, and waits for none of them alone.
#[derive(Clone)]
struct Patient;

impl Loader<StreamedScript> for Patient {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<StreamedScript>>, Failure> {
        Ok(Arc::new(Self))
    }
}

impl Weights<StreamedScript> for Patient {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<StreamedScript>>, Failure> {
        Ok(Box::new(Self))
    }
}

impl Model<StreamedScript> for Patient {
    fn run(&mut self, batch: &mut Batch<StreamedScript>) -> Result<(), Failure> {
        let mut sent: HashMap<RequestId, u64> = HashMap::new();
        while !batch.items().is_empty() {
            let mut moved = false;
            for item in batch.items().iter().filter(|item| !item.should_stop()) {
                let Act::Stream(chunks) = item.request().act else { panic!("only streams") };
                let sent = sent.entry(item.id()).or_default();
                if *sent == chunks {
                    item.finish(chunks);
                } else {
                    match item.try_emit(*sent) {
                        Ok(()) => *sent += 1,
                        Err(EmitError::Full(back)) => {
                            assert_eq!(back, *sent, "the chunk comes back whole");
                            continue;
                        }
                        Err(EmitError::Stopped) => {}
                    }
                }
                moved = true;
            }
            if !moved {
                batch.pause();
            }
            batch.join();
        }
        Ok(())
    }
}

async fn with_patient_model(stall: Duration) -> (TestSystem, ModelHandle<StreamedScript>) {
    let (system, pool) = single();
    let stall = pool.stall.with_run(stall);
    let pool = pool.with_stall(stall).with_stream_buffer(BUFFER);
    let test = TestSystem::start_with(system, pool).await;
    let model = test.streams().register(ModelSpec::new("patient", Patient).continuous()).unwrap();
    (test, model)
}

/// The stall limit is far away: the others do not wait for it.
#[tokio::test]
async fn a_model_that_need_not_wait_serves_the_others_past_a_stalled_reader() {
    let (test, model) = with_patient_model(Duration::from_secs(60)).await;
    let mut unread = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    assert_eq!(unread.next().await.transpose().unwrap(), Some(0), "it runs, and its reader stops here");
    for _ in 0..3 {
        let read = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
        assert_eq!(read.output().await.unwrap(), 100);
    }
    for expected in 1..100 {
        assert_eq!(unread.next().await.transpose().unwrap(), Some(expected), "and it lost nothing");
    }
    assert_eq!(unread.output().await.unwrap(), 100);
    test.finish().await;
}

#[tokio::test]
async fn a_reader_that_stalls_loses_its_stream_also_where_nobody_waits_for_it() {
    let (test, model) = with_patient_model(STALL).await;
    let unread = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    let read = model.stream(Act::Stream(100).into(), CallOptions::default()).await.unwrap();
    assert_eq!(read.output().await.unwrap(), 100);
    test.until_model("patient", "its worker is idle", |model| idle(model) == 1).await;
    assert!(matches!(unread.output().await, Err(Error::SlowReader { stalled: STALL, .. })));
    test.finish().await;
}
