//! DPM-Solver++ in its multistep form (Lu et al., arXiv 2211.01095, algorithm 2), of order one to three.

use candle_core::Tensor;
use serde::Deserialize;

use super::super::noise::Noise;
use super::super::pipeline::Scheduler;
use super::{FinalSigma, Prediction, Schedule, Spacing};
use crate::error::Result;

/// How a step of order two uses what it looks back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Solver {
    /// Diffusers reads the other names as this one too.
    #[serde(alias = "bh1", alias = "bh2", alias = "logrho")]
    Midpoint,
    Heun,
}

/// With fewer steps than these the last ones are of lower order.
const FEW: usize = 15;

/// One picture's way.
pub(super) struct Dpm {
    times: Vec<f64>,
    /// Noise levels, one more than times.
    sigmas: Vec<f64>,
    prediction: Prediction,
    order: usize,
    solver: Solver,
    /// Whether the last step is of order one, and the one before it of at most two.
    careful_end: (bool, bool),
    /// The last pictures that were looked through to, the newest at the end.
    past: Vec<Tensor>,
}

impl Dpm {
    pub(super) fn new(schedule: &Schedule, steps: usize) -> Self {
        let config = &schedule.config;
        let (times, mut sigmas) = levels(schedule, steps);
        sigmas.push(schedule.final_sigma());
        let few = config.lower_order_final && times.len() < FEW;
        let careful = config.euler_at_final || few || config.final_sigmas_type == FinalSigma::Zero;
        Self {
            times,
            sigmas,
            prediction: config.prediction_type,
            order: config.solver_order.clamp(1, 3),
            solver: config.solver_type,
            careful_end: (careful, few),
            past: Vec::new(),
        }
    }

    /// The picture behind the noise, as far as the prediction tells.
    fn look_through(&self, level: Level, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok(((latents - (output * level.noise)?)? / level.kept)?),
            Prediction::VPrediction => Ok(((latents * level.kept)? - (output * level.noise)?)?),
        }
    }

    fn level(&self, index: usize) -> Level {
        Level::of(self.sigmas.get(index).copied().unwrap_or_default())
    }

    /// The order of a call.
    fn order_of(&self, call: usize) -> usize {
        let left = self.times.len().saturating_sub(call);
        let most = match left {
            0 | 1 if self.careful_end.0 => 1,
            2 if self.careful_end.1 => 2,
            _ => self.order,
        };
        most.min(self.past.len())
    }
}

fn levels(schedule: &Schedule, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let config = &schedule.config;
    let all = schedule.sigmas();
    if config.use_karras_sigmas.unwrap_or(false)
        && let (Some(least), Some(most)) = (all.first(), all.last())
    {
        let sigmas = schedule.karras(*most, *least, steps);
        let times = sigmas.iter().map(|sigma| schedule.time_of(*sigma, &all).round_ties_even());
        return (times.collect(), sigmas);
    }
    // The times of one step more, without the last.
    let mut times = match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Trailing => schedule.times(steps, Spacing::Trailing),
        spacing => {
            let count = (steps + 1).min(schedule.kept.len());
            let mut times = schedule.times(count, spacing);
            times.truncate(steps);
            times
        }
    };
    times.iter_mut().for_each(|time| *time = time.round_ties_even());
    let sigmas = schedule.sigmas_at(&times);
    (times, sigmas)
}

/// A noise level, as parts of picture and noise, and the logarithm of their ratio.
#[derive(Clone, Copy)]
struct Level {
    kept: f64,
    noise: f64,
    ratio: f64,
}

impl Level {
    fn of(sigma: f64) -> Self {
        let kept = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { kept, noise: sigma * kept, ratio: -sigma.ln() }
    }
}

impl Scheduler for Dpm {
    fn timesteps(&self) -> &[f64] {
        &self.times
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = (self.level(call), self.level(call + 1));
        let picture = self.look_through(now, output, latents)?;
        if self.past.len() == self.order {
            self.past.remove(0);
        }
        self.past.push(picture.clone());
        let width = then.ratio - now.ratio;
        // Minus one at the end, where no noise is left and the width is infinite.
        let decay = (-width).exp() - 1.0;
        let moved = ((latents * (then.noise / now.noise))? - (&picture * (then.kept * decay))?)?;
        let before = |back: usize| self.past.iter().rev().nth(back);
        let order = self.order_of(call);
        let (Some(last), true) = (before(1), order >= 2) else { return Ok(moved) };
        let first_ratio = (now.ratio - self.level(call.saturating_sub(1)).ratio) / width;
        let first = ((&picture - last)? / first_ratio)?;
        let bend = then.kept * (decay / width + 1.0);
        let (Some(older), true) = (before(2), order >= 3) else {
            return match self.solver {
                Solver::Midpoint => Ok((moved - (first * (0.5 * then.kept * decay))?)?),
                Solver::Heun => Ok((moved + (first * bend)?)?),
            };
        };
        let second_ratio =
            (self.level(call.saturating_sub(1)).ratio - self.level(call.saturating_sub(2)).ratio) / width;
        let second = ((last - older)? / second_ratio)?;
        let difference = ((&first - second)? / (first_ratio + second_ratio))?;
        let slope = (&first + (&difference * first_ratio)?)?;
        let turn = then.kept * ((decay + width) / (width * width) - 0.5);
        Ok(((moved + (slope * bend)?)? - (difference * turn)?)?)
    }

    fn predict_original(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        self.look_through(self.level(call), output, latents)
    }
}
