//! Building an engine: its settings are checked, its pools added to a system, and the models that it starts with
//! registered once the system runs.

use model_actors::isolation::Isolation;
use model_actors::{
    Bytes, ImageEmbedding, ModelId, PoolConfig, Portable, Reranking, System, SystemBuilder, SystemConfig,
    TextEmbedding, TextToImage, TextToText, Vision,
};

use super::Engine;
use crate::device::{Compute, ComputeDevice};
use crate::error::{Error, Result};
use crate::hub_settings::HubSettings;
use crate::image_input::ImageSettings;
use crate::registration::{EngineCapability, IntoModelSpec};
use crate::resources::EngineResources;

/// Maximum number of workers of a model, unless the pool's settings say otherwise.
const MAX_WORKERS: usize = 4;

/// Settings of an engine, and the models that it starts with.
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
    hub: HubSettings,
    images: ImageSettings,
    isolation: Isolation,
    pools: Vec<(AddPool, PoolConfig)>,
    models: Vec<Register>,
    #[cfg(feature = "cluster")]
    cluster: Option<model_actors::ClusterConfig>,
}

/// Adds the pool of a capability.
type AddPool = fn(SystemBuilder, PoolConfig) -> SystemBuilder;
/// Registers a model.
type Register = Box<dyn FnOnce(&Engine) -> Result<()> + Send + Sync>;

impl EngineBuilder {
    pub(super) fn new() -> Self {
        Self {
            device: ComputeDevice::Cpu,
            device_memory: None,
            threads: 1,
            config: SystemConfig::default(),
            pool: None,
            hub: HubSettings::default(),
            images: ImageSettings::default(),
            isolation: Isolation::default(),
            pools: Vec::new(),
            models: Vec::new(),
            #[cfg(feature = "cluster")]
            cluster: None,
        }
    }

    /// Device that all models run on; the processor, unless set.
    pub fn device(self, device: ComputeDevice) -> Self {
        Self { device, ..self }
    }

    /// Limit on what models may take of the device's own memory. Needed for every device but the processor.
    pub fn device_memory(self, limit: Bytes) -> Self {
        Self { device_memory: Some(limit), ..self }
    }

    /// Limit on what models may take of the host's memory; 80 % of what the process may use, unless set.
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
    pub fn system_config(mut self, config: SystemConfig) -> Self {
        let memory_limit = config.memory_limit.or(self.config.memory_limit);
        self.config = config;
        self.config.memory_limit = memory_limit;
        self
    }

    /// Settings of every pool of the shipped capabilities. Unless set: the defaults of the actors, with no more workers
    /// of a model than there are cores for.
    pub fn pool_config(self, config: PoolConfig) -> Self {
        Self { pool: Some(config), ..self }
    }

    /// Settings for the hub.
    pub fn hub(self, hub: HubSettings) -> Self {
        Self { hub, ..self }
    }

    /// Settings for images from outside: limits, memory, time, and which addresses may be opened.
    pub fn image_input(self, images: ImageSettings) -> Self {
        Self { images, ..self }
    }

    /// The place where the models of this crate run, unless theirs is set ([`SourceSpec::isolation`](crate::SourceSpec::isolation)): threads of this process,
    /// or, with [`ProcessOptions`](crate::isolation::ProcessOptions), processes of their own.
    pub fn isolation(self, isolation: impl Into<Isolation>) -> Self {
        Self { isolation: isolation.into(), ..self }
    }

