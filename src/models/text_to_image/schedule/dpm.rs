//! DPM-SolverType++ in its multistep form (Lu et al., arXiv 2211.01095, algorithm 2), of order one to three.

use candle_core::Tensor;
use serde::Deserialize;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{FinalSigma, PredictionType, Schedule, TimestepSpacing};
use crate::error::Result;

/// Form of the steps of order two (`solver_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SolverType {
    /// Diffusers reads the other names as this one too.
    #[serde(alias = "bh1", alias = "bh2", alias = "logrho")]
    Midpoint,
    Heun,
}

/// With fewer steps than these the last ones are of lower order.
const FEW: usize = 15;

/// `DPMSolverMultistepScheduler` of diffusers.
pub(super) struct Dpm {
    timesteps: Vec<f64>,
    /// Noise levels, one more than timesteps.
    sigmas: Vec<f64>,
    prediction_type: PredictionType,
    order: usize,
    solver_type: SolverType,
    /// True where the last step is of order one.
    first_order_last: bool,
    /// True where the last but one is of order two at most.
    second_order_before_last: bool,
    /// Last estimates without noise, the newest at the end.
    originals: Vec<Tensor>,
}

impl Dpm {
    /// Leaves out the first steps, which count for the order of the last ones all the same.
    pub(super) fn new(schedule: &Schedule, steps: usize, skipped: usize) -> Self {
        let config = &schedule.config;
        let (mut timesteps, mut sigmas) = levels(schedule, steps);
        sigmas.push(schedule.final_sigma());
        let few = config.lower_order_final && timesteps.len() < FEW;
        let first_order_last = config.euler_at_final || few || config.final_sigmas_type == FinalSigma::Zero;
        timesteps.drain(..skipped.min(timesteps.len()));
        sigmas.drain(..skipped.min(sigmas.len()));
        Self {
            timesteps,
            sigmas,
            prediction_type: config.prediction_type,
            order: config.solver_order.clamp(1, 3),
            solver_type: config.solver_type,
            first_order_last,
            second_order_before_last: few,
            originals: Vec::new(),
        }
    }

    fn original_at(&self, level: Level, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        match self.prediction_type {
            PredictionType::Epsilon => Ok(((latents - (prediction * level.sigma)?)? / level.alpha)?),
            PredictionType::VPrediction => Ok(((latents * level.alpha)? - (prediction * level.sigma)?)?),
        }
    }

    fn level(&self, index: usize) -> Level {
        Level::of(self.sigmas.get(index).copied().unwrap_or_default())
    }

    /// Order of a call.
    fn order_of(&self, call: usize) -> usize {
        let left = self.timesteps.len().saturating_sub(call);
        let most = match left {
            0 | 1 if self.first_order_last => 1,
            2 if self.second_order_before_last => 2,
            _ => self.order,
        };
        most.min(self.originals.len())
    }
}

/// Timesteps and their noise levels.
fn levels(schedule: &Schedule, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let config = &schedule.config;
    let all = schedule.sigmas();
    if config.use_karras_sigmas.unwrap_or(false)
        && let (Some(least), Some(most)) = (all.first(), all.last())
    {
        let sigmas = schedule.karras_sigmas(*most, *least, steps);
        let timesteps = sigmas.iter().map(|sigma| schedule.timestep_of(*sigma, &all).round_ties_even());
        return (timesteps.collect(), sigmas);
    }
    // The timesteps of one step more, without the last.
    let mut timesteps = match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Trailing => schedule.timesteps(steps, TimestepSpacing::Trailing),
        spacing => {
            let count = (steps + 1).min(schedule.alphas_cumprod.len());
            let mut timesteps = schedule.timesteps(count, spacing);
            timesteps.truncate(steps);
            timesteps
        }
    };
    timesteps.iter_mut().for_each(|timestep| *timestep = timestep.round_ties_even());
    let sigmas = schedule.sigmas_at(&timesteps);
    (timesteps, sigmas)
}

/// Noise level: parts of signal and noise, and the logarithm of their ratio (`alpha_t`, `sigma_t` and
/// `lambda_t`).
#[derive(Clone, Copy)]
struct Level {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

impl Level {
    fn of(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { alpha, sigma: sigma * alpha, lambda: -sigma.ln() }
    }
}

impl Scheduler for Dpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let level = self.level(call);
        Ok(((latents * level.alpha)? + (noise * level.sigma)?)?)
    }

    fn step(&mut self, call: usize, prediction: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = (self.level(call), self.level(call + 1));
        let original = self.original_at(now, prediction, latents)?;
        if self.originals.len() == self.order {
            self.originals.remove(0);
        }
        self.originals.push(original.clone());
        let width = then.lambda - now.lambda;
        // Minus one at the end, where no noise is left and the width is infinite.
        let decay = (-width).exp() - 1.0;
        let moved = ((latents * (then.sigma / now.sigma))? - (&original * (then.alpha * decay))?)?;
        let before = |back: usize| self.originals.iter().rev().nth(back);
        let order = self.order_of(call);
        let (Some(last), true) = (before(1), order >= 2) else { return Ok(moved) };
        let first_ratio = (now.lambda - self.level(call.saturating_sub(1)).lambda) / width;
        let first = ((&original - last)? / first_ratio)?;
        let bend = then.alpha * (decay / width + 1.0);
        let (Some(older), true) = (before(2), order >= 3) else {
            return match self.solver_type {
                SolverType::Midpoint => Ok((moved - (first * (0.5 * then.alpha * decay))?)?),
                SolverType::Heun => Ok((moved + (first * bend)?)?),
            };
        };
        let second_ratio =
            (self.level(call.saturating_sub(1)).lambda - self.level(call.saturating_sub(2)).lambda) / width;
        let second = ((last - older)? / second_ratio)?;
        let difference = ((&first - second)? / (first_ratio + second_ratio))?;
        let slope = (&first + (&difference * first_ratio)?)?;
        let turn = then.alpha * ((decay + width) / (width * width) - 0.5);
        Ok(((moved + (slope * bend)?)? - (difference * turn)?)?)
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        self.original_at(self.level(call), prediction, latents)
    }
}
