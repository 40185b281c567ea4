//! Noise schedules of diffusion models (Ho et al., arXiv 2006.11239), from `scheduler/scheduler_config.json`:
//! the noise of each training timestep, and the timesteps of one image among them. The solvers that step from
//! one to the next have a file each. Names and numbers are those of diffusers, the reference.

mod ddim;
mod dpm;
mod euler;
mod lcm;
mod pndm;

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::json;

use super::pipeline::{Scheduler, Settings};
use super::repository::{Repository, invalid};
use crate::architecture::parse;
use crate::error::{Error, Result};
use crate::models::config_file::{unsupported, with_defaults};

/// Maximum number of timesteps of a training.
pub(super) const MAX_TIMESTEPS: usize = 100_000;

/// Settings that have only one supported value, whichever the scheduler.
const ONLY: &[(&str, &str)] = &[
    ("algorithm_type", "\"dpmsolver++\""),
    ("interpolation_type", "\"linear\""),
    // Minus infinity.
    ("lambda_min_clipped", "-1.7976931348623157e308"),
    ("skip_prk_steps", "true"),
    ("thresholding", "false"),
    ("timestep_type", "\"discrete\""),
    ("use_beta_sigmas", "false"),
    ("use_exponential_sigmas", "false"),
    ("use_flow_sigmas", "false"),
    ("use_lu_lambdas", "false"),
    ("variance_type", "null"),
];

/// Solver that steps from one timestep to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Solver {
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Dpm,
    Lcm,
}

/// Solvers by their names in requests and their classes in repositories.
const SOLVERS: [(&str, &str, Solver); 6] = [
    ("ddim", "DDIMScheduler", Solver::Ddim),
    ("pndm", PNDM, Solver::Pndm),
    ("euler", "EulerDiscreteScheduler", Solver::Euler),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", Solver::EulerAncestral),
    ("dpm++", "DPMSolverMultistepScheduler", Solver::Dpm),
    ("lcm", LCM, Solver::Lcm),
];
const CLASSES: &str = "DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, \
                       DPMSolverMultistepScheduler, LCMScheduler";
const LCM: &str = "LCMScheduler";
const PNDM: &str = "PNDMScheduler";

/// Growth of the noise over the training timesteps (`beta_schedule`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BetaSchedule {
    Linear,
    ScaledLinear,
    SquaredcosCapV2,
}

/// Distribution of an image's timesteps over those of the training (Lin et al., arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

/// Prediction of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
}

impl PredictionType {
    /// Estimates the latents without noise from a prediction, at a timestep of this cumulative product of
    /// alphas.
    fn predict_original(self, alpha_cumprod: f64, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
        match self {
            Self::Epsilon => Ok(((latents - (output * sigma)?)? / alpha)?),
            Self::VPrediction => Ok(((latents * alpha)? - (output * sigma)?)?),
        }
    }
}

/// Latents with noise, at a timestep of this cumulative product of alphas.
fn with_noise(alpha_cumprod: f64, latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
    Ok(((latents * alpha_cumprod.sqrt())? + (noise * (1.0 - alpha_cumprod).sqrt())?)?)
}

/// Noise level after the last step (`final_sigmas_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FinalSigma {
    Zero,
    SigmaMin,
}

/// `scheduler/scheduler_config.json`, with the defaults that all schedulers of diffusers share; where they
/// differ, the solver fills in its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct ScheduleConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    num_train_timesteps: usize,
    beta_start: f32,
    beta_end: f32,
    beta_schedule: BetaSchedule,
    trained_betas: Option<Vec<f32>>,
    prediction_type: PredictionType,
    timestep_spacing: Option<TimestepSpacing>,
    steps_offset: usize,
    rescale_betas_zero_snr: bool,
    set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: f64,
    use_karras_sigmas: Option<bool>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    final_sigmas_type: FinalSigma,
    solver_order: usize,
    solver_type: dpm::SolverType,
    lower_order_final: bool,
    euler_at_final: bool,
    original_inference_steps: usize,
    timestep_scaling: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            use_karras_sigmas: None,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigma::Zero,
            solver_order: 2,
            solver_type: dpm::SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

