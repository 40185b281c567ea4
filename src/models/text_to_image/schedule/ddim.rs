//! DDIM without added noise (Song et al., arXiv 2010.02502, equation 12).

use candle_core::Tensor;

use super::super::{Noise, Scheduler};
use super::{Prediction, Schedule, Spacing};
use crate::error::Result;

/// One picture's way.
pub(super) struct Ddim {
    times: Vec<f64>,
    /// What is left of the picture, squared, before and after each call.
    kept: Vec<(f64, f64)>,
    prediction: Prediction,
    /// Largest value of the picture that is looked through to.
    clip: Option<f64>,
}

impl Ddim {
    pub(super) fn new(schedule: &Schedule, steps: usize) -> Self {
        let config = &schedule.config;
        let times = schedule.times(steps, config.timestep_spacing.unwrap_or(Spacing::Leading));
        let times: Vec<f64> = times.into_iter().map(f64::round_ties_even).collect();
        let first = schedule.kept_at(0, 1.0);
        let end = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { first };
        let stride = (schedule.kept.len() / steps) as i64;
        let kept = |time: &f64| {
            let time = *time as i64;
            (schedule.kept_at(time, end), schedule.kept_at(time - stride, end))
        };
        Self {
            kept: times.iter().map(kept).collect(),
            times,
            prediction: config.prediction_type,
            clip: config.clip_sample.unwrap_or(true).then_some(config.clip_sample_range),
        }
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.times
    }

    fn initial_scale(&self) -> f64 {
        1.0
    }

    fn scale_input(&self, _: usize, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.clone())
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.kept.get(call).copied().unwrap_or((1.0, 1.0));
        let (kept, noisy) = (now.sqrt(), (1.0 - now).sqrt());
        let (mut picture, noise) = match self.prediction {
            Prediction::Epsilon => (((latents - (output * noisy)?)? / kept)?, output.clone()),
            Prediction::VPrediction => {
                (((latents * kept)? - (output * noisy)?)?, ((output * kept)? + (latents * noisy)?)?)
            }
        };
        if let Some(clip) = self.clip {
            picture = picture.clamp(-clip, clip)?;
        }
        Ok(((picture * then.sqrt())? + (noise * (1.0 - then).sqrt())?)?)
    }
}
