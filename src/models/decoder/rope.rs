//! A model's rotary embedding: from its settings, in `config.json` or a GGUF file's metadata, to the frequencies that
//! the kernel turns by. The ways of stretching a context beyond the length that a model was taught follow the papers
//! and the reference implementation in transformers (`modeling_rope_utils.py`).

use std::f64::consts::TAU;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::rotary::{Position, RopeTable, RotaryEmbedding};

/// A rotary embedding.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    pub(super) frequencies: RotaryEmbedding,
    /// Others, for sequences longer than so many tokens.
    pub(super) long: Option<(usize, RotaryEmbedding)>,
}

/// `rope_parameters`, or in older files `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeParameters {
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_type: Option<String>,
    /// What `rope_type` was called once.
    #[serde(rename = "type")]
    pub(super) old_type: Option<String>,
    pub(super) factor: Option<f64>,
    pub(super) low_freq_factor: Option<f64>,
    pub(super) high_freq_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) short_factor: Option<Vec<f64>>,
    pub(super) long_factor: Option<Vec<f64>>,
    pub(super) attention_factor: Option<f64>,
    pub(super) beta_fast: Option<f64>,
    pub(super) beta_slow: Option<f64>,
    pub(super) mscale: Option<f64>,
    pub(super) mscale_all_dim: Option<f64>,
    pub(super) truncate: Option<bool>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) mrope_section: Option<Vec<usize>>,
    pub(super) mrope_interleaved: Option<bool>,
}

/// The settings of `config.json` that rotary embeddings are made from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeSettings {
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<serde_json::Value>,
    pub(super) rope_parameters: Option<serde_json::Value>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<usize>,
}

impl RopeSettings {
    /// Whether the file tells kinds of layers apart.
    pub(super) fn has_kinds(&self) -> bool {
        self.rope_parameters.as_ref().is_some_and(|value| value.get("full_attention").is_some())
    }

    /// The parameters of all layers, or those of the layers of one kind where the file tells kinds apart.
    pub(super) fn parameters(&self, file: &Path, kind: Option<&str>) -> Result<RopeParameters> {
        let value = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let value = match (value, kind) {
            (Some(value), Some(kind)) => value.get(kind).or(Some(value)),
            (value, _) => value,
        };
        let mut parameters: RopeParameters = match value {
            None | Some(serde_json::Value::Null) => RopeParameters::default(),
            Some(value) => parse(file, value)?,
        };
        parameters.rope_theta = parameters.rope_theta.or(self.rope_theta);
        parameters.partial_rotary_factor = parameters.partial_rotary_factor.or(self.partial_rotary_factor);
        // Phi-3 has it outside, and there it counts for more.
        parameters.original_max_position_embeddings =
            self.original_max_position_embeddings.or(parameters.original_max_position_embeddings);
        Ok(parameters)
    }
}

/// What the rest of a model's configuration says of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeShape {
    pub(super) head_size: usize,
    pub(super) context: usize,
    /// The base where none is named.
    pub(super) base: f64,
}

