//! The handle to one image embedding model: images in, vectors out, and texts into the same space. Images are fetched
//! and decoded here, in the caller's task, before a request takes a place in the queue. Queues, workers and memory are
//! left to the actors.

use model_actors::{
    EmbedImages, EmbedInput, ImageEmbedding, ImageSource, Lane, ModelHandle, ModelId, ModelSpec,
};

use crate::error::Result;
use crate::handles::calls::{
    Calls, TEXT_REQUESTS_AT_A_TIME, TEXTS_PER_REQUEST, call_settings, in_order, only, portions,
};
use crate::image_input::ImageInput;
use crate::models::image_embedding::ImageEmbeddingModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;

/// Maximum number of images of one request that a batch is split into. A decoded photograph takes tens of megabytes.
const IMAGES_PER_REQUEST: usize = 4;
/// Requests of one batch of images that are under way at a time.
const IMAGE_REQUESTS_AT_A_TIME: usize = 4;

impl EngineCapability for ImageEmbedding {
    type Handle = ImageEmbedder;

    fn handle(model: ModelHandle<Self>, resources: &EngineResources) -> ImageEmbedder {
        ImageEmbedder { calls: Calls::new(model), images: resources.images().clone() }
    }
}

impl IntoModelSpec<ImageEmbedding> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<ImageEmbedding>> {
        self.loaded_by::<ImageEmbeddingModel>(id, resources)
    }
}

/// Handle to an image embedding model of an engine. Cheap to clone; its settings are its own. Every vector has the length
/// 1, so that the product of two is the cosine of their angle.
///
/// ```no_run
/// use candle_actors::{Engine, ImageSource, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("openai/clip-vit-large-patch14");
/// let engine = Engine::builder().image_embedding("clip", source).start().await?;
/// let clip = engine.image_embedding("clip")?;
/// let image = clip.embed_image(ImageSource::Path("cat.jpg".into())).await?;
/// let text = clip.embed_text("a photo of a cat").await?;
/// let similarity: f32 = image.iter().zip(&text).map(|(x, y)| x * y).sum();
/// # drop(similarity);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImageEmbedder {
    calls: Calls<ImageEmbedding>,
    images: ImageInput,
}

call_settings!(ImageEmbedder for ImageEmbedding);

impl ImageEmbedder {
    /// Embeds one image. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of [`ImageInput::picture`]; [`Error::InvalidInput`](crate::Error::InvalidInput);
    /// [`Error::Actor`](crate::Error::Actor), of which [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn embed_image(&self, image: ImageSource) -> Result<Vec<f32>> {
        only(self.call(vec![image], Lane::Interactive).await?)
    }

    /// Embeds images: one vector each, in order. They are split into requests of at most 4, and of no more addresses than
    /// [`UrlSettings::downloads`](crate::UrlSettings::downloads), that run side by side in the batch lane, 4 at a time,
    /// each fetched and decoded when it is its turn; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::embed_image`]; [`Error::InvalidInput`](crate::Error::InvalidInput) for no images at all.
    pub async fn embed_images(&self, images: impl IntoIterator<Item = ImageSource>) -> Result<Vec<Vec<f32>>> {
        let requests = self.images.portions(images, IMAGES_PER_REQUEST);
        let call = |images| self.call(images, Lane::Batch);
        Ok(in_order(requests, "images", IMAGE_REQUESTS_AT_A_TIME, call).await?.concat())
    }

    /// Embeds one text into the images' space.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), also for a model without a text side;
    /// [`Error::Actor`](crate::Error::Actor).
    pub async fn embed_text(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        only(self.calls.call(EmbedImages::texts([text]), Lane::Interactive).await?.vectors)
    }

    /// Embeds texts into the images' space: one vector each, in order. They are split into requests of at most 32 that
    /// run side by side in the batch lane, 16 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::embed_text`]; [`Error::InvalidInput`](crate::Error::InvalidInput) for no texts at all.
    pub async fn embed_texts<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let requests = portions(texts.into_iter().map(Into::into), TEXTS_PER_REQUEST);
        let call = async |texts: Vec<String>| {
            Ok(self.calls.call(EmbedImages::texts(texts), Lane::Batch).await?.vectors)
        };
        Ok(in_order(requests, "texts", TEXT_REQUESTS_AT_A_TIME, call).await?.concat())
    }

    /// Fetches and decodes images, and embeds them. A request that would be refused afterwards is refused before anything
    /// is fetched.
    async fn call(&self, images: Vec<ImageSource>, lane: Lane) -> Result<Vec<Vec<f32>>> {
        let (mut options, mut request) = (self.calls.options(lane), EmbedImages::images(images));
        self.calls.model.check(&request, &options)?;
        if let EmbedInput::Images(images) = &mut request.input {
            (*images, options) = self.calls.decoded(&self.images, std::mem::take(images), options).await?;
        }
        Ok(self.calls.model.call(request, options).await?.vectors)
    }
}