    /// Makes the engine a node of a cluster, as which a process can have one: the models of the shipped capabilities are
    /// reached from other nodes, and theirs from here, by the same methods of [`Engine`]; one that is registered here goes
    /// first, and also runs on other nodes that have the same files whenever they serve a request sooner. The digest of
    /// the files is found in the background, of a repository's once it has been loaded; until then a model stays at home.
    ///
    /// ```no_run
    /// use candle_actors::{ClusterConfig, Engine, Source};
    /// # async fn run() -> candle_actors::Result<()> {
    /// let secret = std::env::var("CLUSTER_SECRET").unwrap_or_default();
    /// let node = ClusterConfig::new("models", "left", secret, ([127, 0, 0, 1], 7001).into())
    ///     .with_peers(["127.0.0.1:7002".to_owned()]);
    /// let engine = Engine::builder()
    ///     .cluster(node)
    ///     .text_embedding("small", Source::directory("models/english-embedding-small"))
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "cluster")]
    pub fn cluster(self, config: model_actors::ClusterConfig) -> Self {
        Self { cluster: Some(config), ..self }
    }

    /// Adds the pool of an application's own capability, whose models are then registered as those of the shipped ones.
    pub fn capability<C: EngineCapability>(mut self, config: PoolConfig) -> Self {
        self.pools.push((|builder, config| builder.pool::<C>(config), config));
        self
    }

    /// As [`Self::capability`], with a pool that is shared with the other nodes of a cluster: its models that have a
    /// [digest](model_actors::ModelSpec::digest) are reached from there.
    #[cfg(feature = "cluster")]
    pub fn shared_capability<C: EngineCapability + Portable>(mut self, config: PoolConfig) -> Self {
        self.pools.push((shared_pool::<C>, config));
        self
    }

    /// Registers a model of any capability. Nothing is loaded before its first request.
    pub fn register<C: EngineCapability>(
        mut self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<C> + Send + Sync + 'static,
    ) -> Self {
        let id = id.into();
        self.models.push(Box::new(move |engine| engine.register::<C>(id, spec).map(drop)));
        self
    }

    /// Registers a text embedding model.
    pub fn text_embedding(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<TextEmbedding> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Registers a reranking model.
    pub fn reranking(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<Reranking> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Registers a text to text model.
    pub fn text_to_text(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<TextToText> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Registers an image embedding model.
    pub fn image_embedding(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<ImageEmbedding> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Registers a vision model. An image takes tokens too: a large one of a model that looks at images in their own size
    /// takes up to 16,384, which needs [`kv_cache_tokens`](crate::GenerationLimits::kv_cache_tokens) of more than that.
    pub fn vision(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<Vision> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Registers a text to image model.
    pub fn text_to_image(
        self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<TextToImage> + Send + Sync + 'static,
    ) -> Self {
        self.register(id, spec)
    }

    /// Starts the actors. Loads nothing.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`]; those of [`Engine::register`] for the first model that cannot be registered;
    /// [`Error::Actor`] for a setting of the actors.
    pub async fn start(self) -> Result<Engine> {
        let system = self.system()?.start().await?;
        self.attach(system)
    }

    /// The system that [`EngineBuilder::start`] would start, to start it under an application's own supervisor;
    /// [`EngineBuilder::attach`] then puts an engine over it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn system(&self) -> Result<SystemBuilder> {
        Compute::new(self.device, self.threads)?;
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
        let shipped: [AddPool; 6] = [
            shared_pool::<TextEmbedding>,
            shared_pool::<Reranking>,
            shared_pool::<TextToText>,
            shared_pool::<ImageEmbedding>,
            shared_pool::<Vision>,
            shared_pool::<TextToImage>,
        ];
        let builder = shipped.iter().fold(System::builder(config), |builder, add| add(builder, pool.clone()));
        #[cfg(feature = "cluster")]
        let builder = match self.cluster.clone() {
            Some(cluster) => builder.cluster(cluster),
            None => builder,
        };
        Ok(self.pools.iter().fold(builder, |builder, (add, config)| add(builder, config.clone())))
    }

    /// An engine over a running system, which has the pools that [`EngineBuilder::system`] names.
    ///
    /// # Errors
    /// [`Error::Actor`] if it lacks a pool; [`Error::InvalidSetting`]; those of [`Engine::register`].
    pub fn attach(self, system: System) -> Result<Engine> {
        let compute = Compute::new(self.device, self.threads)?;
        let resources = EngineResources::of(compute, self.hub, self.images, self.isolation)?;
        let engine = Engine { system, resources, shutdown_timeout: self.config.shutdown_timeout };
        for register in self.models {
            register(&engine)?;
        }
        Ok(engine)
    }
}

/// Adds a pool that is shared in a cluster, where there can be one.
fn shared_pool<C: Portable>(builder: SystemBuilder, config: PoolConfig) -> SystemBuilder {
    #[cfg(feature = "cluster")]
    return builder.shared_pool::<C>(config);
    #[cfg(not(feature = "cluster"))]
    builder.pool::<C>(config)
}

fn default_pool(threads: usize) -> PoolConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    PoolConfig::default().with_max_workers((cores / threads).clamp(1, MAX_WORKERS))
}
