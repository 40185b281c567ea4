//! Multistep sampling of latent consistency models (Luo et al., arXiv 2310.04378, algorithm 3): each call estimates the
//! latents without noise, and noise of the next timestep's level is added to them.

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{PredictionType, Schedule, with_noise};
use crate::error::{Error, Result};

/// Standard deviation of the data that the boundary condition assumes (`sigma_data`).
const SIGMA_DATA: f64 = 0.5;

/// `LCMScheduler` of diffusers.
pub(super) struct Lcm {
    timesteps: Vec<f64>,
    /// Cumulative product of alphas at each call.
    alphas_cumprod: Vec<f64>,
    prediction_type: PredictionType,
    /// Range that the estimate without noise is clipped to.
    clip: Option<f64>,
    /// Factor on timesteps in the boundary condition.
    timestep_scaling: f64,
}

impl Lcm {
    /// Chooses so many steps among the last ones of the distillation, of which the strength is the part.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for more steps than that part of the distillation has.
    pub(super) fn new(schedule: &Schedule, steps: usize, strength: f64) -> Result<Self> {
        let config = &schedule.config;
        let all = config.original_inference_steps;
        let original = ((all as f64 * strength * 1e4).round() / 1e4) as usize;
        if steps > original {
            let reason = format!(
                "{steps} steps are asked for; a latent consistency model takes at most those of its distillation, \
                 here {original}"
            );
            return Err(Error::InvalidInput(reason));
        }
        // The timesteps of the distillation, of which some are chosen at even distances.
        let stride = schedule.alphas_cumprod.len() / all.max(1);
        let distance = original as f64 / steps.max(1) as f64;
        let timestep = |step: usize| {
            let skipped = ((step as f64 * distance).floor() as usize).min(original.saturating_sub(1));
            ((original - skipped) * stride).saturating_sub(1)
        };
        let timesteps: Vec<f64> = (0..steps).map(|step| timestep(step) as f64).collect();
        Ok(Self {
            alphas_cumprod: timesteps.iter().map(|at| schedule.alpha_cumprod_at(*at as i64, 1.0)).collect(),
            timesteps,
            prediction_type: config.prediction_type,
            clip: config.clip_sample.unwrap_or(false).then_some(config.clip_sample_range),
            timestep_scaling: config.timestep_scaling,
        })
    }

    fn alpha_cumprod(&self, call: usize) -> f64 {
        self.alphas_cumprod.get(call).copied().unwrap_or(1.0)
    }
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        with_noise(self.alpha_cumprod(call), latents, noise)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        latents: &Tensor,
        noise: &mut Noise,
    ) -> Result<Tensor> {
        let denoised = self.predict_original(call, prediction, latents)?;
        if call + 1 >= self.timesteps.len() {
            return Ok(denoised);
        }
        let then = self.alpha_cumprod(call + 1);
        let noise = noise.next(latents.dims(), latents.device())?;
        Ok(((denoised * then.sqrt())? + (noise * (1.0 - then).sqrt())?)?)
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let original =
            self.prediction_type.predict_original(self.alpha_cumprod(call), prediction, latents)?;
        let original = match self.clip {
            Some(clip) => original.clamp(-clip, clip)?,
            None => original,
        };
        let timestep = self.timesteps.get(call).copied().unwrap_or_default() * self.timestep_scaling;
        let variance = timestep * timestep + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, timestep / variance.sqrt());
        Ok(((original * out)? + (latents * skip)?)?)
    }
}
