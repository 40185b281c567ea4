//! The handle to one vision model: an image and a question in, a stream of text out. The image is fetched and decoded
//! here, in the caller's task. Queues, workers and memory are left to the actors.

use std::time::Duration;

use model_actors::{
    CallOptions, Completion, DescribeImage, Lane, ModelHandle, ModelId, Priority, ReplyStream, Vision,
};

use crate::capabilities::calls::{Calls, WhenFull};
use crate::error::{Error, Result};
use crate::image_input::ImageInput;

/// A vision model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder().vision("model", Source::repository("Salesforce/blip-image-captioning-large")).start().await?;
/// let model = engine.vision("model")?;
/// assert_eq!(model.id().to_string(), "model");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImageDescriber {
    calls: Calls<Vision>,
    images: ImageInput,
}

impl ImageDescriber {
    pub(crate) fn new(model: ModelHandle<Vision>, images: ImageInput) -> Self {
        Self { calls: Calls::new(model), images }
    }

    /// How urgent its requests are against others of the model.
    pub fn priority(self, priority: Priority) -> Self {
        Self { calls: self.calls.priority(priority), ..self }
    }

    /// The time that each request has for queue, load and run, instead of the model's own, the wait for room for its
    /// image included. Fetching and decoding the image has limits of its own, in [`crate::ImageSettings`].
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout), ..self }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model. Its workers take pixels alone, such as
    /// [`ImageInput::picture`] gives.
    pub fn model(&self) -> &ModelHandle<Vision> {
        &self.calls.model
    }

    /// The whole text. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// [`crate::Error::Actor`], of which [`crate::Error::root`] gives a load's own error; the errors of
    /// [`ImageInput::picture`].
    pub async fn describe(&self, request: impl Into<DescribeImage>) -> Result<Completion> {
        let (request, options) = self.decoded(request.into(), WhenFull::Wait).await?;
        Ok(self.model().call(request, options).await?)
    }

    /// As [`Self::describe`], but does not wait while the model's queue or the memory for images is full: it fails then before
    /// the image is fetched, and once more if either became full until the image was decoded.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn try_describe(&self, request: impl Into<DescribeImage>) -> Result<Completion> {
        let (request, options) = self.decoded(request.into(), WhenFull::FailAtOnce).await?;
        Ok(self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail)).await?)
    }

    /// Pieces of text as they are made, then the whole text. Dropping the stream stops the model within a step.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn stream(&self, request: impl Into<DescribeImage>) -> Result<ReplyStream<Vision>> {
        let (request, options) = self.decoded(request.into(), WhenFull::Wait).await?;
        Ok(self.model().stream(request, options).await?)
    }

    /// As [`Self::stream`], but does not wait while the model's queue or the memory for images is full: it fails then before
    /// the image is fetched, and once more if either became full until the image was decoded.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn try_stream(&self, request: impl Into<DescribeImage>) -> Result<ReplyStream<Vision>> {
        let (request, options) = self.decoded(request.into(), WhenFull::FailAtOnce).await?;
        Ok(self.model().stream(request, options.with_when_full(model_actors::WhenFull::Fail)).await?)
    }

    /// The request with its image's pixels, and how to send it.
    async fn decoded(
        &self,
        request: DescribeImage,
        when_full: WhenFull,
    ) -> Result<(DescribeImage, CallOptions)> {
        let lane = Lane::Interactive;
        self.calls.check(&request, lane, when_full)?;
        let (mut images, options) =
            self.calls.decoded(&self.images, vec![request.image.clone()], lane, when_full).await?;
        let image = images.pop().ok_or_else(|| Error::InvalidInput("no image came back".to_owned()))?;
        Ok((request.with_image(image), options))
    }
}
