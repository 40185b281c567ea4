//! The front door: an [`Engine`] is an actor system with the pools of this crate's capabilities, the settings that
//! its models share, and a registry of sources. Everything that happens to a request is left to the actors.

use model_actors::{
    Bytes, Capability, Event, ImageEmbedding, ModelHandle, ModelId, ModelSpec, PoolConfig, ShutdownReport,
    System, SystemBuilder, SystemConfig, TextEmbedding, TextToImage, TextToText, Vision,
};

use crate::capabilities::image_embedding::ImageEmbedder;
use crate::capabilities::text_embedding::TextEmbedder;
use crate::capabilities::text_to_image::ImagePainter;
use crate::capabilities::text_to_text::TextGenerator;
use crate::capabilities::vision::ImageDescriber;
use crate::device::{Compute, ComputeDevice};
use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::HubSettings;
use crate::image_input::{ImageInput, ImageSettings};
use crate::limits::{GenerationLimits, MAX_PARALLEL};
use crate::loader::{LoadPlan, ModelLoader};
use crate::models;
use crate::source::Source;

/// Most workers of a model, unless the pool's settings say otherwise.
const MAX_WORKERS: usize = 4;

/// The settings of an engine, and the models that it starts with.
///
/// ```
/// use candle_actors::{ComputeDevice, Engine, Source};
/// let builder = Engine::builder()
///     .device(ComputeDevice::Cpu)
///     .threads(1)
///     .text_embedding("small", Source::directory("models/english-embedding-small"));
/// # drop(builder);
/// ```
#[must_use = "a builder does nothing until it is started"]
pub struct EngineBuilder {
    device: ComputeDevice,
    device_memory: Option<Bytes>,
    threads: usize,
    config: SystemConfig,
    pool: Option<PoolConfig>,
    #[cfg(feature = "hub")]
    hub: HubSettings,
    images: ImageSettings,
    models: Vec<Register>,
}

/// Registers a model.
type Register = Box<dyn FnOnce(&Engine) -> Result<()> + Send + Sync>;

impl EngineBuilder {
    /// The device that all models run on; the processor, unless set.
    pub fn device(self, device: ComputeDevice) -> Self {
        Self { device, ..self }
    }

    /// What models may take of the device's own memory. Needed for every device but the processor.
    pub fn device_memory(self, limit: Bytes) -> Self {
        Self { device_memory: Some(limit), ..self }
    }

    /// What models may take of the host's memory; 80 % of what the process may use, unless set.
    pub fn memory_limit(mut self, limit: Bytes) -> Self {
        self.config.memory_limit = Some(limit);
        self
    }

    /// Processor threads of each worker, 1 to 1,024; 1, unless set. Several workers of one thread do more work than
    /// one of several, which answers a single request sooner.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// All settings of the system but the memory limits above, which are put into them.
    pub fn system_config(self, config: SystemConfig) -> Self {
        let memory_limit = config.memory_limit.or(self.config.memory_limit);
        Self { config: config.with_memory_limit(memory_limit), ..self }
    }

    /// The settings of every pool. Unless set: the defaults of the actors, with no more workers of a model than
    /// there are cores for.
    pub fn pool_config(self, config: PoolConfig) -> Self {
        Self { pool: Some(config), ..self }
    }

    /// How the hub is reached.
    #[cfg(feature = "hub")]
    pub fn hub(self, hub: HubSettings) -> Self {
        Self { hub, ..self }
    }

    /// How images from outside are taken in: limits, memory, time, and which addresses may be opened.
    pub fn image_input(self, images: ImageSettings) -> Self {
        Self { images, ..self }
    }

    /// Registers a text embedding model. Nothing is loaded before its first request.
    pub fn text_embedding(self, id: impl Into<ModelId>, source: Source) -> Self {
        let id = id.into();
        self.model(move |engine| engine.add_text_embedding(id, source).map(drop))
    }

