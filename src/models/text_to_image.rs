//! Text to image: from a repository in the layout of diffusers to a model that paints. The list of families is here,
//! and the contract that they fulfil: a [`Pipeline`] is nothing but weights and is shared by all workers, a
//! [`Scheduler`] is the state of one picture. Noise, guidance, the loop of steps and the roles of the actors' model
//! contract are the same for every family; what one computes is left to its file.

mod autoencoder;
mod clip;
mod flow_match;
mod flux;
mod mmdit;
mod layers;
mod noise;
mod painting;
mod plan;
mod preview;
mod prompt;
mod repository;
mod resnet;
mod schedule;
mod sd3;
mod stable_diffusion;
mod stable_diffusion_xl;
mod t5;
mod unet;
mod worker;
#[cfg(test)]
mod flow_tests;

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod worker_tests;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{
    Bytes, Failure, Footprint, LoadContext, Loader, Model, PaintImage, PaintStep, Picture, TextToImage,
    Weights,
};

use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::families::Family;
use crate::loader::{LoadOptions, ModelLoader};
use crate::source::Source;
use noise::Noise;
use painting::{Advance, Painting};
pub(crate) use plan::TextToImagePlan;
use repository::{Part, PartWeights, Repository};

/// The families, by the class of the pipeline in `model_index.json`, in the order that errors list them. A new one is
/// its file and its line here.
const FAMILIES: &[Family<Read>] =
    &[stable_diffusion::FAMILY, stable_diffusion_xl::FAMILY, sd3::FAMILY, flux::FAMILY];

/// What errors call it.
const CAPABILITY: &str = "text to image";

