//! The handle to one text to image model: a prompt in, an event for each diffusion step and the picture out. Images to begin
//! with are fetched and decoded here, in the caller's task. Queues, workers and memory are left to the actors.

use model_actors::{
    CallOptions, Lane, ModelHandle, ModelId, ModelSpec, PaintImage, Picture, ReplyStream, TextToImage,
};

use crate::error::Result;
use crate::handles::calls::{Calls, call_settings};
use crate::image_input::ImageInput;
use crate::models::text_to_image::{TextToImageModel, check_request};
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;

impl EngineCapability for TextToImage {
    type Handle = ImagePainter;

    fn handle(model: ModelHandle<Self>, resources: &EngineResources) -> ImagePainter {
        ImagePainter { calls: Calls::new(model), images: resources.images().clone() }
    }
}

impl IntoModelSpec<TextToImage> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<TextToImage>> {
        self.loaded_by::<TextToImageModel>(id, resources)
    }
}

/// Handle to a text to image model of an engine. Cheap to clone; its settings are its own.
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
    images: ImageInput,
}

call_settings!(ImagePainter for TextToImage);

impl ImagePainter {
    /// Paints the whole picture. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), also for a scheduler that no model has; those of
    /// [`ImageInput::picture`] for an image to begin with and its mask;
    /// [`Error::Actor`](crate::Error::Actor), of which [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn paint(&self, request: impl Into<PaintImage>) -> Result<Picture> {
        // Nobody sees the steps, so none is decoded.
        let (request, options) = self.decoded(request.into().with_preview(false)).await?;
        Ok(self.calls.model.call(request, options).await?)
    }

    /// Paints a picture with a chunk for each diffusion step, and the whole picture at the end. Dropping the stream stops
    /// the model within a step.
    ///
    /// With [`PaintImage::preview`] each chunk shows what the picture is going to be, 128 pixels along its longer side:
    /// the model's own decoder runs at each step, over that many pixels. For a picture of 512 x 512 pixels that is a
    /// sixteenth of what decoding the whole costs.
    ///
    /// # Errors
    /// As [`Self::paint`], for what is known before the first step; the rest comes out of the stream.
    pub async fn stream(&self, request: impl Into<PaintImage>) -> Result<ReplyStream<TextToImage>> {
        let (request, options) = self.decoded(request.into()).await?;
        Ok(self.calls.model.stream(request, options).await?)
    }

    /// The request with the pixels of its images, and the options to send it with. A request that would be refused
    /// afterwards is refused before anything is fetched.
    async fn decoded(&self, mut request: PaintImage) -> Result<(PaintImage, CallOptions)> {
        check_request(&request)?;
        let options = self.calls.options(Lane::Interactive);
        if request.image.is_some() {
            self.calls.model.check(&request, &options)?;
        }
        let Some(image) = request.image.take() else { return Ok((request, options)) };
        let sources = std::iter::once(image).chain(request.mask.take()).collect();
        let (images, options) = self.calls.decoded(&self.images, sources, options).await?;
        let mut images = images.into_iter();
        request.image = images.next();
        request.mask = images.next();
        Ok((request, options))
    }
}
