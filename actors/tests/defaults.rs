//! Defaults for all that a loader or a specification leaves unsaid: a load is one whether or not its loader begins a stage, and a
//! capability that needs continuous batching has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Gate, Latch, Scripted, ScriptedLoader, TestSystem};
use model_actors::{
    Batch, Bytes, CallOptions, Completion, Error, Failure, FinishReason, Footprint, GenerateText,
    LoadContext, Loader, Message, Model, ModelSpec, RequestPhase, System, TextToText, Usage, Weights,
};

/// Reports bytes, or nothing at all, and begins no stage.
struct Terse {
    reports: bool,
    gate: Latch,
    inner: ScriptedLoader,
}

impl Loader<Scripted> for Terse {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        Loader::<Scripted>::footprint(&self.inner, context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<Scripted>>, Failure> {
        if self.reports {
            context.advance(Bytes(1000));
            // Beyond what can be counted.
            context.advance(Bytes(u64::MAX));
        }
        self.gate.wait(Duration::from_secs(60));
        self.inner.load(context)
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_load_is_told_so_though_its_loader_began_no_stage() {
    for reports in [true, false] {
        let mut test = TestSystem::start().await;
        let gate = Gate::default();
        let inner = ScriptedLoader::default();
        let terse = Terse { reports, gate: gate.latch(), inner: inner.clone() };
        let model = test.register("model", inner, ModelSpec::new("model", terse));
        let options = CallOptions::default().with_timeout(millis(200));
        let error = end(send_with(&model, Act::Reply(1), options)).await.unwrap_err();
        let is_loading =
            matches!(&error, Error::Timeout { phase: RequestPhase::Loading { percent: None }, .. });
        assert!(is_loading, "reports {reports}: {error}");
        gate.open();
        assert_eq!(ask(&model, Act::Reply(2)).await.unwrap(), 2);
        test.finish().await;
    }
}

/// Answers once two requests share its run, which requests that wait for the end of another never do.
struct Couple;

impl Loader<TextToText> for Couple {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextToText>>, Failure> {
        Ok(Arc::new(Couple))
    }
}

impl Weights<TextToText> for Couple {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextToText>>, Failure> {
        Ok(Box::new(Couple))
    }
}

impl Model<TextToText> for Couple {
    fn run(&mut self, batch: &mut Batch<TextToText>) -> Result<(), Failure> {
        while batch.items().len() < 2 {
            if batch.items().iter().any(model_actors::Item::should_stop) {
                return Err(Failure::stopped());
            }
            batch.pause();
            batch.join();
        }
        for item in batch.items() {
            item.finish(Completion::new("together", FinishReason::Stop, Usage::new(1, 1)));
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_a_capability_needs_is_its_default() {
    let (system, pool) = single();
    let pool = pool.with_request_timeout(Duration::from_secs(5));
    let system = System::builder(system).pool::<TextToText>(pool).start().await.unwrap();
    let model = system.client::<TextToText>().unwrap().register(ModelSpec::new("writer", Couple)).unwrap();
    let ask = || model.call(GenerateText::chat([Message::user("a question")]), CallOptions::default());
    let first = ask();
    let second = async {
        let runs = |status: &model_actors::SystemStatus| {
            status.model("text_to_text", "writer").is_some_and(|model| busy(model) == 1)
        };
        system.watch().wait_for(runs).await.unwrap();
        ask().await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap().text, second.unwrap().text), ("together".to_owned(), "together".to_owned()));
    assert!(system.shutdown().await.is_clean());
}
