//! The linear multistep method of PNDM (Liu et al., arXiv 2202.09778, equations 9 and 12), begun with a step that is
//! made twice in place of Runge-Kutta steps, as Stable Diffusion does.

use candle_core::Tensor;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{Prediction, Schedule, Spacing};
use crate::error::Result;

/// Predictions that a step looks back on, itself included.
const ORDER: usize = 4;

/// One picture's way.
pub(super) struct Pndm {
    times: Vec<f64>,
    /// What is left of the picture, squared, before and after each call.
    kept: Vec<(f64, f64)>,
    prediction: Prediction,
    /// The last predictions, the newest at the end.
    past: Vec<Tensor>,
    /// The latents that the first step began with, which the second one begins with again.
    start: Option<Tensor>,
}

impl Pndm {
    pub(super) fn new(schedule: &Schedule, steps: usize) -> Self {
        let config = &schedule.config;
        let mut times = schedule.times(steps, config.timestep_spacing.unwrap_or(Spacing::Leading));
        times.iter_mut().for_each(|time| *time = time.round_ties_even());
        if let Some(second) = times.get(1).copied() {
            times.insert(1, second);
        }
        let end = if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { schedule.kept_at(0, 1.0) };
        let stride = (schedule.kept.len() / steps) as i64;
        let kept = |(call, time): (usize, &f64)| {
            let time = *time as i64;
            // The second call looks from the first time to the second once more.
            let (from, to) = if call == 1 { (time + stride, time) } else { (time, time - stride) };
            (schedule.kept_at(from, end), schedule.kept_at(to, end))
        };
        Self {
            kept: times.iter().enumerate().map(kept).collect(),
            times,
            prediction: config.prediction_type,
            past: Vec::new(),
            start: None,
        }
    }

    /// The prediction that a step goes by.
    fn mixed(&mut self, call: usize, output: &Tensor) -> Result<Tensor> {
        if call == 1 {
            return match self.past.last() {
                Some(first) => Ok(((output + first)? / 2.0)?),
                None => Ok(output.clone()),
            };
        }
        if self.past.len() == ORDER {
            self.past.remove(0);
        }
        self.past.push(output.clone());
        let weights: &[f64] = match self.past.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut sum = output.zeros_like()?;
        for (past, weight) in self.past.iter().rev().zip(weights) {
            sum = (sum + (past * *weight)?)?;
        }
        Ok(sum)
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.times
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.kept.get(call).copied().unwrap_or((1.0, 1.0));
        let mixed = self.mixed(call, output)?;
        let latents = match call {
            0 => {
                self.start = Some(latents.clone());
                latents.clone()
            }
            1 => self.start.take().unwrap_or_else(|| latents.clone()),
            _ => latents.clone(),
        };
        let noise = match self.prediction {
            Prediction::Epsilon => mixed,
            Prediction::VPrediction => ((mixed * now.sqrt())? + (&latents * (1.0 - now).sqrt())?)?,
        };
        let divisor = now * (1.0 - then).sqrt() + (now * (1.0 - now) * then).sqrt();
        Ok(((latents * (then / now).sqrt())? - (noise * ((then - now) / divisor))?)?)
    }

    fn predict_original(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (from, to) = self.kept.get(call).copied().unwrap_or((1.0, 1.0));
        // The second call is asked at the time that it goes to.
        let now = if call == 1 { to } else { from };
        self.prediction.picture(now, output, latents)
    }
}