/// Noise schedule of a model.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    config: ScheduleConfig,
    default_solver: Solver,
    /// Cumulative product of the alphas at each training timestep: the share of the signal's variance.
    alphas_cumprod: Vec<f64>,
}

impl Schedule {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "scheduler/scheduler_config.json";
        let (path, config): (_, ScheduleConfig) = repository.config_by(file, &[], ONLY, |path, config| {
            // Without the setting, diffusers begins with Runge-Kutta steps.
            if config["_class_name"] == PNDM && config["skip_prk_steps"].is_null() {
                return Err(unsupported(path, "skip_prk_steps", "false", "true"));
            }
            parse(path, &with_own_defaults(config))
        })?;
        let found = SOLVERS.iter().find(|(_, class, _)| *class == config.class_name);
        let Some((_, _, solver)) = found else {
            return Err(Error::UnsupportedSetting {
                file: path,
                what: "_class_name".into(),
                found: config.class_name,
                supported: CLASSES.into(),
            });
        };
        let (original, all) = (config.original_inference_steps, config.num_train_timesteps);
        if !(1..=all).contains(&original) || !config.timestep_scaling.is_finite() {
            let reason = format!(
                "original_inference_steps is {original}, of {all} timesteps, and timestep_scaling {}",
                config.timestep_scaling
            );
            return Err(invalid(&path, reason));
        }
        let alphas_cumprod = alphas_cumprod(&path, &config)?;
        Ok(Self { default_solver: *solver, alphas_cumprod, config })
    }

    /// Corrects the settings of old files, as the class `StableDiffusionPipeline` of diffusers does and no other.
    pub(super) fn corrected(mut self) -> Self {
        self.config.steps_offset = 1;
        // DDIM clips where its file does not say; another class has the setting only from its file.
        if self.config.clip_sample == Some(true) || self.default_solver == Solver::Ddim {
            self.config.clip_sample = Some(false);
        }
        self
    }

    /// Number of steps that a model is distilled to, by its schedule: one for SD-Turbo and SDXL-Turbo, of which
    /// nothing else in their repositories says so; a few for a latent consistency model.
    pub(super) fn distilled_steps(&self) -> Option<usize> {
        let config = &self.config;
        let is_plain = config.prediction_type == PredictionType::Epsilon && !config.rescale_betas_zero_snr;
        let is_trailing = config.timestep_spacing == Some(TimestepSpacing::Trailing);
        match self.default_solver {
            Solver::EulerAncestral if is_trailing => Some(1),
            // Models of velocities and those that end in pure noise have this spacing for another reason.
            Solver::Euler if is_trailing && is_plain => Some(1),
            Solver::Lcm => Some(LCM_STEPS),
            _ => None,
        }
    }

    /// Starts the schedule of one image.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name and for more steps than there are training timesteps.
    pub(super) fn start(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        let solver = match settings.scheduler.as_deref() {
            None => self.default_solver,
            Some(wanted) => find(wanted)?,
        };
        let (steps, most) = (settings.steps, self.alphas_cumprod.len());
        if !(1..=most).contains(&steps) {
            let reason = format!("{steps} steps are asked for; this model's schedule has 1 to {most}");
            return Err(Error::InvalidInput(reason));
        }
        if solver == Solver::Lcm {
            // Its timesteps are chosen anew from the part that is taken.
            let strength = settings.image.as_ref().map_or(1.0, |image| image.strength);
            return Ok(Box::new(lcm::Lcm::new(self, steps, strength)?));
        }
        let skipped = settings.skipped(false)?;
        Ok(match solver {
            Solver::Ddim => Box::new(ddim::Ddim::new(self, steps, skipped)),
            Solver::Pndm => Box::new(pndm::Pndm::new(self, steps, skipped)),
            Solver::Euler => Box::new(euler::Euler::plain(self, steps, skipped)),
            Solver::EulerAncestral => Box::new(euler::Euler::ancestral(self, steps, skipped)),
            Solver::Dpm | Solver::Lcm => Box::new(dpm::Dpm::new(self, steps, skipped)),
        })
    }

    /// Cumulative product of alphas at a timestep; `before` for a negative one, which is before the first.
    fn alpha_cumprod_at(&self, timestep: i64, before: f64) -> f64 {
        match usize::try_from(timestep) {
            Ok(timestep) => {
                self.alphas_cumprod.get(timestep).or(self.alphas_cumprod.last()).copied().unwrap_or(before)
            }
            Err(_) => before,
        }
    }

    /// Timesteps of so many steps, the last first, rounded where the schedulers with whole timesteps do so.
    fn timesteps(&self, steps: usize, spacing: TimestepSpacing) -> Vec<f64> {
        let all = self.alphas_cumprod.len();
        let timestep = |step: usize| match spacing {
            TimestepSpacing::Linspace => (all - 1) as f64 * step as f64 / (steps.max(2) - 1) as f64,
            TimestepSpacing::Leading => ((step * (all / steps)) + self.config.steps_offset) as f64,
            TimestepSpacing::Trailing => {
                let from_end = (steps - 1 - step) as f64 * (all as f64 / steps as f64);
                (all as f64 - from_end).round_ties_even() - 1.0
            }
        };
        (0..steps).rev().map(timestep).collect()
    }

    /// Noise levels at timesteps that may lie between those of the training.
    fn sigmas_at(&self, timesteps: &[f64]) -> Vec<f64> {
        let sigmas = self.sigmas();
        let last = sigmas.len().saturating_sub(1);
        let at = |timestep: &f64| {
            let low = (timestep.max(0.0) as usize).min(last);
            let (below, above) = (sigmas[low], sigmas[(low + 1).min(last)]);
            below + (above - below) * (timestep - low as f64).clamp(0.0, 1.0)
        };
        timesteps.iter().map(at).collect()
    }

    /// Noise level of each training timestep, relative to a signal of 1.
    fn sigmas(&self) -> Vec<f64> {
        // Close to 0, where the training ends in pure noise, for the quotient to be finite.
        let alphas_cumprod =
            self.alphas_cumprod.iter().map(|alpha| if *alpha == 0.0 { 2f64.powi(-24) } else { *alpha });
        alphas_cumprod.map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }

    /// Timestep of a noise level, interpolated in its logarithm.
    fn timestep_of(&self, sigma: f64, sigmas: &[f64]) -> f64 {
        let last = sigmas.len().saturating_sub(2);
        let low = sigmas.iter().rposition(|known| *known <= sigma).unwrap_or(0).min(last);
        let [below, above] = [low, low + 1].map(|index| sigmas.get(index).copied().unwrap_or(sigma).ln());
        let part = (below - sigma.max(1e-10).ln()) / (below - above);
        low as f64 + part.clamp(0.0, 1.0)
    }

    /// Noise levels of Karras et al., arXiv 2206.00364, equation 5, from `most` down to `least`.
    fn karras_sigmas(&self, most: f64, least: f64, steps: usize) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let most = self.config.sigma_max.unwrap_or(most).powf(1.0 / RHO);
        let least = self.config.sigma_min.unwrap_or(least).powf(1.0 / RHO);
        let part = |step: usize| step as f64 / (steps.max(2) - 1) as f64;
        (0..steps).map(|step| (most + part(step) * (least - most)).powf(RHO)).collect()
    }

    /// Noise level after the last step.
    fn final_sigma(&self) -> f64 {
        match self.config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.sigmas().first().copied().unwrap_or_default(),
        }
    }
}

