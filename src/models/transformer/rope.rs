//! Rotary position embedding: from a model's settings, in `config.json` or a GGUF file's metadata, to the
//! frequencies that the kernel rotates by. A new scaling beyond the trained length needs an arm of
//! [`RopeParameters::rope`] and its name in the list of the error there, a method of [`Scaling`], a field of
//! [`RopeParameters`] for each setting of its own, and for GGUF the type's name in `models/decoder/gguf/rope.rs`. The
//! scalings follow their papers and the reference implementation in transformers (`modeling_rope_utils.py`).

#[cfg(test)]
mod tests;

use std::f64::consts::TAU;
use std::path::Path;

use serde::Deserialize;

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::rotary::{Position, RopeTable, RotaryEmbedding};
use crate::models::config_file::{MAX_SIDE, invalid, unsupported};

/// A model's rotary embedding.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    pub(crate) frequencies: RotaryEmbedding,
    /// A length in tokens, and the frequencies of sequences that are longer.
    pub(crate) long: Option<(usize, RotaryEmbedding)>,
}

/// `rope_parameters`, or in older files `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RopeParameters {
    pub(crate) rope_theta: Option<f64>,
    pub(crate) rope_type: Option<String>,
    /// `rope_type` in older files.
    #[serde(rename = "type")]
    pub(crate) old_type: Option<String>,
    pub(crate) factor: Option<f64>,
    pub(crate) low_freq_factor: Option<f64>,
    pub(crate) high_freq_factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<usize>,
    pub(crate) short_factor: Option<Vec<f64>>,
    pub(crate) long_factor: Option<Vec<f64>>,
    pub(crate) attention_factor: Option<f64>,
    pub(crate) beta_fast: Option<f64>,
    pub(crate) beta_slow: Option<f64>,
    pub(crate) mscale: Option<f64>,
    pub(crate) mscale_all_dim: Option<f64>,
    pub(crate) truncate: Option<bool>,
    pub(crate) partial_rotary_factor: Option<f64>,
    pub(crate) mrope_section: Option<Vec<usize>>,
    pub(crate) mrope_interleaved: Option<bool>,
}

/// Rotary embedding settings of `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RopeSettings {
    pub(crate) rope_theta: Option<f64>,
    pub(crate) rope_scaling: Option<serde_json::Value>,
    pub(crate) rope_parameters: Option<serde_json::Value>,
    pub(crate) partial_rotary_factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<usize>,
}

impl RopeSettings {
    /// True if the file has parameters for each kind of layers.
    fn has_kinds(&self) -> bool {
        self.value().is_some_and(|value| value.get("full_attention").is_some())
    }

    /// The parameters as they are written. The older name counts for more where a file has both, as in the reference
    /// implementation.
    fn value(&self) -> Option<&serde_json::Value> {
        let is_given = |value: &&serde_json::Value| value.as_object().is_none_or(|table| !table.is_empty());
        self.rope_scaling.as_ref().filter(is_given).or(self.rope_parameters.as_ref())
    }

    /// The parameters that a kind of layers has of its own, with nothing of those of all layers; the defaults where the
    /// file has none. A table of kinds is in either setting.
    pub(crate) fn own_parameters(&self, file: &Path, kind: &str) -> Result<RopeParameters> {
        let tables = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten();
        match tables.filter_map(|table| table.get(kind)).find(|own| !own.is_null()) {
            Some(own) => parse(file, own),
            None => Ok(RopeParameters::default()),
        }
    }