/// How a family reads the configuration files of a repository.
type Read = fn(&Repository<'_>) -> Result<Box<dyn Architecture>>;

/// What a request asks for is checked as far as no model is needed for it: whether any family has its scheduler.
///
/// # Errors
/// [`Error::InvalidInput`].
pub(crate) fn check_request(request: &PaintImage) -> Result<()> {
    match request.scheduler.as_deref() {
        Some(wanted) if !schedule::is_known(wanted) && !flow_match::is_known(wanted) => {
            let known = schedule::names().join(", ");
            let reason =
                format!("the scheduler {wanted:?} is unknown; known are: {known}, {}", flow_match::NAME);
            Err(Error::InvalidInput(reason))
        }
        _ => Ok(()),
    }
}

/// What gemm, the patches of convolutions and the allocator keep for a worker.
const THREAD_SCRATCH: Bytes = Bytes::mib(16);

/// A pipeline that is not loaded: what its configuration files tell.
trait Architecture: Send + Sync {
    /// What requests get that do not say otherwise.
    fn defaults(&self) -> Defaults;
    fn canvas(&self) -> Canvas;
    /// The parts that have weights.
    fn parts(&self) -> Vec<Part>;
    /// What painting so many pixels needs besides the weights.
    fn scratch(&self, pixels: usize) -> Bytes;
    /// Reads the weights of the parts, in their order, and the tokenizers.
    fn load(
        &self,
        weights: &PartWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>>;
}

/// A loaded pipeline: weights only, so that all workers share one.
trait Pipeline: Send + Sync {
    /// The noise schedule for one picture: by the name that the request gives, or the repository's own.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name, which lists the known ones, and for more steps than it has.
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>>;
    /// Runs the text encoders.
    fn condition(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning>;
    /// What the model makes of latents at a moment of the schedule: the noise, or whatever its scheduler works on. The
    /// input `(1, channels, height, width)` is the same for every row of the conditioning; `(rows, channels, height,
    /// width)` comes back.
    fn predict(
        &self,
        input: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor>;
    /// Latents `(1, channels, height, width)` to colours `(1, 3, height, width)`, of which -1 to 1 can be shown.
    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor>;
}

/// The noise schedule of one picture under way. How often the model is called is up to it: some make a call or so more
/// than there are steps.
trait Scheduler: Send {
    /// For each call of the model the moment that it is told, the noisiest first.
    fn timesteps(&self) -> &[f64];
    /// What the starting noise is multiplied with.
    fn initial_scale(&self) -> f64;
    /// The latents as the model wants to see them in a call, which is counted from 0.
    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor>;
    /// The latents after a call with this output. Calls come in order, each once.
    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, noise: &mut Noise) -> Result<Tensor>;
    /// The picture behind the noise, as far as a call's output tells, from the latents before that call's step.
    fn picture(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor>;
}

/// What requests get that do not say otherwise.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    width: usize,
    height: usize,
    steps: usize,
    /// 1 or less means none.
    guidance: f64,
}

/// How pixels relate to latents.
#[derive(Debug, Clone, Copy)]
struct Canvas {
    /// Channels of the latents.
    channels: usize,
    /// Pixels along a side for each latent.
    scale: usize,
    /// A side has a multiple of so many pixels; itself a multiple of `scale`.
    multiple: usize,
}

/// A request that is checked and has the model's own values where it has none.
#[derive(Debug, Clone)]
struct Settings {
    prompt: String,
    negative_prompt: Option<String>,
    width: usize,
    height: usize,
    steps: usize,
    guidance: f64,
    scheduler: Option<String>,
    preview: bool,
}

/// What the text encoders made of the prompts: one row, or two where the guidance needs a prediction without the
/// prompt, which then comes first.
struct Conditioning {
    /// `(rows, tokens, width)`.
    hidden: Tensor,
    /// `(rows, width)`, for models that are told more than the tokens' vectors.
    pooled: Option<Tensor>,
    /// How much stronger than without the prompt; used where there are two rows.
    guidance: f64,
}

/// What a long computation looks at between its parts: it ticks progress, and tells when nobody waits any more.
struct Watch<'a>(&'a (dyn Fn() -> bool + Sync));

impl Watch<'_> {
    /// # Errors
    /// [`Error::Stopped`].
    fn check(&self) -> Result<()> {
        if (self.0)() { Ok(()) } else { Err(Error::Stopped) }
    }
}

/// A model in memory, shared by its workers.
struct LoadedModel {
    pipeline: Box<dyn Pipeline>,
    device: Device,
    compute: Compute,
    footprint: Footprint,
    plan: Arc<TextToImagePlan>,
}

pub(crate) struct SharedModel(Arc<LoadedModel>);

impl Weights<TextToImage> for SharedModel {
    fn footprint(&self) -> Footprint {
        self.0.footprint
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextToImage>>, Failure> {
        Ok(Box::new(TextToImageModel::of(Arc::clone(&self.0))?))
    }
}

/// A loaded text to image model without actors around it, for tools and for comparison: the very code that a worker
/// runs. A clone shares the weights.
///
/// ```no_run
/// use candle_actors::{Source, TextToImageModel};
/// # fn main() -> candle_actors::Result<()> {
/// let model = TextToImageModel::load(Source::directory("models/sdxl-turbo"))?;
/// let picture = model.paint(&"a red circle".into(), |step| eprintln!("{} of {}", step.step, step.of))?;
/// assert_eq!((picture.width, picture.height), model.default_size());
/// # Ok(())
/// # }
/// ```
pub struct TextToImageModel {
    shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

impl TextToImageModel {
    /// Loads a model onto the processor, for the calling thread alone.
    ///
    /// # Errors
    /// Whatever is wrong with the source, its files or its weights.
    pub fn load(source: Source) -> Result<Self> {
        Self::load_with(source, LoadOptions::default())
    }

    /// Loads a model.
    ///
    /// # Errors
    /// As [`TextToImageModel::load`].
    pub fn load_with(source: Source, options: LoadOptions) -> Result<Self> {
        Self::of(ModelLoader::<TextToImagePlan>::load_alone(source, options)?.0)
    }

    /// What an engine registers, for a registration of your own: a [`model_actors::ModelSpec`] with its own settings,
    /// which the engine then finds by its id.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a setting that is out of range.
    pub fn loader(source: Source, options: LoadOptions) -> Result<impl Loader<TextToImage>> {
        ModelLoader::<TextToImagePlan>::alone(source, options)
    }

    fn of(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = ComputeThreads::pool(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    /// Another one over the same weights, with compute threads of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn try_clone(&self) -> Result<Self> {
        Self::of(Arc::clone(&self.shared))
    }

    /// Width and height in pixels of what it paints unless asked otherwise.
    pub fn default_size(&self) -> (usize, usize) {
        let defaults = self.shared.plan.architecture.defaults();
        (defaults.width, defaults.height)
    }

    /// What it takes in memory.
    pub fn footprint(&self) -> Footprint {
        self.shared.footprint
    }

    /// Paints a picture and tells of each step.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], [`Error::NotFiniteOutput`] or [`Error::Compute`].
    pub fn paint(&self, request: &PaintImage, on_step: impl FnMut(PaintStep)) -> Result<Picture> {
        self.paint_with(request, Noise::seeded(request.seed), on_step)
    }

    /// As [`TextToImageModel::paint`], from noise that is given in place of the seed: normally distributed numbers, as
    /// many as the latents have, channel by channel and row by row, and as many again for each step of a scheduler
    /// that adds noise.
    ///
    /// # Errors
    /// As [`TextToImageModel::paint`]; [`Error::InvalidInput`] also where the noise does not suffice.
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
        let mut painting = self.begin(request, noise, &watch)?;
        loop {
            match self.advance(&mut painting, &watch)? {
                Advance::Step(step) => on_step(step),
                Advance::Finished(picture) => return Ok(picture),
            }
        }
    }

    /// Everything before the first step.
    fn begin(&self, request: &PaintImage, noise: Noise, watch: &Watch<'_>) -> Result<Painting> {
        let settings = self.shared.plan.settings(request)?;
        self.threads.run(|| Painting::begin(&self.shared, &settings, noise, watch))
    }

    /// One step, or the picture after the last.
    fn advance(&self, painting: &mut Painting, watch: &Watch<'_>) -> Result<Advance> {
        self.threads.run(|| painting.advance(self.shared.pipeline.as_ref(), watch))
    }
}
