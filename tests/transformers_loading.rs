//! Loads and memory of the families of candle-transformers, on one of each kind of state: progress, giving up between two
//! tensors, and what a second worker adds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "transformers")]

mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use candle_actors::model_actors::FailureKind;
use candle_actors::{
    Bytes, Engine, Event, Failure, Footprint, LoadContext, LoadOptions, Loader, ModelSpec, PoolConfig,
    Source, StandaloneModel, TextGenerationModel, TextToText, TransformersFamily, TransformersModel, Weights,
};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_transformers::models::olmo2;
use common::text::family;
use tokio::time::timeout;

/// One of each kind of state: a cache beside the model, a clone, a model built anew, the state of a recurrent model.
const KINDS: [&str; 4] = ["granite", "olmo2", "stablelm", "mamba"];

fn source(name: &str) -> Source {
    Source::directory(family(&format!("transformers/{name}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_tells_its_progress_tensor_by_tensor() {
    for name in KINDS {
        let engine = Engine::builder().text_to_text(name, source(name)).start().await.unwrap();
        let mut events = engine.events();
        engine.text_to_text(name).unwrap().model().preload().await.unwrap();
        let mut told = Vec::new();
        loop {
            match events.recv().await.unwrap() {
                Event::Loading { done, total, .. } => told.push((done, total.unwrap())),
                Event::WorkerStarted { .. } => break,
                _ => {}
            }
        }
        let (done, total) = *told.last().unwrap();
        assert_eq!(done, total, "{name}");
        assert!(told.is_sorted() && told.len() > 10, "{name}: {told:?}");
        assert!(engine.shutdown().await.is_clean());
    }
}

/// A second worker reads nothing: its share is what a text leaves behind, and no weights.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_is_charged_for_its_texts_alone() {
    for name in KINDS {
        let file =
            std::fs::metadata(family(&format!("transformers/{name}")).join("model.safetensors")).unwrap();
        let Footprint { shared, per_worker, .. } =
            TextGenerationModel::load(source(name)).unwrap().footprint();
        // Beside the weights there are tables of positions and of the vocabulary at most.
        let tables = 1 << 20;
        assert!(
            (file.len() / 2..2 * file.len() + tables).contains(&shared.0),
            "{name}: {shared} of {}",
            file.len()
        );
        let mut charges = Vec::new();
        for workers in [1, 2] {
            let pool = PoolConfig::default().with_max_workers(workers).with_cold_start_workers(workers);
            let builder = Engine::builder().pool_config(pool).text_to_text(name, source(name));
            let engine = builder.start().await.unwrap();
            let mut events = engine.events();
            engine.text_to_text(name).unwrap().model().preload().await.unwrap();
            let (mut ready, mut read) = (0, Bytes(0));
            while ready < workers {
                match events.recv().await.unwrap() {
                    Event::WorkerStarted { .. } => ready += 1,
                    Event::Loading { done, .. } => read = done,
                    _ => {}
                }
            }
            charges.push((read, engine.system().status().memory[0].charged));
            assert!(engine.shutdown().await.is_clean());
        }
        let [(read_once, one), (read_twice, two)] = charges[..] else { panic!("{charges:?}") };
        println!("{name}: weights {shared}, each worker {per_worker}; one worker {one}, two {two}");
        assert_eq!((one, two), (shared + per_worker, shared + per_worker + per_worker), "{name}");
        assert_eq!(read_once, read_twice, "{name}: the second worker reads nothing");
    }
}

/// Signals that a load of [`Slow`] and its test give each other.
struct Talk {
    has_read: mpsc::Sender<candle_core::Result<Tensor>>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

static TALK: Mutex<Option<Talk>> = Mutex::new(None);

/// A family that asks for a tensor, waits, and asks for another.
struct Slow;

impl TransformersModel for Slow {
    type Config = olmo2::Config;
    type Stream = ();
    const MODEL_TYPE: &'static str = "olmo2";

    fn load(_: &olmo2::Config, weights: VarBuilder<'static>) -> candle_core::Result<Self> {
        let talk = TALK.lock().unwrap().take().unwrap();
        let norm = |layer: usize| {
            let name = format!("model.layers.{layer}.post_attention_layernorm.weight");
            weights.get_unchecked(&name)
        };
        talk.has_read.send(norm(0)).unwrap();
        talk.go_on.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
        talk.has_read.send(norm(1)).unwrap();
        // What was read before the load was given up is still there.
        talk.has_read.send(norm(0)).unwrap();
        norm(2).map(|_| Self)
    }

    fn begin(&self) -> candle_core::Result<()> {
        Ok(())
    }

    fn forward(&self, (): &mut (), tokens: &Tensor, _: usize) -> candle_core::Result<Tensor> {
        Ok(tokens.clone())
    }
}

/// A loader that shows the context of its load, and how it ended.
struct Watched {
    loader: Box<dyn Loader<TextToText>>,
    context: mpsc::Sender<LoadContext>,
    end: mpsc::Sender<Option<Failure>>,
}

impl Loader<TextToText> for Watched {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        self.loader.footprint(context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<TextToText>>, Failure> {
        self.context.send(context.clone()).unwrap();
        let loaded = self.loader.load(context);
        self.end.send(loaded.as_ref().err().cloned()).unwrap();
        loaded
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_given_up_between_two_tensors() {
    let within = Duration::from_secs(60);
    let ((has_read, reads), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let ((context, contexts), (end, ends)) = (mpsc::channel(), mpsc::channel());
    *TALK.lock().unwrap() = Some(Talk { has_read, go_on: Mutex::new(go_on) });
    let options = LoadOptions::default().with_family(TransformersFamily::of::<Slow>());
    let loader = Box::new(TextGenerationModel::loader(source("olmo2"), options).unwrap());
    let engine = Engine::builder().start().await.unwrap();
    let client = engine.system().client::<TextToText>().unwrap();
    let spec = ModelSpec::new("slow", Watched { loader, context, end }).continuous();
    let model = client.register(spec).unwrap();
    let waits = tokio::spawn({
        let model = model.clone();
        async move { model.preload().await }
    });
    // The test's threads are the runtime's, of which there are several.
    let context = tokio::task::block_in_place(|| contexts.recv_timeout(within)).unwrap();
    assert!(tokio::task::block_in_place(|| reads.recv_timeout(within)).unwrap().is_ok());
    // Nobody waits any more, and the model is to go.
    waits.abort();
    let unload = tokio::spawn({
        let model = model.clone();
        async move { model.unload(within).await }
    });
    let given_up = async {
        while !context.should_stop() {
            tokio::task::yield_now().await;
        }
    };
    timeout(within, given_up).await.unwrap();
    go.send(()).unwrap();
    let next = tokio::task::block_in_place(|| reads.recv_timeout(within)).unwrap();
    assert!(next.is_err(), "the load goes on: {next:?}");
    assert!(tokio::task::block_in_place(|| reads.recv_timeout(within)).unwrap().is_ok());
    let end = tokio::task::block_in_place(|| ends.recv_timeout(within)).unwrap().unwrap();
    assert_eq!(end.kind, FailureKind::Stopped, "{end:?}");
    unload.await.unwrap().unwrap();
    assert!(engine.shutdown().await.is_clean());
}
