//! Euler's method on the noise level (Karras et al., arXiv 2206.00364, algorithm 2, without churn), and its ancestral
//! form, which goes further than the next level and adds noise.

use candle_core::Tensor;

use super::super::{Noise, Scheduler};
use super::{Prediction, Schedule, Spacing};
use crate::error::Result;

/// Times and noise levels, one level more than times.
struct Levels {
    times: Vec<f64>,
    sigmas: Vec<f64>,
    spacing: Spacing,
    prediction: Prediction,
}

impl Levels {
    fn new(schedule: &Schedule, times: Vec<f64>, mut sigmas: Vec<f64>, end: f64) -> Self {
        sigmas.push(end);
        let spacing = schedule.config.timestep_spacing.unwrap_or(Spacing::Linspace);
        Self { times, sigmas, spacing, prediction: schedule.config.prediction_type }
    }

    fn plain(schedule: &Schedule, steps: usize) -> (Vec<f64>, Vec<f64>) {
        let times = schedule.times(steps, schedule.config.timestep_spacing.unwrap_or(Spacing::Linspace));
        let sigmas = schedule.sigmas_at(&times);
        (times, sigmas)
    }

    fn initial_scale(&self) -> f64 {
        let most = self.sigmas.iter().copied().fold(0.0, f64::max);
        match self.spacing {
            Spacing::Linspace | Spacing::Trailing => most,
            Spacing::Leading => (most * most + 1.0).sqrt(),
        }
    }

    /// The levels before and after a call.
    fn around(&self, call: usize) -> (f64, f64) {
        let at = |index: usize| self.sigmas.get(index).copied().unwrap_or_default();
        (at(call), at(call + 1))
    }

    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        let (sigma, _) = self.around(call);
        Ok((latents / (sigma * sigma + 1.0).sqrt())?)
    }

    /// The picture behind the noise.
    fn picture(&self, sigma: f64, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok((latents - (output * sigma)?)?),
            Prediction::VPrediction => {
                let square = sigma * sigma + 1.0;
                Ok(((output * (-sigma / square.sqrt()))? + (latents / square)?)?)
            }
        }
    }

    /// Which way the latents change with the noise level.
    fn slope(&self, sigma: f64, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok(output.clone()),
            Prediction::VPrediction => Ok(((latents - self.picture(sigma, output, latents)?)? / sigma)?),
        }
    }
}

/// One picture's way without added noise.
pub(super) struct Euler(Levels);

impl Euler {
    pub(super) fn new(schedule: &Schedule, steps: usize) -> Self {
        let (mut times, mut sigmas) = Levels::plain(schedule, steps);
        if schedule.config.use_karras_sigmas.unwrap_or(false)
            && let (Some(most), Some(least)) = (sigmas.first(), sigmas.last())
        {
            sigmas = schedule.karras(*most, *least, steps);
            let all = schedule.sigmas();
            times = sigmas.iter().map(|sigma| schedule.time_of(*sigma, &all)).collect();
        }
        Self(Levels::new(schedule, times, sigmas, schedule.final_sigma()))
    }
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.0.times
    }

    fn initial_scale(&self) -> f64 {
        self.0.initial_scale()
    }

    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        self.0.scale_input(call, latents)
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.0.around(call);
        Ok((latents + (self.0.slope(now, output, latents)? * (then - now))?)?)
    }

    fn picture(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        self.0.picture(self.0.around(call).0, output, latents)
    }
}

/// One picture's way with noise in each step.
pub(super) struct EulerAncestral(Levels);

impl EulerAncestral {
    pub(super) fn new(schedule: &Schedule, steps: usize) -> Self {
        let (times, sigmas) = Levels::plain(schedule, steps);
        Self(Levels::new(schedule, times, sigmas, 0.0))
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.0.times
    }

    fn initial_scale(&self) -> f64 {
        self.0.initial_scale()
    }

    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        self.0.scale_input(call, latents)
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let (now, then) = self.0.around(call);
        let added = (then * then * (now * now - then * then) / (now * now)).max(0.0).sqrt();
        let aim = (then * then - added * added).max(0.0).sqrt();
        let moved = (latents + (self.0.slope(now, output, latents)? * (aim - now))?)?;
        let noise = noise.next(latents.dims(), latents.device())?;
        Ok((moved + (noise * added)?)?)
    }

    fn picture(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        self.0.picture(self.0.around(call).0, output, latents)
    }
}
