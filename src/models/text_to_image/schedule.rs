//! Noise schedules of diffusion models (Ho et al., arXiv 2006.11239), from `scheduler/scheduler_config.json`: how much
//! noise there is at each time of the training, and which of these times a picture is painted with. The five ways from
//! one such time to the next have a file each; the reference for all of it is diffusers.

mod ddim;
mod dpm;
mod euler;
mod pndm;

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::pipeline::{Scheduler, Settings};
use super::repository::{Repository, invalid};
use crate::error::{Error, Result};

/// Most times of a training.
pub(super) const MAX_TIMES: usize = 100_000;

/// Settings that have only one supported value, whichever the scheduler.
const ONLY: &[(&str, &str)] = &[
    ("algorithm_type", "\"dpmsolver++\""),
    ("interpolation_type", "\"linear\""),
    ("lambda_min_clipped", "null"),
    ("skip_prk_steps", "true"),
    ("thresholding", "false"),
    ("timestep_type", "\"discrete\""),
    ("use_beta_sigmas", "false"),
    ("use_exponential_sigmas", "false"),
    ("use_flow_sigmas", "false"),
    ("use_lu_lambdas", "false"),
    ("variance_type", "null"),
];

/// A way from one time to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Dpm,
}

/// What requests call them, and what repositories do.
const KINDS: [(&str, &str, Kind); 5] = [
    ("ddim", "DDIMScheduler", Kind::Ddim),
    ("pndm", "PNDMScheduler", Kind::Pndm),
    ("euler", "EulerDiscreteScheduler", Kind::Euler),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", Kind::EulerAncestral),
    ("dpm++", "DPMSolverMultistepScheduler", Kind::Dpm),
];
const CLASSES: &str = "DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, \
                       DPMSolverMultistepScheduler";

/// How the noise grows over the times of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Betas {
    Linear,
    ScaledLinear,
    SquaredcosCapV2,
}

/// How the times of a picture lie among those of the training (Lin et al., arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
}

impl Prediction {
    /// The picture behind the noise, where so much of it, squared, is left.
    fn picture(self, kept: f64, output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (kept, noise) = (kept.sqrt(), (1.0 - kept).sqrt());
        match self {
            Self::Epsilon => Ok(((latents - (output * noise)?)? / kept)?),
            Self::VPrediction => Ok(((latents * kept)? - (output * noise)?)?),
        }
    }
}

/// Which noise the last step ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FinalSigma {
    Zero,
    SigmaMin,
}

/// `scheduler/scheduler_config.json`. What has the same default for all schedulers in diffusers has it here; what has
/// not is asked for by the scheduler.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct ScheduleConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    num_train_timesteps: usize,
    beta_start: f32,
    beta_end: f32,
    beta_schedule: Betas,
    trained_betas: Option<Vec<f32>>,
    prediction_type: Prediction,
    timestep_spacing: Option<Spacing>,
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
    solver_type: dpm::Solver,
    lower_order_final: bool,
    euler_at_final: bool,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: Betas::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
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
            solver_type: dpm::Solver::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

/// A noise schedule that is ready for pictures.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    config: ScheduleConfig,
    own: Kind,
    /// For each time of the training the part of the picture, squared, that is left.
    kept: Vec<f64>,
}

