//! PNDM (Liu et al., arXiv 2202.09778, equations 9 and 12) by its linear multistep method, begun with a step
//! that is made twice in place of Runge-Kutta steps (`skip_prk_steps`), as Stable Diffusion does.

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{PredictionType, Schedule, TimestepSpacing, with_noise};
use crate::error::Result;

/// Predictions that a step is made of, its own included.
const ORDER: usize = 4;

/// `PNDMScheduler` of diffusers.
pub(super) struct Pndm {
    timesteps: Vec<f64>,
    /// Cumulative product of alphas before and after each call.
    alphas_cumprod: Vec<(f64, f64)>,
    prediction_type: PredictionType,
    /// The last predictions, the newest at the end.
    past: Vec<Tensor>,
    /// The latents that the first step began with, which the second one begins with again.
    start: Option<Tensor>,
}

impl Pndm {
    /// Leaves out the first calls. The reference then begins with a step made twice too, whichever timesteps come first.
    pub(super) fn new(schedule: &Schedule, steps: usize, skipped: usize) -> Self {
        let config = &schedule.config;
        let mut timesteps =
            schedule.timesteps(steps, config.timestep_spacing.unwrap_or(TimestepSpacing::Leading));
        timesteps.iter_mut().for_each(|timestep| *timestep = timestep.round_ties_even());
        if let Some(second) = timesteps.get(1).copied() {
            timesteps.insert(1, second);
        }
        timesteps.drain(..skipped.min(timesteps.len()));
        let end =
            if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { schedule.alpha_cumprod_at(0, 1.0) };
        let stride = (schedule.alphas_cumprod.len() / steps) as i64;
        let around = |(call, timestep): (usize, &f64)| {
            let timestep = *timestep as i64;
            // The second call goes from the first timestep to the second once more.
            let (from, to) =
                if call == 1 { (timestep + stride, timestep) } else { (timestep, timestep - stride) };
            (schedule.alpha_cumprod_at(from, end), schedule.alpha_cumprod_at(to, end))
        };
        Self {
            alphas_cumprod: timesteps.iter().enumerate().map(around).collect(),
            timesteps,
            prediction_type: config.prediction_type,
            past: Vec::new(),
            start: None,
        }
    }

    /// Cumulative product of alphas at the timestep of a call.
    fn now(&self, call: usize) -> f64 {
        let (from, to) = self.alphas_cumprod.get(call).copied().unwrap_or((1.0, 1.0));
        // The second call is made at the timestep that it goes to.
        if call == 1 { to } else { from }
    }

    /// Combines the last predictions to that of a step.
    fn combine(&mut self, call: usize, prediction: &Tensor) -> Result<Tensor> {
        if call == 1 {
            return match self.past.last() {
                Some(first) => Ok(((prediction + first)? / 2.0)?),
                None => Ok(prediction.clone()),
            };
        }
        if self.past.len() == ORDER {
            self.past.remove(0);
        }
        self.past.push(prediction.clone());
        let weights: &[f64] = match self.past.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut sum = prediction.zeros_like()?;
        for (past, weight) in self.past.iter().rev().zip(weights) {
            sum = (sum + (past * *weight)?)?;
        }
        Ok(sum)
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        with_noise(self.now(call), latents, noise)
    }

    fn step(&mut self, call: usize, prediction: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.alphas_cumprod.get(call).copied().unwrap_or((1.0, 1.0));
        let combined = self.combine(call, prediction)?;
        let latents = match call {
            0 => {
                self.start = Some(latents.clone());
                latents.clone()
            }
            1 => self.start.take().unwrap_or_else(|| latents.clone()),
            _ => latents.clone(),
        };
        let noise = match self.prediction_type {
            PredictionType::Epsilon => combined,
            PredictionType::VPrediction => ((combined * now.sqrt())? + (&latents * (1.0 - now).sqrt())?)?,
        };
        let divisor = now * (1.0 - then).sqrt() + (now * (1.0 - now) * then).sqrt();
        Ok(((latents * (then / now).sqrt())? - (noise * ((then - now) / divisor))?)?)
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        self.prediction_type.predict_original(self.now(call), prediction, latents)
    }
}