    /// Registers a text to text model. Nothing is loaded before its first request.
    pub fn text_to_text(self, id: impl Into<ModelId>, source: Source) -> Self {
        self.text_to_text_with(id, source, GenerationLimits::default())
    }

    /// The same, with limits of its own on what a worker writes at a time.
    ///
    /// ```
    /// use candle_actors::{Engine, Source, GenerationLimits};
    /// let limits = GenerationLimits { kv_cache_tokens: 32_768, ..GenerationLimits::default() };
    /// let builder = Engine::builder().text_to_text_with("long", Source::directory("models/long"), limits);
    /// # drop(builder);
    /// ```
    pub fn text_to_text_with(self, id: impl Into<ModelId>, source: Source, limits: GenerationLimits) -> Self {
        let id = id.into();
        self.model(move |engine| engine.add_text_to_text_with(id, source, limits).map(drop))
    }

    /// Registers an image embedding model. Nothing is loaded before its first request.
    pub fn image_embedding(self, id: impl Into<ModelId>, source: Source) -> Self {
        let id = id.into();
        self.model(move |engine| engine.add_image_embedding(id, source).map(drop))
    }

    /// Registers a vision model. Nothing is loaded before its first request.
    pub fn vision(self, id: impl Into<ModelId>, source: Source) -> Self {
        self.vision_with(id, source, GenerationLimits::default())
    }

    /// The same, with limits of its own on what a worker writes at a time. An image takes tokens too: a large one of a
    /// model that looks at images in their own size takes up to 16,384, which needs `kv_cache_tokens` of more than that.
    pub fn vision_with(self, id: impl Into<ModelId>, source: Source, limits: GenerationLimits) -> Self {
        let id = id.into();
        self.model(move |engine| engine.add_vision_with(id, source, limits).map(drop))
    }

    /// Registers a text to image model. Nothing is loaded before its first request.
    pub fn text_to_image(self, id: impl Into<ModelId>, source: Source) -> Self {
        let id = id.into();
        self.model(move |engine| engine.add_text_to_image(id, source).map(drop))
    }

    fn model(mut self, register: impl FnOnce(&Engine) -> Result<()> + Send + Sync + 'static) -> Self {
        self.models.push(Box::new(register));
        self
    }

    /// Starts the actors. Loads nothing.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], or [`Error::Actor`] for a setting of the actors or a model id that is used twice.
    pub async fn start(self) -> Result<Engine> {
        let system = self.system()?.start().await?;
        self.attach(system)
    }

    /// The system that [`EngineBuilder::start`] would start, to add pools of an application's own to it, or to start
    /// it under an application's own supervisor; [`EngineBuilder::attach`] then puts an engine over it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn system(&self) -> Result<SystemBuilder> {
        if !(1..=MAX_PARALLEL).contains(&self.threads) {
            let reason =
                format!("{} threads a worker are asked for; 1 to {MAX_PARALLEL} are allowed", self.threads);
            return Err(Error::InvalidSetting { setting: "threads".into(), reason });
        }
        let mut config = self.config.clone();
        match (self.device, self.device_memory) {
            (ComputeDevice::Cpu, _) => {}
            (device, Some(limit)) => config.device_limits.push((device.memory(), limit)),
            (device, None) => {
                let reason = format!("how much of the memory of {device} may be used must be said");
                return Err(Error::InvalidSetting { setting: "device_memory".into(), reason });
            }
        }
        let pool = self.pool.clone().unwrap_or_else(|| default_pool(self.threads));
        Ok(System::builder(config)
            .pool::<TextEmbedding>(pool.clone())
            .pool::<TextToText>(pool.clone())
            .pool::<ImageEmbedding>(pool.clone())
            .pool::<Vision>(pool.clone())
            .pool::<TextToImage>(pool))
    }

    /// An engine over a running system, which has the pools that [`EngineBuilder::system`] names.
    ///
    /// # Errors
    /// [`Error::Actor`] if it lacks a pool, or for a model id that is used twice.
    pub fn attach(self, system: System) -> Result<Engine> {
        let engine = Engine {
            system,
            compute: Compute::new(self.device, self.threads),
            #[cfg(feature = "hub")]
            hub: self.hub,
            images: ImageInput::new(self.images)?,
        };
        for register in self.models {
            register(&engine)?;
        }
        Ok(engine)
    }
}

