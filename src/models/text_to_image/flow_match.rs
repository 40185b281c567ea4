//! Noise schedule of models that are trained by flow matching (Lipman et al., arXiv 2210.02747; Esser et al.,
//! arXiv 2403.03206): latents are interpolated between image and noise, the network predicts the velocity
//! from one to the other, and Euler's method integrates it. The reference is
//! `FlowMatchEulerDiscreteScheduler` of diffusers.

use std::path::PathBuf;

use candle_core::Tensor;
use serde::Deserialize;

use super::noise::Noise;
use super::pipeline::{Scheduler, Settings};
use super::repository::{Repository, invalid};
use super::schedule::MAX_TIMESTEPS;
use crate::error::{Error, Result};

const CLASSES: &[&str] = &["FlowMatchEulerDiscreteScheduler"];
/// Largest shift; the smallest is its reciprocal.
const MAX_SHIFT: f64 = 1000.0;
/// Name of the scheduler in requests.
pub(super) const NAME: &str = "flow_match_euler";

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("invert_sigmas", "false")];

/// True for a name of this scheduler.
pub(super) fn is_known(wanted: &str) -> bool {
    wanted == NAME || CLASSES.contains(&wanted)
}

/// Kind of the shift that depends on the size of the image (`time_shift_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShiftKind {
    Exponential,
    Linear,
}

/// `scheduler/scheduler_config.json`, with the defaults of diffusers.
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
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
}

/// Distribution of the noise levels between the highest and the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distribution {
    /// As they are shifted.
    Shifted,
    /// Karras et al., arXiv 2206.00364, equation 5.
    Karras,
    /// In equal ratios.
    Exponential,
    /// By the quantiles of a beta distribution (Lee et al., arXiv 2407.12173).
    Beta,
}

impl Config {
    /// The distribution that the file names, or nothing if it names several.
    fn distribution(&self) -> Option<Distribution> {
        let named = [
            (self.use_karras_sigmas, Distribution::Karras),
            (self.use_exponential_sigmas, Distribution::Exponential),
            (self.use_beta_sigmas, Distribution::Beta),
        ];
        let mut chosen = named.into_iter().filter(|(is_used, _)| *is_used == Some(true));
        match (chosen.next(), chosen.next()) {
            (None, _) => Some(Distribution::Shifted),
            (Some((_, one)), None) => Some(one),
            _ => None,
        }
    }
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
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
        }
    }
}

/// Noise levels of an image before they are shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SigmaRange {
    /// From the highest to the lowest of the training, as Stable Diffusion 3 has them.
    Training,
    /// From 1 to 0 in equal steps, as FLUX has them.
    Unit,
}

/// Noise schedule of a model.
#[derive(Debug, Clone)]
pub(super) struct FlowSchedule {
    config: Config,
    path: PathBuf,
}

