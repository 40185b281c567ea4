//! Servers for tests: over the small models of the repository, or over models that do as a test says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_actors::Failure;
use candle_actors::testing::{Gate, Latch, quick_timings};
use candle_actors::{
    Batch, Bytes, Completion, Engine, EngineBuilder, FinishReason, Footprint, LoadContext, Loader, Model,
    ModelSpec, PoolConfig, QueueCapacity, ShutdownReport, Source, System, TextToText, Usage, Weights,
};
use serve::{Server, serve};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::{Client, PATIENCE};

/// A server that runs.
pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) system: System,
    end: oneshot::Sender<()>,
    report: JoinHandle<ShutdownReport>,
}

impl Running {
    pub(crate) async fn start(server: Server, system: System) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let (end, ended) = oneshot::channel();
        let report = tokio::spawn(serve(server, listener, async { ended.await.unwrap_or(()) }));
        Self { client, system, end, report }
    }

    /// Over an engine, with the server's settings as they are.
    pub(crate) async fn over(engine: Engine) -> Self {
        let system = engine.system().clone();
        Self::start(Server::new(engine), system).await
    }

    /// Sends the signal to end, and gives what the end reports.
    pub(crate) fn end(self) -> JoinHandle<ShutdownReport> {
        self.end.send(()).unwrap();
        self.report
    }
}

/// The folder of the small models.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

/// A tiny model with random weights, from the library's own tests.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

pub(crate) fn source(folder: &str) -> Source {
    Source::directory(models().join(folder))
}

/// An engine with settings fit for a test.
pub(crate) fn engine() -> EngineBuilder {
    let (system, pool) = quick_timings();
    Engine::builder().system_config(system).pool_config(pool.with_request_timeout(PATIENCE))
}

/// A model that waits at a gate before it answers, and tells of what happens.
pub(crate) struct Waiting {
    latch: Latch,
    told: UnboundedSender<Told>,
}

/// Moments that a model that waits tells of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Began,
    Stopped,
}

/// A text model in which requests wait for the gate, one of them at a time, with a queue of this capacity.
pub(crate) fn waiting(system: &System, capacity: usize) -> (Gate, UnboundedReceiver<Told>) {
    let gate = Gate::default();
    let (told, tell) = unbounded_channel();
    let config = quick_timings().1.with_max_workers(1).with_request_timeout(PATIENCE);
    let config: PoolConfig = config.with_queue(QueueCapacity::new(capacity, capacity));
    let spec = ModelSpec::<TextToText>::new("waiting", Waiting { latch: gate.latch(), told });
    let client = system.client::<TextToText>().unwrap();
    client.register(spec.config(config).per_run().max_batch_requests(1)).unwrap();
    (gate, tell)
}

const FOOTPRINT: Footprint = Footprint::new(Bytes::mib(1), Bytes::mib(1));

impl Loader<TextToText> for Waiting {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(FOOTPRINT)
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<TextToText>>, Failure> {
        Ok(Arc::new(Self { latch: self.latch.clone(), told: self.told.clone() }))
    }
}

impl Weights<TextToText> for Waiting {
    fn footprint(&self) -> Footprint {
        FOOTPRINT
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextToText>>, Failure> {
        Ok(Box::new(Self { latch: self.latch.clone(), told: self.told.clone() }))
    }
}

/// Writes one word, unless the request's stop strings ask for silence; then fails, if they ask for a fall, or waits for the
/// gate, or until nobody wants the rest.
impl Model<TextToText> for Waiting {
    fn run(&mut self, batch: &mut Batch<TextToText>) -> Result<(), Failure> {
        for item in batch.items() {
            let asked_for = |word: &str| item.request().stop.iter().any(|stop| stop == word);
            let wants_words = !asked_for("silence");
            let _ = self.told.send(Told::Began);
            let mut stopped = wants_words && item.emit("one ".into()).is_err();
            if asked_for("a fall") {
                item.fail(Failure::failed("the model fell"));
                continue;
            }
            while !stopped && !self.latch.wait(std::time::Duration::from_millis(1)) {
                batch.tick();
                stopped = item.should_stop();
            }
            if stopped {
                let _ = self.told.send(Told::Stopped);
                continue;
            }
            let _ = item.emit("two".into());
            item.finish(Completion::new("one two", FinishReason::Stop, Usage::new(1, 2)));
        }
        Ok(())
    }
}
