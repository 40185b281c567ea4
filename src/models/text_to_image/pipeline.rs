//! The contract that every family fulfils. An [`Architecture`] is what the configuration files tell before
//! weights are read; a [`Pipeline`] is weights alone, which all workers share; a [`Scheduler`] is the state
//! of one image. The names are those of diffusers, and so are the meanings.

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, Picture};

use super::noise::Noise;
use super::repository::{Component, ComponentWeights, Repository};
use crate::error::{Error, Result};

/// Reads a family's configuration files.
pub(super) type Read = fn(&Repository<'_>) -> Result<Box<dyn Architecture>>;

/// A pipeline whose weights are not loaded.
pub(super) trait Architecture: Send + Sync {
    /// Settings of requests that do not say otherwise.
    fn defaults(&self) -> Defaults;
    fn latent_space(&self) -> LatentSpace;
    /// The components that have weights.
    fn components(&self) -> Vec<Component>;
    /// Memory that an image of so many pixels needs besides the weights, at most.
    fn scratch(&self, pixels: usize) -> Bytes;
    /// Reads the weights and the tokenizers.
    fn load(
        &self,
        weights: &ComponentWeights,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Box<dyn Pipeline>>;
}

/// A loaded pipeline: text encoders, denoising network and autoencoder.
pub(super) trait Pipeline: Send + Sync {
    /// Starts the noise schedule of one image: the one that the request names, or the repository's own.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name, which lists the known ones, and for more steps than the schedule has.
    fn scheduler(&self, settings: &Settings) -> Result<Box<dyn Scheduler>>;
    /// True for a network that takes a mask and the image without what the mask leaves beside the latents, which it paints
    /// around (inpainting).
    fn takes_masked_images(&self) -> bool {
        false
    }
    /// Runs the text encoders.
    fn encode_prompt(&self, settings: &Settings, watch: &Watch<'_>) -> Result<Conditioning>;
    /// Runs the denoising network at a timestep. The latents `(1, channels, height, width)` are the same for
    /// every row of the conditioning; the prediction is `(rows, channels, height, width)`.
    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        watch: &Watch<'_>,
    ) -> Result<Tensor>;
    /// Encodes colours `(1, 3, height, width)` from -1 to 1 to latents `(1, channels, height, width)` as its scheduler has
    /// them, which are drawn from a distribution.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a model without an encoder.
    fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor>;
    /// Decodes latents `(1, channels, height, width)` to colours `(1, 3, height, width)` from -1 to 1; what
    /// is beyond has to be cut off.
    fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor>;
    /// The same for a preview, which a model may have a smaller decoder for.
    fn decode_preview(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        self.decode(latents, watch)
    }
}

/// The noise schedule of one image that is being made. It decides how often the network is called: some
/// schedules need one call more than there are steps.
pub(super) trait Scheduler: Send {
    /// The timestep of each call, the noisiest first.
    fn timesteps(&self) -> &[f64];
    /// Standard deviation of the noise that the first latents are.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }
    /// Scales the latents for a call, which is counted from 0.
    fn scale_model_input(&self, _call: usize, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.clone())
    }
    /// Adds noise to latents that have none, as much as there is when a call begins.
    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor>;
    /// Takes one step: from the latents before a call and its prediction to the latents after it. Calls come
    /// in order, each once.
    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        latents: &Tensor,
        noise: &mut Noise,
    ) -> Result<Tensor>;
    /// Estimates the latents without noise (`pred_original_sample`) from a call's prediction and the latents
    /// before its step.
    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor>;
}

/// Settings of requests that do not say otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// In pixels, like the height.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) steps: usize,
    /// Scale of the guidance; 1 or less means none.
    pub(super) guidance: f64,
}

/// Shape of the latents of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentSpace {
    pub(super) channels: usize,
    /// Pixels along a side for each latent.
    pub(super) scale: usize,
    /// A side of an image is a multiple of so many pixels; itself a multiple of `scale`.
    pub(super) multiple: usize,
}