impl Schedule {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "scheduler/scheduler_config.json";
        let (path, config): (_, ScheduleConfig) = repository.config(file, &[], ONLY)?;
        let own = KINDS.iter().find(|(_, class, _)| *class == config.class_name);
        let Some((_, _, own)) = own else {
            return Err(Error::UnsupportedSetting {
                file: path,
                what: "_class_name".into(),
                found: config.class_name,
                supported: CLASSES.into(),
            });
        };
        let kept = kept(&path, &config)?;
        Ok(Self { own: *own, kept, config })
    }

    /// True for a schedule of models that are distilled to a single step, such as SDXL-Turbo: nothing else in their
    /// repositories says so.
    pub(super) fn is_single_step(&self) -> bool {
        self.own == Kind::EulerAncestral && self.config.timestep_spacing == Some(Spacing::Trailing)
    }

    /// The schedule of one picture.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an unknown name and for more steps than there are times.
    pub(super) fn start(&self, settings: &Settings) -> Result<Box<dyn Scheduler>> {
        let kind = match settings.scheduler.as_deref() {
            None => self.own,
            Some(wanted) => find(wanted)?,
        };
        let (steps, most) = (settings.steps, self.kept.len());
        if !(1..=most).contains(&steps) {
            let reason = format!("{steps} steps are asked for; this model's schedule has 1 to {most}");
            return Err(Error::InvalidInput(reason));
        }
        Ok(match kind {
            Kind::Ddim => Box::new(ddim::Ddim::new(self, steps)),
            Kind::Pndm => Box::new(pndm::Pndm::new(self, steps)),
            Kind::Euler => Box::new(euler::Euler::plain(self, steps)),
            Kind::EulerAncestral => Box::new(euler::Euler::ancestral(self, steps)),
            Kind::Dpm => Box::new(dpm::Dpm::new(self, steps)),
        })
    }

    /// What is left of the picture at a time, squared; before the first time, at a negative one, what `before` says.
    fn kept_at(&self, time: i64, before: f64) -> f64 {
        match usize::try_from(time) {
            Ok(time) => self.kept.get(time).or(self.kept.last()).copied().unwrap_or(before),
            Err(_) => before,
        }
    }

    /// Times for so many steps, the last first, rounded where the schedulers of whole times do.
    fn times(&self, steps: usize, spacing: Spacing) -> Vec<f64> {
        let all = self.kept.len();
        let time = |step: usize| match spacing {
            Spacing::Linspace => (all - 1) as f64 * step as f64 / (steps.max(2) - 1) as f64,
            Spacing::Leading => ((step * (all / steps)) + self.config.steps_offset) as f64,
            Spacing::Trailing => {
                let from_end = (steps - 1 - step) as f64 * (all as f64 / steps as f64);
                (all as f64 - from_end).round_ties_even() - 1.0
            }
        };
        (0..steps).rev().map(time).collect()
    }

    /// Noise against picture at times that may lie between those of the training.
    fn sigmas_at(&self, times: &[f64]) -> Vec<f64> {
        let sigmas = self.sigmas();
        let last = sigmas.len().saturating_sub(1);
        let at = |time: &f64| {
            let low = (time.max(0.0) as usize).min(last);
            let (below, above) = (sigmas[low], sigmas[(low + 1).min(last)]);
            below + (above - below) * (time - low as f64).clamp(0.0, 1.0)
        };
        times.iter().map(at).collect()
    }

    /// Noise against picture at each time of the training.
    fn sigmas(&self) -> Vec<f64> {
        // Close to nothing without being nothing, where the training ends in pure noise.
        let kept = self.kept.iter().map(|kept| if *kept == 0.0 { 2f64.powi(-24) } else { *kept });
        kept.map(|kept| ((1.0 - kept) / kept).sqrt()).collect()
    }

    /// The time at which there is so much noise.
    fn time_of(&self, sigma: f64, sigmas: &[f64]) -> f64 {
        let last = sigmas.len().saturating_sub(2);
        let low = sigmas.iter().rposition(|known| *known <= sigma).unwrap_or(0).min(last);
        let [below, above] = [low, low + 1].map(|index| sigmas.get(index).copied().unwrap_or(sigma).ln());
        let part = (below - sigma.max(1e-10).ln()) / (below - above);
        low as f64 + part.clamp(0.0, 1.0)
    }

    /// The noise levels of Karras et al., arXiv 2206.00364, equation 5, from `most` down to `least`.
    fn karras(&self, most: f64, least: f64, steps: usize) -> Vec<f64> {
        const RHO: f64 = 7.0;
        let most = self.config.sigma_max.unwrap_or(most).powf(1.0 / RHO);
        let least = self.config.sigma_min.unwrap_or(least).powf(1.0 / RHO);
        let part = |step: usize| step as f64 / (steps.max(2) - 1) as f64;
        (0..steps).map(|step| (most + part(step) * (least - most)).powf(RHO)).collect()
    }

    /// What the last step ends with.
    fn final_sigma(&self) -> f64 {
        match self.config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.sigmas().first().copied().unwrap_or_default(),
        }
    }
}

/// Whether requests may ask for a scheduler of this name.
pub(super) fn is_known(wanted: &str) -> bool {
    KINDS.iter().any(|(name, class, _)| wanted == *name || wanted == *class)
}

/// What requests call the schedulers.
pub(super) fn names() -> Vec<&'static str> {
    KINDS.iter().map(|(name, _, _)| *name).collect()
}

fn find(wanted: &str) -> Result<Kind> {
    let found = KINDS.iter().find(|(name, class, _)| wanted == *name || wanted == *class);
    found.map(|(_, _, kind)| *kind).ok_or_else(|| {
        let known = names();
        Error::InvalidInput(format!("the scheduler {wanted:?} is unknown; known are: {}", known.join(", ")))
    })
}

/// Computed in 32 bits, with the product in 64, as the reference does.
fn kept(path: &Path, config: &ScheduleConfig) -> Result<Vec<f64>> {
    let count = config.num_train_timesteps;
    if !(2..=MAX_TIMES).contains(&count) {
        return Err(invalid(path, format!("num_train_timesteps is {count}; 2 to {MAX_TIMES} are allowed")));
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
    let mut kept: Vec<f64> = Vec::with_capacity(count);
    for beta in betas {
        product *= f64::from(1.0 - beta);
        kept.push(f64::from(product as f32));
    }
    if config.rescale_betas_zero_snr {
        rescale(&mut kept);
    }
    Ok(kept)
}

fn betas(config: &ScheduleConfig, count: usize) -> Vec<f32> {
    match config.beta_schedule {
        Betas::Linear => line(config.beta_start, config.beta_end, count),
        Betas::ScaledLinear => {
            // The reference takes the roots in 64 bits.
            let [start, end] = [config.beta_start, config.beta_end].map(|beta| shortest(beta).sqrt() as f32);
            line(start, end, count).into_iter().map(|root| root * root).collect()
        }
        Betas::SquaredcosCapV2 => {
            let kept = |part: f64| ((part + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let beta = |index: usize| {
                let [now, then] = [index, index + 1].map(|index| kept(index as f64 / count as f64));
                (1.0 - then / now).min(0.999) as f32
            };
            (0..count).map(beta).collect()
        }
    }
}

/// The number that was written in the file, in 64 bits.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// Numbers at equal distances, from both ends to the middle.
fn line(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let at = |index: usize| match index < count / 2 {
        true => start + step * index as f32,
        false => end - step * (count - 1 - index) as f32,
    };
    (0..count).map(at).collect()
}

/// Stretched so that nothing of the picture is left at the end (Lin et al., arXiv 2305.08891, algorithm 1).
fn rescale(kept: &mut [f64]) {
    let (Some(first), Some(last)) = (kept.first().map(|x| x.sqrt()), kept.last().map(|x| x.sqrt())) else {
        return;
    };
    for kept in kept {
        *kept = ((kept.sqrt() - last) * first / (first - last)).powi(2);
    }
}
