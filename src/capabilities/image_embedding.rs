//! The handle to one image embedding model: images in, vectors out, and texts into the same space. Images are fetched
//! and decoded here, in the caller's task, before a request takes a place in the queue. Queues, workers and memory are
//! left to the actors.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use model_actors::{
    CallOptions, EmbedImages, ImageEmbedding, ImageSource, Lane, ModelHandle, ModelId, Priority,
};

use crate::capabilities::calls::{Calls, WhenFull};
use crate::error::{Error, Result};
use crate::image_input::ImageInput;

/// Most images of one request that a batch is split into. A decoded photograph takes tens of megabytes.
const IMAGES_PER_REQUEST: usize = 4;
/// Most texts of one request that a batch is split into.
const TEXTS_PER_REQUEST: usize = 32;
/// Requests of one batch of images that are under way at a time.
const IMAGE_REQUESTS_AT_A_TIME: usize = 4;
/// Requests of one batch of texts that are under way at a time; fewer than the batch lane has slots, so that one caller
/// does not fill it.
const TEXT_REQUESTS_AT_A_TIME: usize = 16;

/// An image embedding model of an engine. Cheap to clone; its settings are its own. Every vector has the length 1, so
/// that the product of two is the cosine of their angle.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// use model_actors::ImageSource;
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

impl ImageEmbedder {
    pub(crate) fn new(model: ModelHandle<ImageEmbedding>, images: ImageInput) -> Self {
        Self { calls: Calls::new(model), images }
    }

    /// How urgent its requests are against others of the model.
    pub fn priority(self, priority: Priority) -> Self {
        Self { calls: self.calls.priority(priority), ..self }
    }

    /// The time that each request has for queue, load and run, instead of the model's own, the wait for room for its
    /// images included. Fetching and decoding an image has limits of its own, in [`crate::ImageSettings`].
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout), ..self }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model. Its workers take pixels alone, such as
    /// [`ImageInput::picture`] gives.
    pub fn model(&self) -> &ModelHandle<ImageEmbedding> {
        &self.calls.model
    }

    /// One image's vector. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// Those of [`ImageInput::picture`]; [`Error::Actor`], of which [`Error::root`] gives a load's own error.
    pub async fn embed_image(&self, image: ImageSource) -> Result<Vec<f32>> {
        let (request, options) = self.pictures(vec![image], Lane::Interactive, WhenFull::Wait).await?;
        only(self.model().call(request, options).await?)
    }

    /// As [`Self::embed_image`], but does not wait while the model's queue or the memory for images is full: it fails
    /// then before the image is fetched, and once more if either became full until the image was decoded.
    ///
    /// # Errors
    /// As [`Self::embed_image`].
    pub async fn try_embed_image(&self, image: ImageSource) -> Result<Vec<f32>> {
        let (request, options) = self.pictures(vec![image], Lane::Interactive, WhenFull::FailAtOnce).await?;
        only(self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail)).await?)
    }

    /// One vector for each image, in order. The images are split into requests of at most 4, and of no more addresses than
    /// [`crate::UrlSettings::downloads`], that run side by side in the batch lane, 4 at a time, each fetched and decoded when it is its turn; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::embed_image`]; [`Error::InvalidInput`] for no images at all.
    pub async fn embed_images(&self, images: impl IntoIterator<Item = ImageSource>) -> Result<Vec<Vec<f32>>> {
        let call = |images| async move {
            let (request, options) = self.pictures(images, Lane::Batch, WhenFull::Wait).await?;
            Ok(self.model().call(request, options).await?)
        };
        self.images_in_order(images, call).await
    }

    /// As [`Self::embed_images`], but fails if the queue or the memory for images is full for one of the requests, its own
    /// others included: before its images are fetched, or afterwards.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    pub async fn try_embed_images(
        &self,
        images: impl IntoIterator<Item = ImageSource>,
    ) -> Result<Vec<Vec<f32>>> {
        let call = |images| async move {
            let (request, options) = self.pictures(images, Lane::Batch, WhenFull::FailAtOnce).await?;
            Ok(self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail)).await?)
        };
        self.images_in_order(images, call).await
    }

    /// One text's vector, in the images' space.
    ///
    /// # Errors
    /// [`Error::Actor`], also for a model without a text side; [`Error::root`] gives a load's own error.
    pub async fn embed_text(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        let request = EmbedImages::Texts(vec![text.into()]);
        only(self.model().call(request, self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::embed_text`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::embed_text`].
    pub async fn try_embed_text(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        let request = EmbedImages::Texts(vec![text.into()]);
        only(
            self.model()
                .call(
                    request,
                    self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
                )
                .await?,
        )
    }

    /// One vector for each text, in order, in the images' space. The texts are split into requests of at most 32 that
    /// run side by side in the batch lane, 16 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::embed_text`]; [`Error::InvalidInput`] for no texts at all.
    pub async fn embed_texts<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Batch);
        self.texts_in_order(texts, |request| self.model().call(request, options)).await
    }

    /// As [`Self::embed_texts`], but fails at once if the queue is full for one of the requests.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    pub async fn try_embed_texts<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Batch);
        self.texts_in_order(texts, |request| {
            self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail))
        })
        .await
    }

    async fn images_in_order<F>(
        &self,
        images: impl IntoIterator<Item = ImageSource>,
        call: impl Fn(Vec<ImageSource>) -> F,
    ) -> Result<Vec<Vec<f32>>>
    where
        F: Future<Output = Result<Vec<Vec<f32>>>>,
    {
        let requests = self.images.portions(images, IMAGES_PER_REQUEST);
        if requests.is_empty() {
            return Err(Error::InvalidInput("the batch holds no images".to_owned()));
        }
        stream::iter(requests).map(call).buffered(IMAGE_REQUESTS_AT_A_TIME).try_concat().await
    }

    async fn texts_in_order<T: Into<String>, F>(
        &self,
        texts: impl IntoIterator<Item = T>,
        call: impl Fn(EmbedImages) -> F,
    ) -> Result<Vec<Vec<f32>>>
    where
        F: Future<Output = model_actors::Result<Vec<Vec<f32>>>>,
    {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        if texts.is_empty() {
            return Err(Error::InvalidInput("the batch holds no texts".to_owned()));
        }
        let requests: Vec<EmbedImages> =
            texts.chunks(TEXTS_PER_REQUEST).map(|texts| EmbedImages::Texts(texts.to_vec())).collect();
        let answers = stream::iter(requests).map(call).buffered(TEXT_REQUESTS_AT_A_TIME);
        Ok(answers.try_concat().await?)
    }

    /// Fetches and decodes.
    async fn pictures(
        &self,
        images: Vec<ImageSource>,
        lane: Lane,
        when_full: WhenFull,
    ) -> Result<(EmbedImages, CallOptions)> {
        let request = EmbedImages::Images(images);
        self.calls.check(&request, lane, when_full)?;
        let EmbedImages::Images(images) = request else { return Ok((request, self.calls.options(lane))) };
        let (images, options) = self.calls.decoded(&self.images, images, lane, when_full).await?;
        Ok((EmbedImages::Images(images), options))
    }
}

fn only(vectors: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    vectors.into_iter().next().ok_or_else(|| Error::InvalidInput("no vector came back".to_owned()))
}