/// Steps of a latent consistency model where a request names no number.
pub(super) const LCM_STEPS: usize = 4;

/// The configuration with the defaults of its class, where these are not those of all.
fn with_own_defaults(config: &serde_json::Value) -> serde_json::Value {
    match config.get("_class_name").and_then(serde_json::Value::as_str) {
        Some(LCM) => with_defaults(
            config,
            json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        ),
        _ => config.clone(),
    }
}

/// True for the name of a scheduler that requests may ask for.
pub(super) fn is_known(wanted: &str) -> bool {
    SOLVERS.iter().any(|(name, class, _)| wanted == *name || wanted == *class)
}

/// Names of the schedulers in requests.
pub(super) fn names() -> Vec<&'static str> {
    SOLVERS.iter().map(|(name, _, _)| *name).collect()
}

fn find(wanted: &str) -> Result<Solver> {
    let found = SOLVERS.iter().find(|(name, class, _)| wanted == *name || wanted == *class);
    found.map(|(_, _, kind)| *kind).ok_or_else(|| {
        let known = names();
        Error::InvalidInput(format!("the scheduler {wanted:?} is unknown; known are: {}", known.join(", ")))
    })
}

/// Cumulative product of the alphas, in 32 bits with the product in 64, as the reference computes it.
fn alphas_cumprod(path: &Path, config: &ScheduleConfig) -> Result<Vec<f64>> {
    let count = config.num_train_timesteps;
    if !(2..=MAX_TIMESTEPS).contains(&count) {
        return Err(invalid(
            path,
            format!("num_train_timesteps is {count}; 2 to {MAX_TIMESTEPS} are allowed"),
        ));
    }
    let betas = match &config.trained_betas {
        Some(betas) if betas.len() == count => betas.clone(),
        Some(betas) => {
            let reason = format!("it has {} trained_betas for num_train_timesteps {count}", betas.len());
            return Err(invalid(path, reason));
        }
        None => betas(config, count),
    };
    if let Some(beta) = betas.iter().find(|beta| !(**beta > 0.0 && **beta < 1.0)) {
        return Err(invalid(path, format!("the noise of a step is {beta}; it must lie between 0 and 1")));
    }
    let mut product = 1.0;
    let mut alphas_cumprod: Vec<f64> = Vec::with_capacity(count);
    for beta in betas {
        product *= f64::from(1.0 - beta);
        alphas_cumprod.push(f64::from(product as f32));
    }
    if config.rescale_betas_zero_snr {
        rescale_zero_terminal_snr(&mut alphas_cumprod);
    }
    Ok(alphas_cumprod)
}

