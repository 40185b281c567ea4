//! The front door: an [`Engine`] is an actor system with a pool for each capability, and the settings that its models
//! share. Models of every capability, shipped or an application's own, are registered, replaced, removed, listed and
//! reached in one generic way. Everything that happens to a request is left to the actors.

use std::fmt;
use std::time::{Duration, Instant};

use model_actors::{
    Event, ImageEmbedding, ModelId, RegisteredModel, Reranking, ShutdownReport, System, TextEmbedding,
    TextToImage, TextToText, Vision,
};

use crate::error::Result;
use crate::handles::image_embedding::ImageEmbedder;
use crate::handles::reranking::Reranker;
use crate::handles::text_embedding::TextEmbedder;
use crate::handles::text_to_image::ImagePainter;
use crate::handles::text_to_text::TextGenerator;
use crate::handles::vision::ImageDescriber;
use crate::image_input::ImageInput;
use crate::registration::{EngineCapability, IntoModelSpec};
use crate::resources::EngineResources;

mod builder;

pub use builder::EngineBuilder;

/// Time that children without work have to end at shutdown, however long that has taken.
const LAST: Duration = Duration::from_secs(1);

/// Runs local models as supervised actors. Dropping it ends them as [`Engine::shutdown`] does, which also waits for
/// the end and reports.
///
/// ```no_run
/// use candle_actors::{Engine, Source, TextToText};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder()
///     .text_embedding("small", Source::directory("models/english-embedding-small"))
///     .start()
///     .await?;
/// let vectors = engine.text_embedding("small")?.embed_batch(["The cat sleeps.", "It rains."]).await?;
/// assert_eq!(vectors.len(), 2);
/// // A model can come later, and go again.
/// let chat = engine.register::<TextToText>("chat", Source::directory("models/shapes-chat"))?;
/// chat.generate("Hello").await?;
/// engine.remove::<TextToText>(chat.id())?;
/// engine.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    system: System,
    resources: EngineResources,
    shutdown_timeout: Duration,
}

impl Engine {
    /// The settings of an engine, all at their defaults.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::new()
    }

    /// Registers a model of any capability that the engine serves. Nothing is loaded before its first request.
    ///
    /// # Errors
    /// [`Error::Actor`](crate::Error::Actor) with `AlreadyRegistered` for an id of the same capability that is in use;
    /// [`Error::NoSuchDirectory`](crate::Error::NoSuchDirectory) and its like;
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting).
    pub fn register<C: EngineCapability>(
        &self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<C>,
    ) -> Result<C::Handle> {
        let spec = spec.into_model_spec(id.into(), &self.resources)?;
        Ok(C::handle(self.system.client::<C>()?.register(spec)?, &self.resources))
    }

    /// Registers a model in place of the one with the same id, or of none. The new model serves at once; requests that
    /// the old one has accepted end on the old one's workers, which then go.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub fn replace<C: EngineCapability>(
        &self,
        id: impl Into<ModelId>,
        spec: impl IntoModelSpec<C>,
    ) -> Result<C::Handle> {
        let spec = spec.into_model_spec(id.into(), &self.resources)?;
        Ok(C::handle(self.system.client::<C>()?.replace(spec)?, &self.resources))
    }

    /// Removes a model: it takes no new requests, and its workers go once those that it has accepted have ended.
    ///
    /// # Errors
    /// [`Error::Actor`](crate::Error::Actor) if there is none of that id.
    pub fn remove<C: EngineCapability>(&self, id: impl Into<ModelId>) -> Result<()> {
        Ok(self.system.client::<C>()?.remove(&id.into())?)
    }

    /// The registered models of all capabilities, in the order of the pools and of their ids.
    pub fn models(&self) -> Vec<RegisteredModel> {
        self.system.models()
    }

    /// The handle to a registered model; in a cluster, to one of another node if none of that id is registered here.
    ///
    /// # Errors
    /// [`Error::Actor`](crate::Error::Actor) with `UnknownModel`, with `OtherCapability` if the id is registered for
    /// another capability alone, or with `DifferentModels` if other nodes serve several under it.
    pub fn handle<C: EngineCapability>(&self, id: impl Into<ModelId>) -> Result<C::Handle> {
        Ok(C::handle(self.system.client::<C>()?.model(id)?, &self.resources))
    }

    /// The handle to a text embedding model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn text_embedding(&self, id: impl Into<ModelId>) -> Result<TextEmbedder> {
        self.handle::<TextEmbedding>(id)
    }

    /// The handle to a reranking model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn reranking(&self, id: impl Into<ModelId>) -> Result<Reranker> {
        self.handle::<Reranking>(id)
    }

    /// The handle to a text to text model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn text_to_text(&self, id: impl Into<ModelId>) -> Result<TextGenerator> {
        self.handle::<TextToText>(id)
    }

    /// The handle to an image embedding model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn image_embedding(&self, id: impl Into<ModelId>) -> Result<ImageEmbedder> {
        self.handle::<ImageEmbedding>(id)
    }

    /// The handle to a vision model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn vision(&self, id: impl Into<ModelId>) -> Result<ImageDescriber> {
        self.handle::<Vision>(id)
    }

    /// The handle to a text to image model.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn text_to_image(&self, id: impl Into<ModelId>) -> Result<ImagePainter> {
        self.handle::<TextToImage>(id)
    }

    /// Image input, which turns images from outside into pixels, as the handles of the engine's models do with each
    /// request.
    pub fn images(&self) -> &ImageInput {
        self.resources.images()
    }

    /// Device, threads, hub settings and image input, as loads and handles share them.
    pub fn resources(&self) -> &EngineResources {
        &self.resources
    }

    /// The actor system underneath, with status and clients of every pool.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// Events from now on: downloads and loads with their progress, workers that start, stop and fail.
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.system.events()
    }

    /// Refuses new requests, gives those under way the shutdown timeout, images that are decoded in processes of their own
    /// included, and ends everything.
    pub async fn shutdown(self) -> ShutdownReport {
        let began = Instant::now();
        let report = self.system.shutdown().await;
        let left = self.shutdown_timeout.saturating_sub(began.elapsed()).max(LAST);
        self.resources.images().end(left).await;
        report
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Engine").field("models", &self.models()).finish_non_exhaustive()
    }
}
