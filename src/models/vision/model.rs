//! A loaded vision model without actors around it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use model_actors::{Completion, DescribeImage, Footprint};

use super::request::ActiveRequest;
use super::{LoadedModel, VisionPlan};
use crate::device::ComputeThreads;
use crate::error::{Error, Result};
use crate::image_input::opened;
use crate::loader::{WorkerModel, standalone_model};
use crate::models::continuous_batching::{Part, Start, Steps as _};

/// A loaded vision model without actors around it, for tools and for comparison: the very code that a worker runs. A
/// clone shares the weights.
///
/// ```no_run
/// use candle_actors::{DescribeImage, ImageSource, Source, StandaloneModel, VisionModel};
/// # fn main() -> candle_actors::Result<()> {
/// let model = VisionModel::load(Source::repository("Salesforce/blip-image-captioning-large"))?;
/// let request = DescribeImage::new(ImageSource::Path("cat.jpg".into())).with_max_tokens(30);
/// let completion = model.describe(&request)?;
/// println!("{}", completion.text);
/// # Ok(())
/// # }
/// ```
pub struct VisionModel {
    pub(super) shared: Arc<LoadedModel>,
    pub(super) threads: ComputeThreads,
}

/// The state of a model that has seen images and read a prompt, before its first word, for comparison with a reference.
///
/// ```
/// use candle_actors::ExaminedImage;
/// fn likeliest(examined: &ExaminedImage) -> Option<usize> {
///     let logits = examined.logits.iter().enumerate();
///     logits.max_by(|left, right| left.1.total_cmp(right.1)).map(|(token, _)| token)
/// }
/// let examined =
///     ExaminedImage { pixels: vec![], features: vec![], prompt: vec![7], logits: vec![0.5, 2.0, -1.0] };
/// assert_eq!(likeliest(&examined), Some(1));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ExaminedImage {
    /// The crops that the vision tower sees, `3 × height × width` numbers each.
    pub pixels: Vec<Vec<f32>>,
    /// The images' rows as the text model sees them, one after another.
    pub features: Vec<f32>,
    /// The prompt's tokens, with placeholders for the images.
    pub prompt: Vec<u32>,
    /// A number for each token of the vocabulary: how likely it is the first of the answer.
    pub logits: Vec<f32>,
}

standalone_model!(VisionModel for Vision);

impl WorkerModel for VisionModel {
    type Plan = VisionPlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = ComputeThreads::for_kernels(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl VisionModel {
    /// Maximum number of tokens of a conversation, with its images, and an answer together: the model's context, or what a worker's caches hold.
    pub fn context(&self) -> usize {
        self.shared.context.min(self.shared.limits.kv_cache_tokens)
    }

    /// Counts the steps run by this model and all that share its weights: layers of the vision tower or parts of them,
    /// parts of prompts, tokens.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    /// Answers in a conversation about images, with one answer.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), [`Error::PromptTooLong`](crate::Error::PromptTooLong), the
    /// errors of images, or [`Error::Compute`](crate::Error::Compute).
    pub fn describe(&self, request: &DescribeImage) -> Result<Completion> {
        self.describe_each(request, |_, _| {})
    }

    /// Answers, calling `each` with every token and the text that it completes.
    ///
    /// # Errors
    /// As [`VisionModel::describe`].
    pub fn describe_each(
        &self,
        request: &DescribeImage,
        mut each: impl FnMut(u32, Option<&str>),
    ) -> Result<Completion> {
        let Start { mut state, mut generation, others, .. } = self.opened(request)?;
        if !others.is_empty() {
            let reason =
                "a vision model without actors writes one answer at a time; ask an engine for several";
            return Err(Error::InvalidInput(reason.to_owned()));
        }
        loop {
            let rows = self.unread(&state);
            let made = self.step(&mut [Part { state: &mut state, rows }])?.pop().unwrap_or(Ok(None))?;
            let Some(mut logits) = made else { continue };
            let next = generation.accept(&mut logits)?;
            each(next.token, next.chunk.as_ref().map(|chunk| chunk.text.as_str()));
            if let Some(completion) = next.finished {
                return Ok(completion);
            }
            self.chosen(&mut state, next.token);
        }
    }

    /// Reads images and a prompt up to the logits of the first word.
    ///
    /// # Errors
    /// As [`VisionModel::describe`].
    pub fn examine(&self, request: &DescribeImage) -> Result<ExaminedImage> {
        let mut asked = self.opened(request)?.state;
        let crops = asked.crops.iter().flatten();
        let pixels = crops.map(|crop| Ok(crop.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?;
        let prompt = asked.prompt.tokens.clone();
        let mut features = Vec::new();
        loop {
            if let Some(logits) = self.threads.run(|| asked.advance(&self.shared))? {
                return Ok(ExaminedImage { pixels, features, prompt, logits });
            }
            if let Some(images) = asked.looked() {
                let rows = images.iter().map(|image| Ok(image.rows.flatten_all()?.to_vec1()?));
                features = rows.collect::<Result<Vec<Vec<f32>>>>()?.concat();
            }
        }
    }

    /// Decodes the images of a request, and begins it.
    fn opened(&self, request: &DescribeImage) -> Result<Start<ActiveRequest>> {
        let pictures = request.images().map(opened).collect::<Result<Vec<_>>>()?;
        ActiveRequest::begin(
            &self.shared,
            &pictures.iter().map(|picture| &**picture).collect::<Vec<_>>(),
            request,
        )
    }
}
