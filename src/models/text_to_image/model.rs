//! A loaded text to image model: what the actors share and build workers from, and the public type that tools
//! call without actors. Running a batch is left to `worker`.

use std::sync::Arc;

use model_actors::{Footprint, PaintImage, PaintStep, Picture};

use super::denoising::{DenoisingLoop, Progress};
use super::noise::Noise;
use super::pipeline::Watch;
use super::plan::{LoadedModel, TextToImagePlan};
use crate::device::ComputeThreads;
use crate::error::Result;
use crate::loader::{WorkerModel, standalone_model};

/// A loaded text to image model without actors around it, for tools and for comparison: the code that a
/// worker runs.
///
/// Previews are decoded as the picture is, at a low resolution. A tiny autoencoder (TAESD) in the folder `taesd` of the
/// model's repository, with its `config.json` and its weights as diffusers saves them, makes them in its place; one in
/// the folder `vae` makes the pictures too, and encodes the image that a request begins with.
///
/// ```no_run
/// use candle_actors::{Source, StandaloneModel, TextToImageModel};
/// # fn main() -> candle_actors::Result<()> {
/// let model = TextToImageModel::load(Source::directory("models/sdxl-turbo"))?;
/// let picture = model.paint(&"a red circle".into(), |step| eprintln!("{} of {}", step.step, step.of))?;
/// assert_eq!((picture.width, picture.height), model.default_size());
/// # Ok(())
/// # }
/// ```
pub struct TextToImageModel {
    pub(super) shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

standalone_model!(TextToImageModel for TextToImage);

impl WorkerModel for TextToImageModel {
    type Plan = TextToImagePlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = ComputeThreads::pool(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl TextToImageModel {
    /// Width and height in pixels of an image whose request gives no size.
    pub fn default_size(&self) -> (usize, usize) {
        let defaults = self.shared.plan.architecture.defaults();
        (defaults.width, defaults.height)
    }

    /// Paints an image; `on_step` is called after each diffusion step.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), [`Error::NotFiniteOutput`](crate::Error::NotFiniteOutput) or [`Error::Compute`](crate::Error::Compute).
    pub fn paint(&self, request: &PaintImage, on_step: impl FnMut(PaintStep)) -> Result<Picture> {
        self.paint_with(request, Noise::seeded(request.seed), on_step)
    }

    /// Paints an image from the given noise in place of a seed: normally distributed numbers, as many as the
    /// latents have, channel by channel and row by row, and as many again for each step of a scheduler that
    /// adds noise.
    ///
    /// # Errors
    /// As [`TextToImageModel::paint`]; [`Error::InvalidInput`](crate::Error::InvalidInput) also for too little noise.
    pub fn paint_from_noise(
        &self,
        request: &PaintImage,
        noise: &[f32],
        on_step: impl FnMut(PaintStep),
    ) -> Result<Picture> {
        self.paint_with(request, Noise::given(noise.to_vec()), on_step)
    }

    fn paint_with(
        &self,
        request: &PaintImage,
        noise: Noise,
        mut on_step: impl FnMut(PaintStep),
    ) -> Result<Picture> {
        let watch = Watch(&|| true);
        let mut denoising = self.start(request, noise, &watch)?;
        loop {
            match self.advance(&mut denoising, &watch)? {
                Progress::Step(step) => on_step(step),
                Progress::Finished(picture) => return Ok(picture),
            }
        }
    }

    /// Does everything before the first step.
    pub(super) fn start(
        &self,
        request: &PaintImage,
        noise: Noise,
        watch: &Watch<'_>,
    ) -> Result<DenoisingLoop> {
        let LoadedModel { pipeline, device, plan, .. } = &*self.shared;
        let (settings, space) = (plan.settings(request)?, plan.architecture.latent_space());
        self.threads.run(|| DenoisingLoop::start(pipeline.as_ref(), space, &settings, noise, device, watch))
    }

    /// Does one step, or decodes the image after the last.
    pub(super) fn advance(&self, denoising: &mut DenoisingLoop, watch: &Watch<'_>) -> Result<Progress> {
        self.threads.run(|| denoising.advance(self.shared.pipeline.as_ref(), watch))
    }
}
