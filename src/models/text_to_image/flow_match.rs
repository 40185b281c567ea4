//! The noise schedule of models that are trained by flow matching (Lipman et al., arXiv 2210.02747; Esser et al., arXiv
//! 2403.03206): latents are a mix of picture and noise, the model tells the way from one to the other, and Euler's
//! method follows it. The reference is `FlowMatchEulerDiscreteScheduler` of diffusers.

use std::path::PathBuf;

use candle_core::Tensor;
use serde::Deserialize;

use super::noise::Noise;
use super::pipeline::{Scheduler, Settings};
use super::repository::{Repository, invalid};
use super::schedule::MAX_TIMES;
use crate::error::{Error, Result};

const CLASSES: &[&str] = &["FlowMatchEulerDiscreteScheduler"];
/// The strongest shift; the weakest is as far below 1.
const MAX_SHIFT: f64 = 1000.0;
/// What requests call it.
pub(super) const NAME: &str = "flow_match_euler";

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[
    ("invert_sigmas", "false"),
    ("use_beta_sigmas", "false"),
    ("use_exponential_sigmas", "false"),
    ("use_karras_sigmas", "false"),
];

/// Whether requests may ask for a scheduler of this name.
pub(super) fn is_known(wanted: &str) -> bool {
    wanted == NAME || CLASSES.contains(&wanted)
}

/// How the shift depends on the picture's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShiftKind {
    Exponential,
    Linear,
}

/// `scheduler/scheduler_config.json`. What has a default in diffusers has it here.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    num_train_timesteps: usize,
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: Option<f64>,
    max_shift: Option<f64>,
    base_image_seq_len: Option<usize>,
    max_image_seq_len: Option<usize>,
    shift_terminal: Option<f64>,
    time_shift_type: ShiftKind,
    stochastic_sampling: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: None,
            max_shift: None,
            base_image_seq_len: None,
            max_image_seq_len: None,
            shift_terminal: None,
            time_shift_type: ShiftKind::Exponential,
            stochastic_sampling: false,
        }
    }
}

/// Which noise levels a picture is painted with, before they are shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Levels {
    /// From the highest to the lowest of the training, as Stable Diffusion 3 has them.
    OfTraining,
    /// From 1 down in equal parts that end with 0, as FLUX has them.
    EqualParts,
}

/// A noise schedule that is ready for pictures.
#[derive(Debug, Clone)]
pub(super) struct FlowSchedule {
    config: Config,
    path: PathBuf,
}

impl FlowSchedule {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "scheduler/scheduler_config.json";
        let (path, config): (_, Config) = repository.config(file, CLASSES, ONLY)?;
        let times = config.num_train_timesteps;
        if !(1..=MAX_TIMES).contains(&times) {
            return Err(invalid(
                &path,
                format!("num_train_timesteps is {times}; 1 to {MAX_TIMES} are allowed"),
            ));
        }
        let (shift, least) = (config.shift, 1.0 / MAX_SHIFT);
        if !(least..=MAX_SHIFT).contains(&shift) {
            return Err(invalid(&path, format!("shift is {shift}; {least} to {MAX_SHIFT} are allowed")));
        }
        if let Some(end) = config.shift_terminal.filter(|end| !(0.0..1.0).contains(end)) {
            return Err(invalid(&path, format!("shift_terminal is {end}; it must lie between 0 and 1")));
        }
        Ok(Self { config, path })
    }

    /// The schedule of one picture that is seen as so many patches.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name; [`Error::InvalidConfig`] where the shift cannot be computed with.
    pub(super) fn start(
        &self,
        settings: &Settings,
        levels: Levels,
        patches: usize,
    ) -> Result<Box<dyn Scheduler>> {
        if let Some(wanted) = settings.scheduler.as_ref().filter(|wanted| !is_known(wanted)) {
            let reason = format!("the scheduler {wanted:?} is unknown; this model is painted with {NAME}");
            return Err(Error::InvalidInput(reason));
        }
        let sigmas = self.sigmas(levels, settings.steps.max(1), patches);
        if let Some(sigma) = sigmas.iter().find(|sigma| !(0.0..=1.0 + 1e-6).contains(*sigma)) {
            let reason = format!("its shift makes a noise level of {sigma}; 0 to 1 can be computed with");
            return Err(invalid(&self.path, reason));
        }
        Ok(Box::new(FlowMatch::new(&self.config, sigmas)))
    }

    /// The noise levels of all steps, the highest first.
    fn sigmas(&self, levels: Levels, steps: usize, patches: usize) -> Vec<f64> {
        let (from, to) = match levels {
            Levels::OfTraining => self.range(),
            Levels::EqualParts => (1.0, 1.0 / steps as f64),
        };
        let distance = (to - from) / (steps.max(2) - 1) as f64;
        let mut sigmas: Vec<f64> =
            (0..steps).map(|step| self.shifted(from + distance * step as f64, patches)).collect();
        if let (Some(end), Some(last)) =
            (self.config.shift_terminal.filter(|end| *end > 0.0), sigmas.last().copied())
            && last < 1.0
        {
            let stretch = (1.0 - last) / (1.0 - end);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / stretch);
        }
        sigmas
    }

    /// The highest and the lowest noise level of the training.
    fn range(&self) -> (f64, f64) {
        let lowest = 1.0 / self.config.num_train_timesteps as f64;
        match self.config.use_dynamic_shifting {
            true => (1.0, lowest),
            // In 32 bits, as the reference keeps it.
            false => (1.0, f64::from(self.by_constant(lowest) as f32)),
        }
    }

    fn by_constant(&self, sigma: f64) -> f64 {
        let shift = self.config.shift;
        shift * sigma / (1.0 + (shift - 1.0) * sigma)
    }

    /// More noise for larger pictures, because they show more of what is below it (Esser et al., section 5.3.2).
    fn shifted(&self, sigma: f64, patches: usize) -> f64 {
        let config = &self.config;
        if !config.use_dynamic_shifting {
            return self.by_constant(sigma);
        }
        let (base, most) = (config.base_shift.unwrap_or(0.5), config.max_shift.unwrap_or(1.15));
        let few = config.base_image_seq_len.unwrap_or(256) as f64;
        let many = config.max_image_seq_len.unwrap_or(4096) as f64;
        let slope = (most - base) / (many - few);
        let mu = patches as f64 * slope + (base - slope * few);
        let strength = match config.time_shift_type {
            ShiftKind::Exponential => mu.exp(),
            ShiftKind::Linear => mu,
        };
        strength / (strength + (1.0 / sigma - 1.0))
    }
}

