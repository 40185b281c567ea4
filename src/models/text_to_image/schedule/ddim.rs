//! DDIM without added noise (Song et al., arXiv 2010.02502, equation 12).

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{PredictionType, Schedule, TimestepSpacing, with_noise};
use crate::error::Result;

/// `DDIMScheduler` of diffusers.
pub(super) struct Ddim {
    timesteps: Vec<f64>,
    /// Cumulative product of alphas before and after each call.
    alphas_cumprod: Vec<(f64, f64)>,
    prediction_type: PredictionType,
    /// Range that the estimate without noise is clipped to.
    clip: Option<f64>,
}

impl Ddim {
    /// Leaves out the first steps.
    pub(super) fn new(schedule: &Schedule, steps: usize, skipped: usize) -> Self {
        let config = &schedule.config;
        let timesteps =
            schedule.timesteps(steps, config.timestep_spacing.unwrap_or(TimestepSpacing::Leading));
        let timesteps: Vec<f64> = timesteps.into_iter().skip(skipped).map(f64::round_ties_even).collect();
        let first = schedule.alpha_cumprod_at(0, 1.0);
        let end = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { first };
        let stride = (schedule.alphas_cumprod.len() / steps) as i64;
        let around = |timestep: &f64| {
            let timestep = *timestep as i64;
            (schedule.alpha_cumprod_at(timestep, end), schedule.alpha_cumprod_at(timestep - stride, end))
        };
        Self {
            alphas_cumprod: timesteps.iter().map(around).collect(),
            timesteps,
            prediction_type: config.prediction_type,
            clip: config.clip_sample.unwrap_or(true).then_some(config.clip_sample_range),
        }
    }
}

impl Ddim {
    /// Splits latents into the estimate without noise and the noise.
    fn split(&self, now: f64, prediction: &Tensor, latents: &Tensor) -> Result<(Tensor, Tensor)> {
        let original = self.prediction_type.predict_original(now, prediction, latents)?;
        let noise = match self.prediction_type {
            PredictionType::Epsilon => prediction.clone(),
            PredictionType::VPrediction => ((prediction * now.sqrt())? + (latents * (1.0 - now).sqrt())?)?,
        };
        match self.clip {
            Some(clip) => Ok((original.clamp(-clip, clip)?, noise)),
            None => Ok((original, noise)),
        }
    }

    fn around(&self, call: usize) -> (f64, f64) {
        self.alphas_cumprod.get(call).copied().unwrap_or((1.0, 1.0))
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        with_noise(self.around(call).0, latents, noise)
    }

    fn step(&mut self, call: usize, prediction: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.around(call);
        let (original, noise) = self.split(now, prediction, latents)?;
        Ok(((original * then.sqrt())? + (noise * (1.0 - then).sqrt())?)?)
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok(self.split(self.around(call).0, prediction, latents)?.0)
    }
}