    /// The parameters of all layers, or those of the layers of one kind where the file tells kinds apart.
    pub(crate) fn parameters(&self, file: &Path, kind: Option<&str>) -> Result<RopeParameters> {
        // Those that do not count must make sense all the same.
        if let (Some(_), Some(other)) = (&self.rope_scaling, &self.rope_parameters)
            && !self.has_kinds()
        {
            parse::<RopeParameters>(file, other)?;
        }
        let value = match (self.value(), kind) {
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

/// Sizes of a model that its rotary embedding depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeShape {
    pub(crate) head_size: usize,
    pub(crate) context: usize,
    /// Base of the frequencies where the settings name none.
    pub(crate) base: f64,
}

impl RopeParameters {
    /// The rotary embedding with these parameters.
    ///
    /// # Errors
    /// [`Error::UnsupportedSetting`] for an unknown kind, [`Error::InvalidConfig`] for numbers that make no
    /// sense.
    pub(crate) fn rope(&self, file: &Path, shape: RopeShape) -> Result<Rope> {
        let invalid =
            |reason: &str| invalid(file, format!("the rotary embedding's settings are invalid: {reason}"));
        let base = self.rope_theta.unwrap_or(shape.base);
        if !(base.is_finite() && base > 1.0) {
            return Err(invalid("rope_theta is not a number above 1"));
        }
        let share = self.partial_rotary_factor.unwrap_or(1.0);
        if !(share > 0.0 && share <= 1.0) || shape.head_size > MAX_SIDE {
            return Err(invalid("partial_rotary_factor is not between 0 and 1, or head_dim is too large"));
        }
        let kind = self.kind();
        if self.is_proportional() {
            let factor = self.factor.unwrap_or(1.0);
            let rope = proportional(base, shape.head_size, share, factor).ok_or_else(|| invalid("factor"))?;
            return Ok(rope.with_axes(self.axes(shape.head_size / 2)));
        }
        let size = (shape.head_size as f64 * share) as usize;
        let plain = inverse_frequencies(base, size);
        let original = self.original_max_position_embeddings.unwrap_or(shape.context);
        let scaling = Scaling { parameters: self, base, size, original, context: shape.context };
        let rope = match kind {
            "default" | "mrope" => Rope::new(plain, 1.0),
            // NTK-aware scaling changes only texts beyond the context, which are refused.
            "dynamic" if self.factor.is_some_and(|factor| factor >= 1.0) => Rope::new(plain, 1.0),
            "dynamic" => return Err(invalid("factor")),
            "linear" => scaling.linear(plain).ok_or_else(|| invalid("factor"))?,
            "llama3" => {
                scaling.llama3(plain).ok_or_else(|| invalid("factor, low_freq_factor, high_freq_factor"))?
            }
            "yarn" => scaling.yarn(plain).ok_or_else(|| invalid("factor, mscale, beta_fast, beta_slow"))?,
            "longrope" | "su" => {
                scaling.long_rope(&plain).ok_or_else(|| invalid("short_factor and long_factor"))?
            }
            other => {
                let supported = "default, linear, dynamic, llama3, yarn, longrope, proportional, mrope";
                return Err(unsupported(file, "rope_type", other, supported));
            }
        };
        Ok(rope.with_axes(self.axes(size / 2)))
    }

    /// True if some pairs of a whole head are rotated, and not all pairs of a part of it.
    pub(crate) fn is_proportional(&self) -> bool {
        self.kind() == "proportional"
    }

    /// The name of the scaling.
    pub(crate) fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default")
    }

    /// Most tokens of a sequence, of a model whose `max_position_embeddings` is `context`. With YaRN that mostly is the
    /// context of the pretraining, and the factor lengthens it.
    pub(crate) fn reach(&self, context: usize) -> usize {
        match (self.kind(), self.factor) {
            ("yarn", Some(factor)) if factor.is_finite() => {
                let original = self.original_max_position_embeddings.unwrap_or(context);
                let stretched = (original as f64 * factor).clamp(0.0, MAX_SIDE as f64);
                context.max(stretched as usize)
            }
            _ => context,
        }
    }

    /// The coordinate of a position that rotates each pair, where positions have several (M-RoPE of Qwen-VL).
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

/// Scaling of a model's frequencies to a longer context. Each method is one way of it, and gives nothing
/// where a parameter that it needs is missing or invalid.
struct Scaling<'a> {
    parameters: &'a RopeParameters,
    base: f64,
    /// Numbers of a head that are rotated.
    size: usize,
    /// Context of the pretraining, in tokens.
    original: usize,
    context: usize,
}

impl Scaling<'_> {
    fn factor(&self) -> Option<f64> {
        let factor = self.parameters.factor.unwrap_or(self.context as f64 / self.original as f64);
        Some(factor).filter(|factor| factor.is_finite() && *factor > 0.0)
    }

    /// Position interpolation (Chen et al., 2023): positions closer to each other.
    fn linear(&self, plain: Vec<f32>) -> Option<Rope> {
        let factor = self.parameters.factor.filter(|factor| factor.is_finite() && *factor > 0.0)? as f32;
        Some(Rope::new(plain.into_iter().map(|step| step / factor).collect(), 1.0))
    }

    /// Llama 3.1: low frequencies are divided by the factor, high ones stay, those between are interpolated.
    fn llama3(&self, plain: Vec<f32>) -> Option<Rope> {
        let factor = self.factor()?;
        let (low, high) = (self.parameters.low_freq_factor?, self.parameters.high_freq_factor?);
        if !(low > 0.0 && high > low && high.is_finite()) {
            return None;
        }
        let original = self.original as f64;
        let scaled = plain.into_iter().map(|step| {
            let step = f64::from(step);
            let turns = original * step / TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - keep) * step / factor + keep * step) as f32
        });
        Some(Rope::new(scaled.collect(), 1.0))
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

/// The plain frequencies of a head's first pairs, a `share` of all, and of none of the others; all divided by the factor.
/// Pairs are as far apart as if all were rotated, which tells it from a partial rotation.
fn proportional(base: f64, head_size: usize, share: f64, factor: f64) -> Option<Rope> {
    let rotated = (share * head_size as f64 / 2.0).floor() as usize;
    let steps = inverse_frequencies(base, head_size).into_iter().enumerate();
    let steps = steps.map(|(pair, step)| if pair < rotated { step / factor as f32 } else { 0.0 });
    (factor.is_finite() && factor > 0.0).then(|| Rope::new(steps.collect(), 1.0))
}

