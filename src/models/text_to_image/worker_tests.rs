//! Calls of a worker to its model, counted by a pipeline that waits for permission before each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use candle_core::Tensor;
use model_actors::{
    CallOptions, Failure, Footprint, LoadContext, Loader, ModelSpec, PaintImage, PoolConfig, System,
    SystemConfig, TextToImage, Weights,
};

use super::model::TextToImageModel;
use super::noise::Noise;
use super::pipeline::{Conditioning, Pipeline, Scheduler, Settings, Watch};
use super::plan::LoadedModel;
use crate::error::Result;
use crate::loader::{SharedModel, StandaloneModel as _};
use crate::source::Source;

/// Pipeline whose calls wait for a permit each.
struct GatedPipeline {
    inner: Box<dyn Pipeline>,
    permits: Mutex<Receiver<()>>,
    calls: Arc<AtomicUsize>,
}

impl Pipeline for GatedPipeline {
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        self.inner.scheduler(settings)
    }

    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning> {
        self.inner.encode_prompt(settings, watch)
    }

    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        // Nobody sends once the test is over.
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        self.inner.predict(latents, timestep, conditioning, watch)
    }

    fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        self.inner.encode(colours, noise, watch)
    }

    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.inner.decode(latents, watch)
    }
}

struct Ready(Arc<LoadedModel>);

impl Loader<TextToImage> for Ready {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(self.0.footprint)
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextToImage>>, Failure> {
        Ok(Arc::new(SharedModel::<TextToImageModel>(Arc::clone(&self.0))))
    }
}

struct Harness {
    system: System,
    model: model_actors::ModelHandle<TextToImage>,
    permits: Sender<()>,
    calls: Arc<AtomicUsize>,
}

impl Harness {
    /// One worker.
    async fn open() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text_to_image/sd15");
        let model = TextToImageModel::load(Source::directory(folder)).unwrap();
        let shared = Arc::into_inner(model.shared).unwrap();
        let (permits, waits) = channel();
        let calls = Arc::new(AtomicUsize::new(0));
        let gated =
            GatedPipeline { inner: shared.pipeline, permits: Mutex::new(waits), calls: Arc::clone(&calls) };
        let shared = Arc::new(LoadedModel { pipeline: Box::new(gated), ..shared });
        let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
        let system =
            System::builder(SystemConfig::default()).pool::<TextToImage>(pool).start().await.unwrap();
        let spec = ModelSpec::new("gated", Ready(shared));
        let model = system.client::<TextToImage>().unwrap().register(spec).unwrap();
        Self { system, model, permits, calls }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn request(steps: usize) -> PaintImage {
    PaintImage::default().with_prompt("a cat").with_steps(steps).with_seed(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_model_within_one_step() {
    let harness = Harness::open().await;
    let mut stream = harness.model.stream(request(50), CallOptions::default()).await.unwrap();
    for step in 1..=3 {
        harness.permits.send(()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().step, step);
    }
    // Now the model waits in, or comes to, its fourth call.
    drop(stream);
    // Leave for more calls than there could be.
    (0..100).for_each(|_| harness.permits.send(()).unwrap());
    let mut next = harness.model.stream(request(1), CallOptions::default()).await.unwrap();
    assert_eq!(next.next().await.unwrap().unwrap().of, 1);
    assert!(next.output().await.is_ok());
    let calls = harness.calls();
    println!("3 steps were seen, {} calls were made for them", calls - 1);
    assert!((4..=5).contains(&calls), "{calls} calls for 3 steps, the one under way, and the next picture's");
    assert!(harness.system.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_picture_between_two_steps() {
    let harness = Harness::open().await;
    harness.model.preload().await.unwrap();
    // The time to the first output is kept as soon as the picture is begun, however long its first step takes.
    let options = CallOptions::default().with_total_timeout(Duration::from_millis(50));
    let error = harness.model.call(request(50), options).await.unwrap_err();
    assert!(matches!(error, model_actors::Error::Timeout { .. }), "{error}");
    (0..100).for_each(|_| harness.permits.send(()).unwrap());
    harness.model.call(request(1), CallOptions::default()).await.unwrap();
    assert!(harness.calls() <= 2, "{} calls", harness.calls());
    assert!(harness.system.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_one_batch_take_turns() {
    let harness = Harness::open().await;
    // The first holds the worker until both others wait, so that they run as one batch.
    let mut first = harness.model.stream(request(1), CallOptions::default()).await.unwrap();
    while harness.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(harness.model.stream(request(3), CallOptions::default()).await.unwrap());
    }
    harness.permits.send(()).unwrap();
    assert!(first.next().await.is_some());
    first.output().await.unwrap();
    for step in 1..=3 {
        for other in &mut others {
            harness.permits.send(()).unwrap();
            assert_eq!(other.next().await.unwrap().unwrap().step, step);
        }
    }
    // The schedule's own call more than there are steps.
    (0..2).for_each(|_| harness.permits.send(()).unwrap());
    for other in others {
        other.output().await.unwrap();
    }
    assert_eq!(harness.calls(), 1 + 2 * 4);
    assert!(harness.system.shutdown().await.is_clean());
}
