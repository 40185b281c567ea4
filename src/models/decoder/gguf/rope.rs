//! Rotary embeddings by the metadata and tensors of a GGUF file, as llama.cpp reads them: without a type the scaling is
//! linear, a factor may stand under an older key, and the attention's factor and the tensors of divisors hold whatever
//! the type is. Of long and short divisors the length of a sequence picks, as in transformers.

use model_actors::LoadContext;

use super::metadata::{Metadata, number};
use crate::error::Result;
use crate::models::config_file::unsupported;
use crate::models::transformer::{Rope, RopeParameters, RopeShape};

/// Maximum number of factors of a rotary embedding. A head is small; a tensor that claims more is no set of factors.
const MAX_FACTORS: usize = 1 << 16;

/// The sizes of a decoder that its rotary embedding depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Numbers of a head that are rotated.
    pub(super) rotated: usize,
    pub(super) context: usize,
}

impl Metadata<'_> {
    /// The rotary embedding of all layers, but those with one of their own.
    ///
    /// # Errors
    /// [`Error::UnsupportedSetting`](crate::Error::UnsupportedSetting) for an unknown type,
    /// [`Error::InvalidGguf`](crate::Error::InvalidGguf) for numbers and tensors that do not fit.
    pub(super) fn rope(&self, sizes: Sizes) -> Result<Rope> {
        let rope = self.scaled(sizes)?;
        if let Some(divisors) = self.divisors("rope_freqs.weight")? {
            return self.divided(&rope, &divisors);
        }
        let long = self.divisors("rope_factors_long.weight")?;
        match (self.divisors("rope_factors_short.weight")?, long) {
            (Some(short), Some(long)) => {
                let mut by_length = self.divided(&rope, &short)?;
                let original =
                    self.optional("rope.scaling.original_context_length")?.unwrap_or(sizes.context);
                by_length.long = Some((original, self.divided(&rope, &long)?.frequencies));
                Ok(by_length)
            }
            (None, None) => Ok(rope),
            _ => Err(self
                .file
                .invalid("it has only one of rope_factors_short and rope_factors_long".to_owned())),
        }
    }

    /// The rotary embedding of layers with a sliding window where theirs is another one: never scaled.
    pub(super) fn sliding_rope(&self, sizes: Sizes) -> Result<Rope> {
        let base = self.float("rope.freq_base_swa").unwrap_or(10_000.0);
        self.of_kind(RopeParameters { rope_theta: Some(base), ..RopeParameters::default() }, sizes)
    }

    /// The divisor of YaRN's attention factor by a multiplier that few architectures read; 1 for other types.
    pub(super) fn yarn_divisor(&self) -> f64 {
        match (self.scaling(), self.float("rope.scaling.yarn_log_multiplier")) {
            ("yarn", Some(multiplier)) => yarn_gain(self.factor(), multiplier),
            _ => 1.0,
        }
    }

    fn scaling(&self) -> &str {
        self.text("rope.scaling.type").unwrap_or("linear")
    }

    fn factor(&self) -> f64 {
        let factor = self.float("rope.scaling.factor").or_else(|| self.float("rope.scale_linear"));
        factor.filter(|factor| *factor != 0.0 && self.scaling() != "none").unwrap_or(1.0)
    }

    /// By the type, without divisors.
    fn scaled(&self, sizes: Sizes) -> Result<Rope> {
        let (kind, factor) = (self.scaling(), self.factor());
        let gain = self.float("rope.scaling.attn_factor").unwrap_or(1.0);
        let parameters = RopeParameters {
            rope_theta: Some(self.float("rope.freq_base").unwrap_or(10_000.0)),
            factor: Some(factor),
            mrope_section: self.sections()?,
            ..RopeParameters::default()
        };
        let parameters = match kind {
            "yarn" => RopeParameters {
                rope_type: Some("yarn".to_owned()),
                original_max_position_embeddings: self.optional("rope.scaling.original_context_length")?,
                attention_factor: Some(gain * yarn_gain(factor, 1.0)),
                beta_fast: self.float("rope.scaling.yarn_beta_fast"),
                beta_slow: self.float("rope.scaling.yarn_beta_slow"),
                ..parameters
            },
            "none" | "linear" | "longrope" => {
                RopeParameters { rope_type: Some("linear".to_owned()), ..parameters }
            }
            other => {
                let supported = "none, linear, yarn, longrope";
                return Err(unsupported(self.path(), self.key("rope.scaling.type"), other, supported));
            }
        };
        let mut rope = self.of_kind(parameters, sizes)?;
        if kind != "yarn" {
            rope.frequencies.attention_factor = gain as f32;
        }
        Ok(rope)
    }

    /// Numbers of pairs that each coordinate of a position rotates, of the one architecture whose positions have several.
    fn sections(&self) -> Result<Option<Vec<usize>>> {
        if self.name != "qwen2vl" {
            return Ok(None);
        }
        let name = self.key("rope.dimension_sections");
        let sections = self.file.header().list(&name).filter(|list| (3..=4).contains(&list.len()));
        let sections: Option<Vec<usize>> = sections.and_then(|list| list.iter().map(number).collect());
        sections.map(Some).ok_or_else(|| self.file.invalid(format!("it has no numbers {name}")))
    }

    fn of_kind(&self, parameters: RopeParameters, sizes: Sizes) -> Result<Rope> {
        let shape = RopeShape { head_size: sizes.rotated, context: sizes.context, base: 10_000.0 };
        parameters.rope(self.path(), shape)
    }

    /// A tensor with a divisor for each frequency.
    fn divisors(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.file.header().tensor(tensor) else { return Ok(None) };
        let shape = info.shape.clone();
        if shape.len() != 1 || shape.iter().any(|side| *side > MAX_FACTORS) {
            return Err(self.file.invalid(format!("the tensor {tensor} has the shape {shape:?}")));
        }
        let context = LoadContext::detached(&self.name.into());
        self.file.numbers(tensor, &shape, &context).map(Some)
    }

    fn divided(&self, rope: &Rope, divisors: &[f32]) -> Result<Rope> {
        let steps = &rope.frequencies.inverse_frequencies;
        if steps.len() != divisors.len() {
            let (found, needed) = (divisors.len(), steps.len());
            return Err(self.file.invalid(format!("it has {found} rotary factors for {needed} frequencies")));
        }
        let steps = steps.iter().zip(divisors).map(|(step, divisor)| step / divisor);
        Ok(Rope::new(steps.collect(), rope.frequencies.attention_factor))
    }
}

/// YaRN's factor on queries and keys.
fn yarn_gain(factor: f64, multiplier: f64) -> f64 {
    1.0 + 0.1 * multiplier * factor.ln().max(0.0)
}