fn betas(config: &ScheduleConfig, count: usize) -> Vec<f32> {
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start, config.beta_end, count),
        BetaSchedule::ScaledLinear => {
            // The reference takes the roots in 64 bits.
            let [start, end] = [config.beta_start, config.beta_end].map(|beta| shortest(beta).sqrt() as f32);
            linspace(start, end, count).into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |part: f64| ((part + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let beta = |index: usize| {
                let [now, then] = [index, index + 1].map(|index| alpha_bar(index as f64 / count as f64));
                (1.0 - then / now).min(0.999) as f32
            };
            (0..count).map(beta).collect()
        }
    }
}

/// Number of the file in 64 bits.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// `torch.linspace`, which counts from both ends to the middle.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let at = |index: usize| match index < count / 2 {
        true => start + step * index as f32,
        false => end - step * (count - 1 - index) as f32,
    };
    (0..count).map(at).collect()
}

/// Rescales the alphas so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1).
fn rescale_zero_terminal_snr(alphas_cumprod: &mut [f64]) {
    let (Some(first), Some(last)) =
        (alphas_cumprod.first().map(|x| x.sqrt()), alphas_cumprod.last().map(|x| x.sqrt()))
    else {
        return;
    };
    for alpha in alphas_cumprod {
        *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
    }
}