impl FlowSchedule {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "scheduler/scheduler_config.json";
        let (path, config): (_, Config) = repository.config(file, CLASSES, ONLY)?;
        let timesteps = config.num_train_timesteps;
        if !(1..=MAX_TIMESTEPS).contains(&timesteps) {
            return Err(invalid(
                &path,
                format!("num_train_timesteps is {timesteps}; 1 to {MAX_TIMESTEPS} are allowed"),
            ));
        }
        let (shift, least) = (config.shift, 1.0 / MAX_SHIFT);
        if !(least..=MAX_SHIFT).contains(&shift) {
            return Err(invalid(&path, format!("shift is {shift}; {least} to {MAX_SHIFT} are allowed")));
        }
        if let Some(end) = config.shift_terminal.filter(|end| !(0.0..1.0).contains(end)) {
            return Err(invalid(&path, format!("shift_terminal is {end}; it must lie between 0 and 1")));
        }
        if config.distribution().is_none() {
            let reason = "it has several of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas";
            return Err(invalid(&path, reason));
        }
        Ok(Self { config, path })
    }

    /// Starts the schedule of one image that is cut into so many patches.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name; [`Error::InvalidConfig`] if the shift makes an impossible noise level.
    pub(super) fn start(
        &self,
        settings: &Settings,
        range: SigmaRange,
        patches: usize,
    ) -> Result<Box<dyn Scheduler>> {
        if let Some(wanted) = settings.scheduler.as_ref().filter(|wanted| !is_known(wanted)) {
            let reason = format!("the scheduler {wanted:?} is unknown; this model is painted with {NAME}");
            return Err(Error::InvalidInput(reason));
        }
        let mut sigmas = self.sigmas(range, settings.steps.max(1), patches);
        if let Some(sigma) = sigmas.iter().find(|sigma| !(0.0..=1.0 + 1e-6).contains(*sigma)) {
            let reason = format!("its shift makes a noise level of {sigma}; 0 to 1 can be computed with");
            return Err(invalid(&self.path, reason));
        }
        sigmas.drain(..settings.skipped(true)?.min(sigmas.len()));
        Ok(Box::new(FlowMatchEuler::new(&self.config, sigmas)))
    }

    /// Noise levels of all steps, the highest first.
    fn sigmas(&self, range: SigmaRange, steps: usize, patches: usize) -> Vec<f64> {
        let (from, to) = match range {
            SigmaRange::Training => self.training_range(),
            SigmaRange::Unit => (1.0, 1.0 / steps as f64),
        };
        let distance = (to - from) / (steps.max(2) - 1) as f64;
        let mut sigmas: Vec<f64> =
            (0..steps).map(|step| self.shift(from + distance * step as f64, patches)).collect();
        if let (Some(end), Some(last)) =
            (self.config.shift_terminal.filter(|end| *end > 0.0), sigmas.last().copied())
            && last < 1.0
        {
            let stretch = (1.0 - last) / (1.0 - end);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / stretch);
        }
        match (self.config.distribution(), sigmas.first().copied(), sigmas.last().copied()) {
            (Some(distribution), Some(most), Some(least)) => distribution.spread(sigmas, most, least),
            _ => sigmas,
        }
    }

    /// Highest and lowest noise level of the training.
    fn training_range(&self) -> (f64, f64) {
        let lowest = 1.0 / self.config.num_train_timesteps as f64;
        match self.config.use_dynamic_shifting {
            true => (1.0, lowest),
            // In 32 bits, as the reference keeps it.
            false => (1.0, f64::from(self.shift_by_constant(lowest) as f32)),
        }
    }

    fn shift_by_constant(&self, sigma: f64) -> f64 {
        let shift = self.config.shift;
        shift * sigma / (1.0 + (shift - 1.0) * sigma)
    }

    /// Shifts a noise level, upwards for larger images, in which the same noise hides less (Esser et al.,
    /// section 5.3.2).
    fn shift(&self, sigma: f64, patches: usize) -> f64 {
        let config = &self.config;
        if !config.use_dynamic_shifting {
            return self.shift_by_constant(sigma);
        }
        let (base, most) = (config.base_shift.unwrap_or(0.5), config.max_shift.unwrap_or(1.15));
        let few = config.base_image_seq_len.unwrap_or(256) as f64;
        let many = config.max_image_seq_len.unwrap_or(4096) as f64;
        let slope = (most - base) / (many - few);
        let mu = patches as f64 * slope + (base - slope * few);
        let factor = match config.time_shift_type {
            ShiftKind::Exponential => mu.exp(),
            ShiftKind::Linear => mu,
        };
        factor / (factor + (1.0 / sigma - 1.0))
    }
}

impl Distribution {
    /// The noise levels, as many as there are, between the highest and the lowest.
    fn spread(self, sigmas: Vec<f64>, most: f64, least: f64) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let steps = sigmas.len().max(2) - 1;
        let between = |most: f64, least: f64, step: usize| most + step as f64 / steps as f64 * (least - most);
        let at = |step: usize| match self {
            Self::Shifted => sigmas.get(step).copied().unwrap_or_default(),
            Self::Karras => between(most.powf(1.0 / RHO), least.powf(1.0 / RHO), step).powf(RHO),
            Self::Exponential => between(most.ln(), least.ln(), step).exp(),
            Self::Beta => least + beta_quantile(between(1.0, 0.0, step)) * (most - least),
        };
        (0..sigmas.len()).map(at).collect()
    }
}

/// Both parameters of the beta distribution.
const BETA: f64 = 0.6;