impl RopeParameters {
    /// The rotary embedding that they describe.
    ///
    /// # Errors
    /// [`Error::UnsupportedSetting`] for an unknown kind, [`Error::InvalidConfig`] for numbers that make no sense.
    pub(super) fn rope(&self, file: &Path, shape: RopeShape) -> Result<Rope> {
        let invalid = |reason: &str| Error::InvalidConfig {
            file: file.to_owned(),
            reason: format!("the rotary embedding's settings make no sense: {reason}"),
        };
        let base = self.rope_theta.unwrap_or(shape.base);
        if !(base.is_finite() && base > 1.0) {
            return Err(invalid("rope_theta is no number above 1"));
        }
        let share = self.partial_rotary_factor.unwrap_or(1.0);
        if !(share > 0.0 && share <= 1.0) || shape.head_size > super::config::MAX_SIDE {
            return Err(invalid("partial_rotary_factor is not between 0 and 1, or head_dim is too large"));
        }
        let size = (shape.head_size as f64 * share) as usize;
        let plain: Vec<f32> =
            (0..size / 2).map(|pair| 1.0 / (base as f32).powf((2 * pair) as f32 / size as f32)).collect();
        let original = self.original_max_position_embeddings.unwrap_or(shape.context);
        let plan = Stretch { parameters: self, base, size, original, context: shape.context };
        let kind = self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default");
        let rope = match kind {
            "default" | "mrope" => Rope::new(plain, 1.0),
            "linear" => plan.linear(plain).ok_or_else(|| invalid("factor"))?,
            "llama3" => {
                plan.llama3(plain).ok_or_else(|| invalid("factor, low_freq_factor, high_freq_factor"))?
            }
            "yarn" => plan.yarn(plain).ok_or_else(|| invalid("factor, mscale, beta_fast, beta_slow"))?,
            "longrope" | "su" => {
                plan.long_rope(&plain).ok_or_else(|| invalid("short_factor and long_factor"))?
            }
            other => {
                return Err(Error::UnsupportedSetting {
                    file: file.to_owned(),
                    what: "rope_type".into(),
                    found: other.to_owned(),
                    supported: "default, linear, llama3, yarn, longrope, mrope".into(),
                });
            }
        };
        Ok(rope.with_axes(self.axes(size / 2)))
    }

    /// Which of a position's coordinates turns which pair, where the model has more than one (Qwen-VL).
    fn axes(&self, pairs: usize) -> Vec<u8> {
        let Some(sections) = &self.mrope_section else { return Vec::new() };
        let mut axes = vec![0; pairs];
        let mut begin = 0usize;
        for (axis, section) in sections.iter().enumerate().take(3) {
            let places = match self.mrope_interleaved {
                // Every third pair, from the axis's own number, as many as the section says.
                Some(true) => (axis..section.saturating_mul(3)).step_by(3),
                _ => (begin..begin.saturating_add(*section)).step_by(1),
            };
            begin = begin.saturating_add(*section);
            places.take_while(|place| *place < pairs).for_each(|place| axes[place] = axis as u8);
        }
        axes
    }
}

/// A way to stretch the frequencies of a model.
struct Stretch<'a> {
    parameters: &'a RopeParameters,
    base: f64,
    /// Numbers of a head that are turned.
    size: usize,
    /// The context that the model was taught at first.
    original: usize,
    context: usize,
}

impl Stretch<'_> {
    fn factor(&self) -> Option<f64> {
        let factor = self.parameters.factor.unwrap_or(self.context as f64 / self.original as f64);
        Some(factor).filter(|factor| factor.is_finite() && *factor > 0.0)
    }

    /// Positions closer to each other.
    fn linear(&self, plain: Vec<f32>) -> Option<Rope> {
        let factor = self.parameters.factor.filter(|factor| factor.is_finite() && *factor > 0.0)? as f32;
        Some(Rope::new(plain.into_iter().map(|step| step / factor).collect(), 1.0))
    }

    /// Llama 3.1: the slow ones stretched, the fast ones not, those between in between.
    fn llama3(&self, plain: Vec<f32>) -> Option<Rope> {
        let factor = self.factor()?;
        let (low, high) = (self.parameters.low_freq_factor?, self.parameters.high_freq_factor?);
        if !(low > 0.0 && high > low && high.is_finite()) {
            return None;
        }
        let original = self.original as f64;
        let stretched = plain.into_iter().map(|step| {
            let step = f64::from(step);
            let turns = original * step / TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - keep) * step / factor + keep * step) as f32
        });
        Some(Rope::new(stretched.collect(), 1.0))
    }

    /// YaRN (Peng et al., 2023).
    fn yarn(&self, plain: Vec<f32>) -> Option<Rope> {
        let settings = self.parameters;
        let factor = self.factor()?;
        let gain = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match (settings.attention_factor, settings.mscale, settings.mscale_all_dim) {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => gain(scale) / gain(all),
            _ => gain(1.0),
        };
        let pair_of = |turns: f64| {
            let turns_in_all = self.original as f64 / (turns * TAU);
            self.size as f64 * turns_in_all.ln() / (2.0 * self.base.ln())
        };
        let fast = pair_of(settings.beta_fast.filter(|beta| *beta != 0.0).unwrap_or(32.0));
        let slow = pair_of(settings.beta_slow.filter(|beta| *beta != 0.0).unwrap_or(1.0));
        let whole = settings.truncate.unwrap_or(true);
        let low = if whole { fast.floor() } else { fast }.max(0.0);
        let high = if whole { slow.ceil() } else { slow }.min(self.size as f64 - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        if !(low.is_finite() && high.is_finite() && attention_factor.is_finite()) {
            return None;
        }
        let stretched = plain.into_iter().enumerate().map(|(pair, step)| {
            let stretch = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let step = f64::from(step);
            (step / factor * stretch + step * (1.0 - stretch)) as f32
        });
        Some(Rope::new(stretched.collect(), attention_factor as f32))
    }

    /// LongRoPE (Ding et al., 2024), as in Phi-3: a factor for each frequency, other ones for long prompts.
    fn long_rope(&self, plain: &[f32]) -> Option<Rope> {
        let factor = self.factor()?;
        let attention_factor = match self.parameters.attention_factor {
            Some(attention_factor) => attention_factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (self.original as f64).ln()).sqrt(),
        };
        let stretched = |factors: &Option<Vec<f64>>| {
            let factors = factors.as_ref().filter(|factors| factors.len() == plain.len())?;
            let usable = factors.iter().all(|factor| factor.is_finite() && *factor > 0.0);
            let steps = plain.iter().zip(factors).map(|(step, factor)| step / *factor as f32);
            usable.then(|| Rope::new(steps.collect(), attention_factor as f32).frequencies)
        };
        let frequencies = stretched(&self.parameters.short_factor)?;
        let long = stretched(&self.parameters.long_factor)?;
        attention_factor.is_finite().then_some(Rope { frequencies, long: Some((self.original, long)) })
    }
}