/// Angle per position of each pair of a head's `size` numbers. In 32 bits, as the reference implementations
/// have it.
fn inverse_frequencies(base: f64, size: usize) -> Vec<f32> {
    (0..size / 2).map(|pair| 1.0 / (base as f32).powf((2 * pair) as f32 / size as f32)).collect()
}

/// Rows of one sequence in a pass.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Number of tokens before them.
    pub(crate) past: usize,
    pub(crate) length: usize,
    /// Number of tokens that the sequence is known to get, those after the pass included.
    pub(crate) reach: usize,
    /// Position of each row; by default they count on from `past`.
    pub(crate) positions: Option<&'a [Position]>,
}

impl Rope {
    /// The plain embedding of whole heads (Su et al., 2021).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for heads of an odd size, or a base that is not above 1.
    pub(crate) fn plain(file: &Path, head_size: usize, base: f64) -> Result<Self> {
        if !head_size.is_multiple_of(2) || !base.is_finite() || base <= 1.0 || head_size > MAX_SIDE {
            let reason = format!(
                "rotary positions need heads of an even size, here {head_size}, and a base above 1, here {base}"
            );
            return Err(invalid(file, reason));
        }
        Ok(Self { frequencies: RotaryEmbedding::new(inverse_frequencies(base, head_size)), long: None })
    }

    /// NTK-aware scaling (<https://kexue.fm/archives/9706>): the base is multiplied with the factor, and all
    /// frequencies are divided by its power of 2 / `head_size`.
    ///
    /// # Errors
    /// As [`Self::plain`].
    pub(crate) fn ntk(file: &Path, head_size: usize, base: f64, factor: f64) -> Result<Self> {
        let mut rope = Self::plain(file, head_size, base * factor)?;
        let divisor = factor.powf(2.0 / head_size as f64) as f32;
        rope.frequencies.inverse_frequencies.iter_mut().for_each(|step| *step /= divisor);
        Ok(rope)
    }

    /// Rotation by line and column (2-D RoPE): the first half of the pairs by the first coordinate, the
    /// second half by the second. `head_size` is a multiple of 4.
    pub(crate) fn by_line_and_column(head_size: usize, base: f64) -> Self {
        let steps = inverse_frequencies(base, head_size / 2);
        let axes = [vec![0; steps.len()], vec![1; steps.len()]].concat();
        Self::new([steps.clone(), steps].concat(), 1.0).with_axes(axes)
    }

    /// The same where the frequencies of whole heads are dealt out in turns: the first, third and so on to lines, the
    /// others to columns (Pixtral).
    pub(crate) fn by_line_and_column_in_turns(head_size: usize, base: f64) -> Self {
        let steps = inverse_frequencies(base, head_size);
        let of = |first: usize| steps.iter().skip(first).step_by(2).copied().collect::<Vec<_>>();
        let (lines, columns) = (of(0), of(1));
        let axes = [vec![0; lines.len()], vec![1; columns.len()]].concat();
        Self::new([lines, columns].concat(), 1.0).with_axes(axes)
    }

    pub(crate) fn new(inverse_frequencies: Vec<f32>, attention_factor: f32) -> Self {
        let frequencies = RotaryEmbedding { attention_factor, ..RotaryEmbedding::new(inverse_frequencies) };
        Self { frequencies, long: None }
    }

    fn with_axes(mut self, axes: Vec<u8>) -> Self {
        if let Some((_, long)) = &mut self.long {
            long.axes.clone_from(&axes);
        }
        self.frequencies.axes = axes;
        self
    }

    /// Checks that its numbers are finite and fit heads of this size.
    pub(crate) fn check(&self, head_size: usize) -> Result<(), String> {
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

    /// Length in tokens beyond which a sequence is embedded by other frequencies.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.long.as_ref().map(|(limit, _)| *limit)
    }

    /// Cosines and sines for rows at these positions.
    pub(crate) fn table_at(&self, positions: &[Position]) -> RopeTable {
        let length = positions.len();
        self.table(&[Rows { past: 0, length, reach: length, positions: Some(positions) }])
    }

    /// Cosines and sines for rows at these coordinates, of an embedding by line and column.
    pub(crate) fn table_by(&self, coordinates: &[[f32; 2]]) -> RopeTable {
        let mut table = RopeTable::new(self.frequencies.inverse_frequencies.len());
        table.extend_at(&self.frequencies, coordinates.iter().copied());
        table
    }

    /// Cosines and sines for the rows of a pass.
    pub(crate) fn table(&self, sequences: &[Rows<'_>]) -> RopeTable {
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