/// The value below which this share of the beta distribution lies, which is the same to both sides.
fn beta_quantile(share: f64) -> f64 {
    if share > 0.5 {
        return 1.0 - beta_quantile(1.0 - share);
    }
    let whole = 2.0 * incomplete_beta(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..f64::MANTISSA_DIGITS {
        let middle = f64::midpoint(low, high);
        match incomplete_beta(middle) < share * whole {
            true => low = middle,
            false => high = middle,
        }
    }
    if share > 0.0 { high } else { 0.0 }
}

/// Incomplete beta function up to `x`, at most a half, by its power series.
fn incomplete_beta(x: f64) -> f64 {
    let (mut sum, mut term) = (0.0, 1.0);
    for index in 0..64 {
        let index = f64::from(index);
        sum += term / (BETA + index);
        term *= (1.0 - BETA + index) / (index + 1.0) * x;
    }
    x.powf(BETA) * sum
}

/// `FlowMatchEulerDiscreteScheduler` of diffusers.
struct FlowMatchEuler {
    timesteps: Vec<f64>,
    /// Noise levels, one more than there are timesteps.
    sigmas: Vec<f64>,
    stochastic: bool,
}

impl FlowMatchEuler {
    fn new(config: &Config, sigmas: Vec<f64>) -> Self {
        // In 32 bits, as the reference has them.
        let mut sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
        let count = config.num_train_timesteps as f32;
        let timesteps = sigmas.iter().map(|sigma| f64::from(*sigma as f32 * count)).collect();
        sigmas.push(0.0);
        Self { timesteps, sigmas, stochastic: config.stochastic_sampling }
    }

    fn sigma(&self, index: usize) -> f64 {
        self.sigmas.get(index).copied().unwrap_or_default()
    }
}

impl Scheduler for FlowMatchEuler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, call: usize, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let sigma = self.sigma(call);
        Ok(((latents * (1.0 - sigma))? + (noise * sigma)?)?)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        latents: &Tensor,
        noise: &mut Noise,
    ) -> Result<Tensor> {
        let (now, then) = (self.sigma(call), self.sigma(call + 1));
        if !self.stochastic {
            return Ok((latents + (prediction * (then - now))?)?);
        }
        let original = self.predict_original(call, prediction, latents)?;
        let noise = noise.next(latents.dims(), latents.device())?;
        Ok(((original * (1.0 - then))? + (noise * then)?)?)
    }

    fn predict_original(&self, call: usize, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok((latents - (prediction * self.sigma(call))?)?)
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
        // `sigmas` after `set_timesteps` in diffusers, without the 0 at the end.
        let fixed = schedule(serde_json::json!({"shift": 3.0}));
        close(&fixed.sigmas(SigmaRange::Training, 4, 7), &[1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572]);
        close(&fixed.sigmas(SigmaRange::Training, 1, 7), &[1.0]);
        let plain = schedule(serde_json::json!({}));
        close(&plain.sigmas(SigmaRange::Unit, 4, 7), &[1.0, 0.75, 0.5, 0.25]);
        let dynamic = schedule(serde_json::json!({"use_dynamic_shifting": true}));
        let strength = 1.15f64.exp();
        let at = |sigma: f64| strength / (strength + 1.0 / sigma - 1.0);
        close(&dynamic.sigmas(SigmaRange::Unit, 2, 4096), &[1.0, at(0.5)]);
        let ending = schedule(serde_json::json!({"shift_terminal": 0.1}));
        close(&ending.sigmas(SigmaRange::Unit, 2, 7), &[1.0, 0.1]);
        close(&ending.sigmas(SigmaRange::Unit, 1, 7), &[1.0]);
    }

    #[derive(Deserialize)]
    struct Levels {
        config: serde_json::Value,
        steps: usize,
        sigmas: Vec<f64>,
    }

    #[test]
    fn levels_between_the_highest_and_the_lowest_are_spread_as_in_diffusers() {
        let all: Vec<Levels> =
            serde_json::from_str(include_str!("../../../tests/references/flow_levels.json")).unwrap();
        for Levels { config, steps, sigmas } in &all {
            println!("{config} {steps}");
            close(&schedule(config.clone()).sigmas(SigmaRange::Training, *steps, 4096), sigmas);
        }
        assert!(all.len() >= 12);
    }

    #[test]
    fn the_quantiles_of_the_beta_distribution_are_the_inverse_of_its_shares() {
        assert_eq!((beta_quantile(0.0), beta_quantile(1.0)), (0.0, 1.0));
        for step in 1..=50 {
            let value = f64::from(step) / 100.0;
            let share = incomplete_beta(value) / (2.0 * incomplete_beta(0.5));
            assert!((beta_quantile(share) - value).abs() < 1e-12, "{value}");
            assert!((beta_quantile(1.0 - share) - (1.0 - value)).abs() < 1e-12, "{value}");
        }
    }

    #[test]
    fn a_file_that_names_two_distributions_names_none() {
        let both = serde_json::json!({"use_karras_sigmas": true, "use_beta_sigmas": true});
        assert_eq!(schedule(both).config.distribution(), None);
        let one = serde_json::json!({"use_karras_sigmas": null, "use_beta_sigmas": true});
        assert_eq!(schedule(one).config.distribution(), Some(Distribution::Beta));
    }
}
