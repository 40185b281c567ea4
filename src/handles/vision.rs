//! The handle to one vision model: a conversation about images in, a stream of text out. The images are fetched and
//! decoded here, in the caller's task. Queues, workers and memory are left to the actors.

use model_actors::{
    CallOptions, Completion, DescribeImage, ImageSource, Lane, ModelHandle, ModelId, ModelSpec, ReplyStream,
    Vision,
};

use crate::error::Result;
use crate::handles::calls::{Calls, call_settings};
use crate::image_input::ImageInput;
use crate::models::vision::VisionModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;
use crate::structured::ConstraintCheck;

impl EngineCapability for Vision {
    type Handle = ImageDescriber;

    fn handle(model: ModelHandle<Self>, resources: &EngineResources) -> ImageDescriber {
        let (images, constraints) = (resources.images().clone(), resources.constraints().clone());
        ImageDescriber { calls: Calls::new(model), images, constraints }
    }
}

impl IntoModelSpec<Vision> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<Vision>> {
        self.loaded_by::<VisionModel>(id, resources)
    }
}

/// Handle to a vision model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{DescribeImage, Engine, ImageSource, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("Salesforce/blip-image-captioning-large");
/// let engine = Engine::builder().vision("captions", source).start().await?;
/// let image = ImageSource::Path("cat.jpg".into());
/// let completion = engine.vision("captions")?.describe(DescribeImage::new(image)).await?;
/// println!("{}", completion.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImageDescriber {
    calls: Calls<Vision>,
    images: ImageInput,
    constraints: ConstraintCheck,
}

call_settings!(ImageDescriber for Vision);

impl ImageDescriber {
    /// Generates the whole text about an image, or the next message of a conversation. Dropping the future cancels the
    /// request.
    ///
    /// # Errors
    /// Those of [`ImageInput::picture`]; [`Error::PromptTooLong`](crate::Error::PromptTooLong),
    /// [`Error::InvalidInput`](crate::Error::InvalidInput); [`Error::Actor`](crate::Error::Actor), of which
    /// [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn describe(&self, request: impl Into<DescribeImage>) -> Result<Completion> {
        let (request, options) = self.decoded(request.into()).await?;
        Ok(self.calls.model.call(request, options).await?)
    }

    /// Generates the same in pieces, as they are made, with the whole text at the end. Dropping the stream
    /// stops the model within a step.
    ///
    /// # Errors
    /// As [`Self::describe`], for what is known before the first piece; the rest comes out of the stream.
    pub async fn stream(&self, request: impl Into<DescribeImage>) -> Result<ReplyStream<Vision>> {
        let (request, options) = self.decoded(request.into()).await?;
        Ok(self.calls.model.stream(request, options).await?)
    }

    /// The request with its images' pixels, and the options to send it with. A request that would be refused afterwards is
    /// refused before anything is fetched, but for one of more than its model takes, which is known once that is loaded.
    async fn decoded(&self, mut request: DescribeImage) -> Result<(DescribeImage, CallOptions)> {
        let options = self.calls.options(Lane::Interactive);
        self.calls.model.check(&request, &options)?;
        self.constraints.check(request.constraint.as_ref()).await?;
        let taken = |image: &mut ImageSource| std::mem::replace(image, ImageSource::Bytes(Vec::new()));
        let sources: Vec<ImageSource> = request.images_mut().map(taken).collect();
        let (images, options) = self.calls.decoded(&self.images, sources, options).await?;
        request.images_mut().zip(images).for_each(|(place, image)| *place = image);
        Ok((request, options))
    }
}
