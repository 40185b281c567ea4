//! A stream is its chunks in order and then its output; it ends with its reader, and a crash in the middle is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use common::*;
use futures_core::Stream;
use model_actors::testing::{
    Act, Gate, Latch, Record, ScriptedLoader, ScriptedRequest, StreamedScript, TestSystem,
};
use model_actors::{
    Batch, CallOptions, Error, Failure, Footprint, LoadContext, Loader, Model, ModelHandle, ModelSpec,
    ReplyStream, RequestId, RequestPhase, Weights,
};

async fn stream(model: &ModelHandle<StreamedScript>, act: Act) -> ReplyStream<StreamedScript> {
    model.stream(act.into(), CallOptions::default()).await.unwrap()
}

async fn read(stream: &mut ReplyStream<StreamedScript>) -> Vec<u64> {
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    chunks
}

#[tokio::test]
async fn chunks_come_in_order_and_then_the_output() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    // More than the buffer holds.
    let mut answer = stream(&model, Act::Stream(1000)).await;
    assert_eq!(read(&mut answer).await, (0..1000).collect::<Vec<u64>>());
    assert_eq!(answer.output().await.unwrap(), 1000);
    assert_eq!(
        stream(&model, Act::Stream(1000)).await.output().await.unwrap(),
        1000,
        "chunks may be left out"
    );
    test.finish().await;
}

#[tokio::test]
async fn it_is_a_stream_of_results_that_ends_with_the_error() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    let mut answer = stream(&model, Act::StreamThenPanic(2)).await;
    let mut items = Vec::new();
    while let Some(item) = std::future::poll_fn(|context| Pin::new(&mut answer).poll_next(context)).await {
        items.push(item);
    }
    assert_eq!(items.len(), 3);
    assert_eq!((items[0].as_ref().unwrap(), items[1].as_ref().unwrap()), (&0, &1));
    assert!(matches!(items[2], Err(Error::WorkerCrashed { .. })), "{:?}", items[2]);
    test.finish().await;
}

#[tokio::test]
async fn a_crash_after_the_first_chunk_is_told_and_not_run_again() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.stream_model("model", loader);
    let mut answer = stream(&model, Act::StreamThenPanic(2)).await;
    for expected in [0, 1] {
        assert_eq!(answer.next().await.unwrap().unwrap(), expected);
    }
    let error = answer.next().await.unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::WorkerCrashed { cause, .. } if cause.message().contains("panic")),
        "{error}"
    );
    assert!(answer.next().await.is_none(), "the error is told once");
    assert_eq!(answer.output().await.unwrap_err(), error, "and is the stream's end");
    assert_eq!(stream(&model, Act::Stream(1)).await.output().await.unwrap(), 1);
    assert_eq!(count(&record.runs), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_caller_may_want_the_output_alone() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    assert_eq!(model.call(Act::Stream(1000).into(), CallOptions::default()).await.unwrap(), 1000);
    test.finish().await;
}

/// Nothing was sent out to it, so it is run again like any other request.
#[tokio::test]
async fn a_caller_of_the_output_alone_does_not_notice_a_crash() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.stream_model("model", loader);
    let crashes_once = Act::StreamThenPanicTimes(2, Arc::new(AtomicUsize::new(1)));
    assert_eq!(model.call(crashes_once.into(), CallOptions::default()).await.unwrap(), 2);
    assert_eq!(count(&record.runs), 2);
    test.finish().await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_the_run_within_a_step() {
    let mut test = start(single()).await;
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let model = test.stream_model("model", loader);
    let mut answer = stream(&model, Act::Steps(u64::MAX)).await;
    for expected in 0..100 {
        assert_eq!(answer.next().await.transpose().unwrap(), Some(expected));
    }
    drop(answer);
    let steps = count(&record.steps);
    assert_eq!(
        model.call(Act::Stream(2).into(), CallOptions::default()).await.unwrap(),
        2,
        "the worker is free"
    );
    let after = count(&record.steps) - steps;
    assert!(after <= 1, "the step that had begun, and no more; not {after}");
    let slots = test.streams().slots();
    assert_eq!(slots.0, slots.1);
    test.finish().await;
}

#[tokio::test]
async fn the_deadline_is_for_the_first_output() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    model.preload().await.unwrap();
    let timeout = millis(100);
    let brief = CallOptions::default().with_timeout(timeout);
    let gate = Gate::default();
    let mut late = model.stream(Act::StreamThenWork(1, gate.latch()).into(), brief.clone()).await.unwrap();
    assert_eq!(late.next().await.transpose().unwrap(), Some(0));
    // Not a wait for work: the deadline has to pass.
    tokio::time::sleep(timeout * 2).await;
    gate.open();
    assert_eq!(late.output().await.unwrap(), 1);

    let gate = Gate::default();
    let (latch, request) = (gate.latch(), model.clone());
    // Nobody sees its first output, so there is more time for that.
    let longer = brief.clone().with_timeout(timeout * 5);
    let alone = tokio::spawn(async move { request.call(Act::StreamThenWork(1, latch).into(), longer).await });
    tokio::time::sleep(timeout * 6).await;
    gate.open();
    assert_eq!(alone.await.unwrap().unwrap(), 1, "also where the output alone is wanted");

    let gate = Gate::default();
    let silent = model.stream(Act::Work(gate.latch()).into(), brief).await.unwrap();
    assert!(matches!(silent.output().await, Err(Error::Timeout { .. })));
    test.finish().await;
}

