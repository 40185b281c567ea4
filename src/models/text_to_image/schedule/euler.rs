//! Euler's method on the noise level (Karras et al., arXiv 2206.00364, algorithm 2, without churn), and its
//! ancestral form, which steps below the next level and adds noise up to it.

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{PredictionType, Schedule, TimestepSpacing};
use crate::error::Result;

/// `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler` of diffusers.
pub(super) struct Euler {
    timesteps: Vec<f64>,
    /// Noise levels, one more than there are timesteps.
    sigmas: Vec<f64>,
    spacing: TimestepSpacing,
    prediction_type: PredictionType,
    variant: Variant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    Ancestral,
}

impl Euler {
    /// Leaves out the first steps, as the ancestral form does.
    pub(super) fn plain(schedule: &Schedule, steps: usize, skipped: usize) -> Self {
        let (mut timesteps, mut sigmas) = levels(schedule, steps);
        if schedule.config.use_karras_sigmas.unwrap_or(false)
            && let (Some(most), Some(least)) = (sigmas.first(), sigmas.last())
        {
            sigmas = schedule.karras_sigmas(*most, *least, steps);
            let all = schedule.sigmas();
            timesteps = sigmas.iter().map(|sigma| schedule.timestep_of(*sigma, &all)).collect();
        }
        sigmas.push(schedule.final_sigma());
        Self::new(schedule, timesteps, sigmas, Variant::Plain).after(skipped)
    }

    pub(super) fn ancestral(schedule: &Schedule, steps: usize, skipped: usize) -> Self {
        let (timesteps, mut sigmas) = levels(schedule, steps);
        sigmas.push(0.0);
        Self::new(schedule, timesteps, sigmas, Variant::Ancestral).after(skipped)
    }

    fn new(schedule: &Schedule, timesteps: Vec<f64>, sigmas: Vec<f64>, variant: Variant) -> Self {
        let spacing = schedule.config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        Self { timesteps, sigmas, spacing, prediction_type: schedule.config.prediction_type, variant }
    }

    /// The schedule without its first steps.
    fn after(mut self, skipped: usize) -> Self {
        self.timesteps.drain(..skipped.min(self.timesteps.len()));
        self.sigmas.drain(..skipped.min(self.sigmas.len()));
        self
    }

    /// The noise levels before and after a call.
    fn around(&self, call: usize) -> (f64, f64) {
        let at = |index: usize| self.sigmas.get(index).copied().unwrap_or_default();
        (at(call), at(call + 1))
    }

    /// Derivative of the latents by the noise level.
    fn derivative(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        match self.prediction_type {
            PredictionType::Epsilon => Ok(prediction.clone()),
            PredictionType::VPrediction => {
                let original = self.predict_original(call, prediction, latents)?;
                Ok(((latents - original)? / self.around(call).0)?)
            }
        }
    }
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        let most = self.sigmas.iter().copied().fold(0.0, f64::max);
        match self.spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => most,
            TimestepSpacing::Leading => (most * most + 1.0).sqrt(),
        }
    }

    fn scale_model_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        let (sigma, _) = self.around(call);
        Ok((latents / (sigma * sigma + 1.0).sqrt())?)
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok((latents + (noise * self.around(call).0)?)?)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        latents: &Tensor,
        noise: &mut Noise,
    ) -> Result<Tensor> {
        let (now, then) = self.around(call);
        let derivative = self.derivative(call, prediction, latents)?;
        match self.variant {
            Variant::Plain => Ok((latents + (derivative * (then - now))?)?),
            Variant::Ancestral => {
                let up = (then * then * (now * now - then * then) / (now * now)).max(0.0).sqrt();
                let down = (then * then - up * up).max(0.0).sqrt();
                let latents = (latents + (derivative * (down - now))?)?;
                let noise = noise.next(latents.dims(), latents.device())?;
                Ok((latents + (noise * up)?)?)
            }
        }
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (sigma, _) = self.around(call);
        match self.prediction_type {
            PredictionType::Epsilon => Ok((latents - (prediction * sigma)?)?),
            PredictionType::VPrediction => {
                let square = sigma * sigma + 1.0;
                Ok(((prediction * (-sigma / square.sqrt()))? + (latents / square)?)?)
            }
        }
    }
}

/// Timesteps and their noise levels.
fn levels(schedule: &Schedule, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let timesteps =
        schedule.timesteps(steps, schedule.config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace));
    let sigmas = schedule.sigmas_at(&timesteps);
    (timesteps, sigmas)
}
