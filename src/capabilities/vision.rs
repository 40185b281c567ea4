//! The handle to one vision model: an image and a question in, a stream of text out. The image is fetched and decoded
//! here, in the caller's task. Queues, workers and memory are left to the actors.

use std::time::Duration;

use model_actors::{
    Completion, DescribeImage, ImageSource, Lane, ModelHandle, ModelId, Priority, ReplyStream, Vision,
};

use crate::capabilities::calls::Calls;
use crate::error::Result;
use crate::image_input::ImageInput;

/// A vision model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder().vision("model", Source::repository("Salesforce/blip-image-captioning-base")).start().await?;
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

    /// The time that each request has for queue, load and run, instead of the model's own.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout), ..self }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model.
    pub fn model(&self) -> &ModelHandle<Vision> {
        &self.calls.model
    }

    /// The whole text. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// [`crate::Error::Actor`], of which [`crate::Error::root`] gives a load's own error; the errors of
    /// [`ImageInput::picture`].
    pub async fn describe(&self, request: impl Into<DescribeImage>) -> Result<Completion> {
        let request = self.decoded(request.into()).await?;
        Ok(self.model().call(request, self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::describe`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn try_describe(&self, request: impl Into<DescribeImage>) -> Result<Completion> {
        let request = self.decoded(request.into()).await?;
        Ok(self.model().try_call(request, self.calls.options(Lane::Interactive)).await?)
    }

    /// Pieces of text as they are made, then the whole text. Dropping the stream stops the model within a step.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn stream(&self, request: impl Into<DescribeImage>) -> Result<ReplyStream<Vision>> {
        let request = self.decoded(request.into()).await?;
        Ok(self.model().stream(request, self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::stream`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn try_stream(&self, request: impl Into<DescribeImage>) -> Result<ReplyStream<Vision>> {
        let request = self.decoded(request.into()).await?;
        Ok(self.model().try_stream(request, self.calls.options(Lane::Interactive)).await?)
    }

    /// The request with its image's pixels.
    async fn decoded(&self, request: DescribeImage) -> Result<DescribeImage> {
        let image = ImageSource::Picture(self.images.picture(request.image).await?);
        Ok(DescribeImage { image, ..request })
    }
}