/// As reading a long prompt, which has no output before its end.
#[tokio::test]
async fn work_that_has_begun_has_met_the_deadline_and_keeps_its_total_one() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    model.preload().await.unwrap();
    let timeout = millis(100);
    let brief = CallOptions::default().with_timeout(timeout);
    let gate = Gate::default();
    let begun = model.stream(Act::BeginThenWork(gate.latch()).into(), brief.clone()).await.unwrap();
    test.until_model("model", "it runs", |model| idle(model) == 0).await;
    // It waits behind the other, so its time ends.
    let queued = model.call(Act::Reply(7).into(), brief.clone()).await;
    assert!(matches!(queued, Err(Error::Timeout { phase: RequestPhase::Queued, .. })), "{queued:?}");
    gate.open();
    assert_eq!(begun.output().await.unwrap(), 0);

    let total = brief.with_total_timeout(timeout * 2);
    let gate = Gate::default();
    let error = model.call(Act::BeginThenWork(gate.latch()).into(), total).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { after, .. } if after == timeout * 2), "{error}");
    test.finish().await;
}

/// A model that does one step of every request at a time, and lets requests in and out between two rounds.
struct Rounds {
    record: Arc<Record>,
    /// The first round begins when this opens.
    begin: Latch,
}

impl Loader<StreamedScript> for Rounds {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }
    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<StreamedScript>>, Failure> {
        Ok(Arc::new(Self { record: self.record.clone(), begin: self.begin.clone() }))
    }
}

impl Weights<StreamedScript> for Rounds {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<StreamedScript>>, Failure> {
        Ok(Box::new(Self { record: self.record.clone(), begin: self.begin.clone() }))
    }
}

impl Model<StreamedScript> for Rounds {
    fn run(&mut self, batch: &mut Batch<StreamedScript>) -> Result<(), Failure> {
        self.record.runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.begin.wait(Duration::from_secs(30));
        // By request, not by place: whoever goes away leaves at the next round.
        let mut done: HashMap<RequestId, u64> = HashMap::new();
        while !batch.items().is_empty() {
            for item in batch.items() {
                let Act::Stream(steps) = item.request().act else { panic!("only streams") };
                let done = done.entry(item.id()).or_default();
                if *done == steps {
                    item.finish(steps);
                } else if item.emit(*done).is_ok() {
                    *done += 1;
                }
            }
            batch.join();
        }
        Ok(())
    }
}

#[tokio::test]
async fn with_continuous_batching_requests_join_and_leave_between_steps() {
    let (system, pool) = single();
    let mut test = TestSystem::start_with(system, pool.with_stream_buffer(1)).await;
    let gate = Gate::default();
    let loader = ScriptedLoader::default();
    let record = loader.record.clone();
    let rounds = Rounds { record: record.clone(), begin: gate.latch() };
    let model = test.streams().register(ModelSpec::new("model", rounds).continuous()).unwrap();
    let _ = test.model("another", loader);
    gate.open();

    let mut long = stream(&model, Act::Stream(u64::MAX)).await;
    assert_eq!(long.next().await.transpose().unwrap(), Some(0));
    let long = tokio::spawn(async move {
        for expected in 1.. {
            assert_eq!(long.next().await.transpose().unwrap(), Some(expected));
        }
    });
    for steps in 1..5 {
        assert_eq!(stream(&model, Act::Stream(steps)).await.output().await.unwrap(), steps);
        let mut dropped = stream(&model, Act::Stream(u64::MAX)).await;
        assert_eq!(dropped.next().await.transpose().unwrap(), Some(0));
        drop(dropped);
    }
    assert!(!long.is_finished(), "they came and went while the long one ran");
    long.abort();
    let _ = long.await;
    assert_eq!(count(&record.runs), 1, "all in one run");
    let request: ScriptedRequest = Act::Stream(2).into();
    assert_eq!(model.call(request, CallOptions::default()).await.unwrap(), 2);
    test.finish().await;
}

#[tokio::test]
async fn what_was_asked_is_freed_when_it_is_answered_and_not_when_the_answer_is_read() {
    let mut test = start(single()).await;
    let model = test.stream_model("model", ScriptedLoader::default());
    let asked = Arc::new(AtomicUsize::new(0));
    let unread = stream(&model, Act::PanicTimes(asked.clone())).await;
    test.until_model("model", "it is answered", |model| idle(model) == 1).await;
    // The same worker's next answer: its thread has let go of the first request by then.
    model.call(Act::Stream(1).into(), CallOptions::default()).await.unwrap();
    assert_eq!(Arc::strong_count(&asked), 1, "nobody but the test holds it");
    assert_eq!(unread.output().await.unwrap(), 0, "the answer is there all the same");
    test.finish().await;
}

/// The first output meets the first deadline; the whole answer has one of its own.
#[tokio::test]
async fn an_answer_that_has_begun_ends_when_the_time_for_all_of_it_has_passed() {
    for streams in [true, false] {
        let mut test = TestSystem::start().await;
        let model = test.stream_model("model", ScriptedLoader::default());
        model.preload().await.unwrap();
        let gate = Gate::default();
        let (first, all) = (Duration::from_millis(1000), Duration::from_millis(1500));
        let options = CallOptions::default().with_timeout(first).with_total_timeout(all);
        let act = Act::StreamThenWork(2, gate.latch());
        let error = match streams {
            true => model.stream(act.into(), options).await.unwrap().output().await.unwrap_err(),
            false => model.call(act.into(), options).await.unwrap_err(),
        };
        let is_total =
            matches!(&error, Error::Timeout { phase: RequestPhase::Running, after, .. } if *after == all);
        assert!(is_total, "{error}");
        test.until_model("model", "its worker is free although the gate is shut", |model| idle(model) == 1)
            .await;
        test.finish().await;
    }
}