/// A request that is checked, with the model's defaults filled in.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) prompt: String,
    pub(super) negative_prompt: Option<String>,
    /// In pixels, like the height.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) steps: usize,
    pub(super) guidance: f64,
    pub(super) scheduler: Option<String>,
    pub(super) preview: bool,
    /// The image to begin with, if any.
    pub(super) image: Option<FirstImage>,
}

/// The image that painting begins with, of the settings' size.
#[derive(Debug, Clone)]
pub(super) struct FirstImage {
    pub(super) picture: Picture,
    /// The part of the steps that are taken, above 0 to 1.
    pub(super) strength: f64,
    /// Places to be painted anew, of each pixel, row by row.
    pub(super) mask: Option<Vec<bool>>,
}

impl FirstImage {
    /// 1 for each latent of so many pixels a side that is painted anew, 0 for one that stays. A latent takes the pixel in its
    /// first corner, as the reference's nearest neighbour is.
    pub(super) fn mask_of_latents(&self, scale: usize) -> Option<Vec<f32>> {
        let (mask, width) = (self.mask.as_ref()?, self.picture.width);
        let rows = mask.chunks(width.max(1)).step_by(scale);
        let numbers = rows.flat_map(|row| row.iter().step_by(scale));
        Some(numbers.map(|anew| f32::from(u8::from(*anew))).collect())
    }
}

impl Settings {
    /// The number of steps at the beginning of a schedule that are left out. The part of a step that a strength may ask for
    /// is left out too, or taken whole.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if no step is left.
    pub(super) fn skipped(&self, takes_part_whole: bool) -> Result<usize> {
        let Some(FirstImage { strength, .. }) = self.image else { return Ok(0) };
        // A strength is given in 32 bits, so that 0.7 of 10 is a little more or less than 7.
        let taken = (self.steps as f64 * strength * 1e4).round() / 1e4;
        let taken = if takes_part_whole { taken.ceil() } else { taken.floor() } as usize;
        if taken == 0 {
            let reason = format!("a strength of {strength} leaves none of {} steps", self.steps);
            return Err(Error::InvalidInput(reason));
        }
        Ok(self.steps.saturating_sub(taken))
    }

    /// The prompts to encode for classifier-free guidance: the negative one first, which is empty where the
    /// request has none. Without guidance the prompt alone.
    pub(super) fn prompts(&self) -> Vec<&str> {
        let negative = self.negative_prompt.as_deref().unwrap_or_default();
        if self.guidance > 1.0 { vec![negative, &self.prompt] } else { vec![&self.prompt] }
    }

    /// True for a negative prompt that is not empty.
    pub(super) fn has_negative_prompt(&self) -> bool {
        self.negative_prompt.as_ref().is_some_and(|prompt| !prompt.is_empty())
    }
}

/// The encoded prompts: one row, or two with classifier-free guidance, the negative one first.
pub(super) struct Conditioning {
    /// `(rows, tokens, width)`.
    pub(super) prompt_embeddings: Tensor,
    /// `(rows, width)`, for models that also take one vector for the whole prompt.
    pub(super) pooled_prompt_embeddings: Option<Tensor>,
    /// Scale of the guidance; used with two rows, or by a model that takes it as an input.
    pub(super) guidance: f64,
    /// Channels that a model takes beside the latents: `(1, channels, height, width)`.
    pub(super) beside: Option<Tensor>,
}

impl Conditioning {
    /// The pooled embeddings, for a model that takes them.
    pub(super) fn pooled(&self) -> Result<&Tensor> {
        let missing = || Error::compute("the prompt has no pooled embedding");
        self.pooled_prompt_embeddings.as_ref().ok_or_else(missing)
    }
}

/// A check that a long computation makes between its parts: it reports progress, and returns false once
/// nobody waits for the result any more.
pub(super) struct Watch<'a>(pub(super) &'a (dyn Fn() -> bool + Sync));

impl Watch<'_> {
    /// # Errors
    /// [`Error::Stopped`].
    pub(super) fn check(&self) -> Result<()> {
        if (self.0)() { Ok(()) } else { Err(Error::Stopped) }
    }
}