/// The rows of a sequence in a pass.
pub(super) struct Rows<'a> {
    /// Tokens before them.
    pub(super) past: usize,
    pub(super) length: usize,
    /// Tokens that the sequence is known to get, those after the pass included.
    pub(super) reach: usize,
    /// Where they are, if not in their order.
    pub(super) positions: Option<&'a [Position]>,
}

impl Rope {
    pub(super) fn new(inverse_frequencies: Vec<f32>, attention_factor: f32) -> Self {
        Self {
            frequencies: RotaryEmbedding { inverse_frequencies, axes: Vec::new(), attention_factor },
            long: None,
        }
    }

    fn with_axes(mut self, axes: Vec<u8>) -> Self {
        if let Some((_, long)) = &mut self.long {
            long.axes.clone_from(&axes);
        }
        self.frequencies.axes = axes;
        self
    }

    /// Whether its numbers can be computed with and fit heads of this size.
    pub(super) fn check(&self, head_size: usize) -> Result<(), String> {
        let all = std::iter::once(&self.frequencies).chain(self.long.as_ref().map(|(_, long)| long));
        for frequencies in all {
            let sound = frequencies.inverse_frequencies.iter().all(|step| step.is_finite())
                && frequencies.attention_factor.is_finite()
                && 2 * frequencies.inverse_frequencies.len() <= head_size
                && frequencies.inverse_frequencies.len() == self.frequencies.inverse_frequencies.len();
            if !sound {
                return Err("the rotary embedding's frequencies do not fit the model".to_owned());
            }
        }
        Ok(())
    }

    /// The length of a sequence beyond which it is another one.
    pub(super) fn limit(&self) -> Option<usize> {
        self.long.as_ref().map(|(limit, _)| *limit)
    }

    /// The cosines and sines of the rows of a pass.
    pub(super) fn table(&self, sequences: &[Rows<'_>]) -> RopeTable {
        let mut table = RopeTable::new(self.frequencies.inverse_frequencies.len());
        for rows in sequences {
            let end = rows.past + rows.length;
            let frequencies = match &self.long {
                Some((limit, long)) if end.max(rows.reach) > *limit => long,
                _ => &self.frequencies,
            };
            match rows.positions {
                Some(positions) => table.extend(frequencies, positions.iter().copied()),
                None => table.extend(frequencies, (rows.past..end).map(|place| [place as u32; 3])),
            }
        }
        table
    }
}
