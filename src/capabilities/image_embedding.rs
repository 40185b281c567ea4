//! The handle to one image embedding model: images in, vectors out, and texts into the same space. Queues, workers and memory are left to the actors.

use std::time::Duration;

use model_actors::{EmbedImages, ImageEmbedding, ImageSource, Lane, ModelHandle, ModelId, Priority};

use crate::capabilities::calls::Calls;
use crate::error::Result;

/// An image embedding model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder().image_embedding("model", Source::repository("openai/clip-vit-base-patch32")).start().await?;
/// let model = engine.image_embedding("model")?;
/// assert_eq!(model.id().to_string(), "model");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImageEmbedder {
    calls: Calls<ImageEmbedding>,
}

impl ImageEmbedder {
    pub(crate) fn new(model: ModelHandle<ImageEmbedding>) -> Self {
        Self { calls: Calls::new(model) }
    }

    /// How urgent its requests are against others of the model.
    pub fn priority(self, priority: Priority) -> Self {
        Self { calls: self.calls.priority(priority) }
    }

    /// The time that each request has for queue, load and run, instead of the model's own.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout) }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model.
    pub fn model(&self) -> &ModelHandle<ImageEmbedding> {
        &self.calls.model
    }

    /// One vector for each image, in order.
    ///
    /// # Errors
    /// [`crate::Error::Actor`]; [`crate::Error::root`] gives a load's own error.
    pub async fn embed_images(&self, images: Vec<ImageSource>) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Interactive);
        Ok(self.model().call(EmbedImages::Images(images), options).await?)
    }

    /// One vector for each text, in order, in the images' space.
    ///
    /// # Errors
    /// As [`Self::embed_images`]; the model may have no text side.
    pub async fn embed_texts(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Interactive);
        Ok(self.model().call(EmbedImages::Texts(texts), options).await?)
    }
}
