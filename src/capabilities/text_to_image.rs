//! The handle to one text to image model: a prompt in, a step event for each diffusion step and the picture out.
//! Queues, workers and memory are left to the actors.

use std::time::Duration;

use model_actors::{Lane, ModelHandle, ModelId, PaintImage, Picture, Priority, ReplyStream, TextToImage};

use crate::capabilities::calls::Calls;
use crate::error::Result;
use crate::models::text_to_image::check_request;

/// A text to image model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use std::time::Duration;
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("stabilityai/sdxl-turbo");
/// let engine = Engine::builder().text_to_image("model", source).start().await?;
/// let painter = engine.text_to_image("model")?.timeout(Duration::from_secs(600));
/// let picture = painter.paint("a red circle left of a blue square").await?;
/// assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImagePainter {
    calls: Calls<TextToImage>,
}

impl ImagePainter {
    pub(crate) fn new(model: ModelHandle<TextToImage>) -> Self {
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
    pub fn model(&self) -> &ModelHandle<TextToImage> {
        &self.calls.model
    }

    /// The whole picture. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] for a scheduler that no model has; [`crate::Error::Actor`], of which
    /// [`crate::Error::root`] gives a load's own error.
    pub async fn paint(&self, request: impl Into<PaintImage>) -> Result<Picture> {
        Ok(self.model().call(unseen(request.into())?, self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::paint`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::paint`].
    pub async fn try_paint(&self, request: impl Into<PaintImage>) -> Result<Picture> {
        Ok(self
            .model()
            .call(
                unseen(request.into())?,
                self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
            )
            .await?)
    }

    /// A chunk for each diffusion step, then the whole picture. Dropping the stream stops the model within a step.
    ///
    /// With [`PaintImage::preview`] each chunk shows what the picture is going to be, 128 pixels along its longer side:
    /// the model's own decoder runs at each step, over that many pixels. For a picture of 512 x 512 pixels that is a
    /// sixteenth of what decoding the whole costs.
    ///
    /// # Errors
    /// As [`Self::paint`].
    pub async fn stream(&self, request: impl Into<PaintImage>) -> Result<ReplyStream<TextToImage>> {
        Ok(self.model().stream(checked(request.into())?, self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::stream`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::paint`].
    pub async fn try_stream(&self, request: impl Into<PaintImage>) -> Result<ReplyStream<TextToImage>> {
        Ok(self
            .model()
            .stream(
                checked(request.into())?,
                self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
            )
            .await?)
    }
}

fn checked(request: PaintImage) -> Result<PaintImage> {
    check_request(&request).map(|()| request)
}

/// For those who see no steps, none is shown.
fn unseen(request: PaintImage) -> Result<PaintImage> {
    Ok(checked(request)?.with_preview(false))
}
