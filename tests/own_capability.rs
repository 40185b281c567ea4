//! A capability of an application's own goes the same way as the shipped ones: it is registered with a
//! source, its loader opens that source through the engine, with progress, stop and the engine's hub
//! settings, and what is wrong with its files is told as it is for every model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use candle_actors::{
    Batch, Bytes, CallOptions, Capability, Engine, EngineBuilder, EngineCapability, EngineResources, Error,
    ErrorKind, Failure, Footprint, IntoModelSpec, LoadContext, LoadOptions, LoadStage, Loader, Model,
    ModelFiles, ModelHandle, ModelId, ModelSpec, NoChunk, PoolConfig, Result, Source, SourceSpec, Weights,
};
use common::model::TinyModel;

/// The length of a file of the model.
struct FileLength;

impl Capability for FileLength {
    type Request = ();
    type Chunk = NoChunk;
    type Output = usize;
    const NAME: &'static str = "file_length";
}

impl EngineCapability for FileLength {
    type Handle = ModelHandle<Self>;
    fn handle(model: ModelHandle<Self>, _: &EngineResources) -> Self::Handle {
        model
    }
}

impl IntoModelSpec<FileLength> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<FileLength>> {
        Ok(spec(id, self.source, "config.json", resources))
    }
}

fn spec(
    id: ModelId,
    source: Source,
    file: &'static str,
    resources: &EngineResources,
) -> ModelSpec<FileLength> {
    ModelSpec::new(id, FileLoader { source, file, resources: resources.clone() })
}

struct FileLoader {
    source: Source,
    file: &'static str,
    resources: EngineResources,
}

impl FileLoader {
    fn open(&self, context: &LoadContext) -> Result<ModelFiles> {
        self.resources.open(&self.source, context)
    }
}

impl Loader<FileLength> for FileLoader {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let length = std::fs::metadata(self.open(context)?.get(self.file)?).unwrap().len();
        Ok(Footprint::new(Bytes(length), Bytes(0)))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<FileLength>>, Failure> {
        let files = self.open(context)?;
        assert_eq!(files.find("no-such.json")?, None);
        let bytes = std::fs::read(files.get(self.file)?).unwrap();
        context.begin(LoadStage::Load, Bytes(bytes.len() as u64));
        context.advance(Bytes(bytes.len() as u64));
        Ok(Arc::new(Length(bytes.len())))
    }
}

#[derive(Clone)]
struct Length(usize);

impl Weights<FileLength> for Length {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes(self.0 as u64), Bytes(0))
    }
    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<FileLength>>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

impl Model<FileLength> for Length {
    fn run(&mut self, batch: &mut Batch<FileLength>) -> Result<(), Failure> {
        batch.items().iter().for_each(|item| item.finish(self.0));
        Ok(())
    }
}

fn builder() -> EngineBuilder {
    Engine::builder().capability::<FileLength>(PoolConfig::default().with_max_workers(1))
}

fn config_length() -> usize {
    let files = TinyModel::new().files();
    files.iter().find(|(name, _)| *name == "config.json").unwrap().1.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_registered_with_a_source_and_opens_it_through_the_engine() {
    let folder = TinyModel::new().write();
    let engine =
        builder().register::<FileLength>("length", Source::directory(folder.path())).start().await.unwrap();
    let model = engine.handle::<FileLength>("length").unwrap();
    assert_eq!(model.call((), CallOptions::default()).await.unwrap(), config_length());

    // A closure registers any specification.
    let source = Source::directory(folder.path());
    let by_closure =
        |id: ModelId, resources: &EngineResources| Ok(spec(id, source, "tokenizer.json", resources));
    let other = engine.register::<FileLength>("tokenizer", by_closure).unwrap();
    assert_ne!(other.call((), CallOptions::default()).await.unwrap(), config_length());
    assert_eq!(engine.models().len(), 2);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_its_files_is_told_as_for_every_model() {
    let folder = TinyModel::new().write();
    let engine = builder().start().await.unwrap();
    let source = Source::directory(folder.path());
    let missing = |id: ModelId, resources: &EngineResources| Ok(spec(id, source, "missing.json", resources));
    let model = engine.register::<FileLength>("missing", missing).unwrap();
    let error = Error::from(model.call((), CallOptions::default()).await.unwrap_err());
    assert!(matches!(error.root(), Error::MissingFile { file, .. } if file == "missing.json"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
    // No pool of the capability was added here.
    let error =
        Engine::builder().register::<FileLength>("length", Source::directory(folder.path())).start().await;
    assert_eq!(error.err().unwrap().kind(), ErrorKind::NotFound);
}

#[cfg(feature = "hub")]
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_fetched_with_the_engines_hub_settings_and_with_progress() {
    use candle_actors::Event;
    use common::server::{HubServer, REPOSITORY};

    let server = HubServer::start(TinyModel::new().files(), &[]);
    let cache = tempfile::tempdir().unwrap();
    let hub = candle_actors::HubSettings::default().with_endpoint(server.endpoint()).with_cache(cache.path());
    let engine = builder().hub(hub).start().await.unwrap();
    let mut events = engine.events();
    let model = engine.register::<FileLength>("length", Source::repository(REPOSITORY)).unwrap();
    assert_eq!(model.call((), CallOptions::default()).await.unwrap(), config_length());
    let mut downloaded = Bytes(0);
    while let Ok(event) = events.try_recv() {
        if let Event::Loading { stage: LoadStage::Download, done, .. } = event {
            downloaded = downloaded.max(done);
        }
    }
    assert_eq!(downloaded, Bytes(config_length() as u64));
}

/// Looks for a file of its source when it is told to, and tells what it got.
struct Gated {
    files: FileLoader,
    began: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    found: Sender<Result<PathBuf>>,
}

impl Loader<FileLength> for Gated {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        self.files.footprint(context)
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<FileLength>>, Failure> {
        self.began.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        let found = self.files.open(context)?.get("config.json");
        self.found.send(found.clone()).unwrap();
        Ok(Arc::new(Length(found?.as_os_str().len())))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_nobody_waits_for_stops_at_the_next_file() {
    let folder = TinyModel::new().write();
    let engine = builder().start().await.unwrap();
    let ((began, has_begun), (tell, go_on), (found, found_by)) = (channel(), channel(), channel());
    let source = Source::directory(folder.path());
    let gated = |id: ModelId, resources: &EngineResources| {
        let files = FileLoader { source, file: "config.json", resources: resources.clone() };
        Ok(ModelSpec::new(id, Gated { files, began, go_on: Mutex::new(go_on), found }))
    };
    let model = engine.register::<FileLength>("gated", gated).unwrap();
    let call = tokio::spawn(async move { model.call((), CallOptions::default()).await });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    drop(engine);
    assert!(call.await.unwrap().is_err());
    tell.send(()).unwrap();
    let found = tokio::task::spawn_blocking(move || found_by.recv().unwrap()).await.unwrap();
    assert_eq!(found, Err(Error::Stopped));
}

#[test]
fn a_source_is_opened_without_an_engine_too() {
    let folder = TinyModel::new().write();
    let resources = EngineResources::new(&LoadOptions::default()).unwrap();
    let context = LoadContext::detached(&ModelId::from("length"));
    let files = resources.open(&Source::directory(folder.path()), &context).unwrap();
    assert!(files.get("config.json").unwrap().is_file());
    let nowhere = resources.open(&Source::directory("/no/such"), &context);
    assert!(matches!(nowhere.err(), Some(Error::NoSuchDirectory { .. })));
}