fn default_pool(threads: usize) -> PoolConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let max_workers = (cores / threads).clamp(1, MAX_WORKERS);
    PoolConfig::default().with_max_workers(max_workers)
}

/// Runs local models as supervised actors. Dropping it stops them; [`Engine::shutdown`] lets requests finish.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder()
///     .text_embedding("small", Source::directory("models/english-embedding-small"))
///     .start()
///     .await?;
/// let vectors = engine.text_embedding("small")?.embed_batch(["The cat sleeps.", "It rains."]).await?;
/// assert_eq!(vectors.len(), 2);
/// engine.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    system: System,
    compute: Compute,
    #[cfg(feature = "hub")]
    hub: HubSettings,
    images: ImageInput,
}

impl Engine {
    /// An engine's settings, all at their defaults.
    pub fn builder() -> EngineBuilder {
        EngineBuilder {
            device: ComputeDevice::Cpu,
            device_memory: None,
            threads: 1,
            config: SystemConfig::default(),
            pool: None,
            #[cfg(feature = "hub")]
            hub: HubSettings::default(),
            images: ImageSettings::default(),
            models: Vec::new(),
        }
    }

    /// Registers a text embedding model, as [`EngineBuilder::text_embedding`] does.
    ///
    /// # Errors
    /// [`Error::Actor`] if the id is used already.
    pub fn add_text_embedding(&self, id: impl Into<ModelId>, source: Source) -> Result<TextEmbedder> {
        let spec = self.spec(id, self.loader::<models::text_embedding::TextEmbeddingPlan>(source));
        Ok(TextEmbedder::new(self.system.client::<TextEmbedding>()?.register(spec)?))
    }

    /// A registered text embedding model.
    ///
    /// # Errors
    /// [`Error::Actor`] if there is none of that name.
    pub fn text_embedding(&self, id: impl Into<ModelId>) -> Result<TextEmbedder> {
        Ok(TextEmbedder::new(self.handle::<TextEmbedding>(id)?))
    }

    /// Registers a text to text model, as [`EngineBuilder::text_to_text`] does.
    ///
    /// # Errors
    /// [`Error::Actor`] if the id is used already.
    pub fn add_text_to_text(&self, id: impl Into<ModelId>, source: Source) -> Result<TextGenerator> {
        self.add_text_to_text_with(id, source, GenerationLimits::default())
    }

    /// Registers a text to text model, as [`EngineBuilder::text_to_text_with`] does.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for limits that are out of range; [`Error::Actor`] if the id is used already.
    pub fn add_text_to_text_with(
        &self,
        id: impl Into<ModelId>,
        source: Source,
        limits: GenerationLimits,
    ) -> Result<TextGenerator> {
        let spec =
            self.spec(id, self.loader::<models::text_to_text::TextToTextPlan>(source).writing(limits)?);
        Ok(TextGenerator::new(
            self.system
                .client::<TextToText>()?
                .register(spec.continuous().max_batch_requests(limits.max_sequences))?,
        ))
    }

    /// A registered text to text model.
    ///
    /// # Errors
    /// [`Error::Actor`] if there is none of that name.
    pub fn text_to_text(&self, id: impl Into<ModelId>) -> Result<TextGenerator> {
        Ok(TextGenerator::new(self.handle::<TextToText>(id)?))
    }

