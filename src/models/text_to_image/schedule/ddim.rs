//! DDIM without added noise (Song et al., arXiv 2010.02502, equation 12).

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
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

impl Ddim {
    /// What the latents are a mix of: the picture behind the noise, and the noise.
    fn split(&self, now: f64, output: &Tensor, latents: &Tensor) -> Result<(Tensor, Tensor)> {
        let picture = self.prediction.picture(now, output, latents)?;
        let noise = match self.prediction {
            Prediction::Epsilon => output.clone(),
            Prediction::VPrediction => ((output * now.sqrt())? + (latents * (1.0 - now).sqrt())?)?,
        };
        match self.clip {
            Some(clip) => Ok((picture.clamp(-clip, clip)?, noise)),
            None => Ok((picture, noise)),
        }
    }

    fn levels(&self, call: usize) -> (f64, f64) {
        self.kept.get(call).copied().unwrap_or((1.0, 1.0))
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.times
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.levels(call);
        let (picture, noise) = self.split(now, output, latents)?;
        Ok(((picture * then.sqrt())? + (noise * (1.0 - then).sqrt())?)?)
    }

    fn predict_original(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok(self.split(self.levels(call).0, output, latents)?.0)
    }
}