/// One picture's way.
struct FlowMatch {
    times: Vec<f64>,
    /// One more than there are times.
    sigmas: Vec<f64>,
    stochastic: bool,
}

impl FlowMatch {
    fn new(config: &Config, sigmas: Vec<f64>) -> Self {
        // In 32 bits, as the reference has them.
        let mut sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
        let count = config.num_train_timesteps as f32;
        let times = sigmas.iter().map(|sigma| f64::from(*sigma as f32 * count)).collect();
        sigmas.push(0.0);
        Self { times, sigmas, stochastic: config.stochastic_sampling }
    }

    fn sigma(&self, index: usize) -> f64 {
        self.sigmas.get(index).copied().unwrap_or_default()
    }
}

impl Scheduler for FlowMatch {
    fn timesteps(&self) -> &[f64] {
        &self.times
    }

    fn step(&mut self, call: usize, output: &Tensor, latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let (now, then) = (self.sigma(call), self.sigma(call + 1));
        if !self.stochastic {
            return Ok((latents + (output * (then - now))?)?);
        }
        let original = self.predict_original(call, output, latents)?;
        let noise = noise.next(latents.dims(), latents.device())?;
        Ok(((original * (1.0 - then))? + (noise * then)?)?)
    }

    fn predict_original(&self, call: usize, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok((latents - (output * self.sigma(call))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(config: serde_json::Value) -> FlowSchedule {
        FlowSchedule { config: serde_json::from_value(config).unwrap(), path: PathBuf::new() }
    }

    fn close(left: &[f64], right: &[f64]) {
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(right) {
            assert!((left - right).abs() < 1e-6, "{left} {right}");
        }
    }

    #[test]
    fn levels_are_those_of_diffusers() {
        // What `set_timesteps` leaves in `sigmas`, without the 0 at the end.
        let fixed = schedule(serde_json::json!({"shift": 3.0}));
        close(&fixed.sigmas(Levels::OfTraining, 4, 7), &[1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572]);
        close(&fixed.sigmas(Levels::OfTraining, 1, 7), &[1.0]);
        let plain = schedule(serde_json::json!({}));
        close(&plain.sigmas(Levels::EqualParts, 4, 7), &[1.0, 0.75, 0.5, 0.25]);
        let dynamic = schedule(serde_json::json!({"use_dynamic_shifting": true}));
        let strength = 1.15f64.exp();
        let at = |sigma: f64| strength / (strength + 1.0 / sigma - 1.0);
        close(&dynamic.sigmas(Levels::EqualParts, 2, 4096), &[1.0, at(0.5)]);
        let ending = schedule(serde_json::json!({"shift_terminal": 0.1}));
        close(&ending.sigmas(Levels::EqualParts, 2, 7), &[1.0, 0.1]);
        close(&ending.sigmas(Levels::EqualParts, 1, 7), &[1.0]);
    }
}