    /// Registers an image embedding model, as [`EngineBuilder::image_embedding`] does.
    ///
    /// # Errors
    /// [`Error::Actor`] if the id is used already.
    pub fn add_image_embedding(&self, id: impl Into<ModelId>, source: Source) -> Result<ImageEmbedder> {
        let spec = self.spec(id, self.loader::<models::image_embedding::ImageEmbeddingPlan>(source));
        let model = self.system.client::<ImageEmbedding>()?.register(spec)?;
        Ok(ImageEmbedder::new(model, self.images.clone()))
    }

    /// A registered image embedding model.
    ///
    /// # Errors
    /// [`Error::Actor`] if there is none of that name.
    pub fn image_embedding(&self, id: impl Into<ModelId>) -> Result<ImageEmbedder> {
        Ok(ImageEmbedder::new(self.handle::<ImageEmbedding>(id)?, self.images.clone()))
    }

    /// Registers a vision model, as [`EngineBuilder::vision`] does.
    ///
    /// # Errors
    /// [`Error::Actor`] if the id is used already.
    pub fn add_vision(&self, id: impl Into<ModelId>, source: Source) -> Result<ImageDescriber> {
        self.add_vision_with(id, source, GenerationLimits::default())
    }

    /// Registers a vision model, as [`EngineBuilder::vision_with`] does.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for limits that are out of range; [`Error::Actor`] if the id is used already.
    pub fn add_vision_with(
        &self,
        id: impl Into<ModelId>,
        source: Source,
        limits: GenerationLimits,
    ) -> Result<ImageDescriber> {
        let spec = self.spec(id, self.loader::<models::vision::VisionPlan>(source).writing(limits)?);
        let model = self
            .system
            .client::<Vision>()?
            .register(spec.continuous().max_batch_requests(limits.max_sequences))?;
        Ok(ImageDescriber::new(model, self.images.clone()))
    }

    /// A registered vision model.
    ///
    /// # Errors
    /// [`Error::Actor`] if there is none of that name.
    pub fn vision(&self, id: impl Into<ModelId>) -> Result<ImageDescriber> {
        Ok(ImageDescriber::new(self.handle::<Vision>(id)?, self.images.clone()))
    }

    /// Registers a text to image model, as [`EngineBuilder::text_to_image`] does.
    ///
    /// # Errors
    /// [`Error::Actor`] if the id is used already.
    pub fn add_text_to_image(&self, id: impl Into<ModelId>, source: Source) -> Result<ImagePainter> {
        let spec = self.spec(id, self.loader::<models::text_to_image::TextToImagePlan>(source));
        Ok(ImagePainter::new(self.system.client::<TextToImage>()?.register(spec)?))
    }

    /// A registered text to image model.
    ///
    /// # Errors
    /// [`Error::Actor`] if there is none of that name.
    pub fn text_to_image(&self, id: impl Into<ModelId>) -> Result<ImagePainter> {
        Ok(ImagePainter::new(self.handle::<TextToImage>(id)?))
    }

    /// Turns images from outside into pictures, as the handles of the engine's models do with each request.
    pub fn images(&self) -> &ImageInput {
        &self.images
    }

    fn loader<P: LoadPlan>(&self, source: Source) -> ModelLoader<P> {
        ModelLoader::new(
            source,
            self.compute.clone(),
            #[cfg(feature = "hub")]
            self.hub.clone(),
        )
    }

    fn spec<P: LoadPlan>(&self, id: impl Into<ModelId>, loader: ModelLoader<P>) -> ModelSpec<P::Capability> {
        ModelSpec::new(id, loader).device(self.compute.device.memory())
    }

    fn handle<C: Capability>(&self, id: impl Into<ModelId>) -> Result<ModelHandle<C>> {
        Ok(self.system.client::<C>()?.handle(id)?)
    }

    /// The actors underneath: status, more pools' clients, and what else they offer.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// What happens from now on: downloads and loads with their progress, workers that start, stop and fail.
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.system.events()
    }

    /// Refuses new requests, gives those under way the shutdown timeout, and ends everything.
    pub async fn shutdown(self) -> ShutdownReport {
        self.system.shutdown().await
    }
}
