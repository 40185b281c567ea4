//! What the encoder families share: a transformer whose layers are put together from pieces, with norms before or
//! after, a plain or a gated feed-forward, and attention in any of the forms of [`SelfAttention`]. Names in the file and
//! which pieces a family has are left to its own file.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::{Architecture, Encoder, TokenBatch, Watch};
use crate::error::{Error, Result};
use crate::kernels::glu::glu;
use crate::kernels::rotary::{RopeTable, RotaryEmbedding};
use crate::kernels::self_attention::SelfAttention;
use crate::kernels::{Activation, AttentionMask, LayerNorm, Linear, SCORES_PER_THREAD};
use crate::weights::{WeightFiles, WeightReader};

/// More than any side of a real model, and far from where products of sides overflow.
pub(super) const MAX_SIDE: usize = 1 << 20;

/// The sides of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) vocabulary: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// Length of a row in the middle of the feed-forward, where it is widest.
    pub(super) middle: usize,
    /// Most tokens of a text.
    pub(super) longest: usize,
}

impl Sizes {
    /// Checks what the configuration says, before anything is computed with it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(super) fn check(self, file: &Path) -> Result<Self> {
        let sides = [self.vocabulary, self.width, self.heads, self.middle, self.longest];
        if let Some(side) = sides.into_iter().find(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(invalid(
                file,
                format!("a size of {side} is out of range; 1 to {MAX_SIDE} are allowed"),
            ));
        }
        if !self.width.is_multiple_of(self.heads) {
            let (width, heads) = (self.width, self.heads);
            return Err(invalid(
                file,
                format!("the width {width} is no multiple of the {heads} attention heads"),
            ));
        }
        Ok(self)
    }

    /// Rotary frequencies, base `theta`, for heads of these sizes. The frequencies are worked out in 32
    /// bits, as the reference implementations do.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for heads of an odd size, or a base that is none.
    pub(super) fn frequencies(self, file: &Path, theta: f64) -> Result<RotaryEmbedding> {
        let size = self.width / self.heads;
        let has_pairs = size.is_multiple_of(2);
        if !(has_pairs && theta.is_finite() && theta > 0.0) {
            let reason =
                format!("rotary positions need heads of an even size, here {size}, and a base, here {theta}");
            return Err(invalid(file, reason));
        }
        let step = |pair: usize| 1.0 / (theta as f32).powf((2 * pair) as f32 / size as f32);
        Ok(RotaryEmbedding::new((0..size / 2).map(step).collect()))
    }

    fn scratch(self, tokens: usize, longest: usize) -> Bytes {
        // The widest moment of a layer: its input, the middle layer, and what comes out; or the mixed queries, keys
        // and values, the same turned, and scores.
        let row = (self.middle as u64).max(6 * self.width as u64) + 2 * self.width as u64;
        let scores = longest.saturating_mul(longest).min(SCORES_PER_THREAD) as u64;
        Bytes(row.saturating_mul(tokens as u64).saturating_add(scores).saturating_mul(4))
    }
}

/// A family of encoders, as its configuration describes it.
pub(super) trait EncoderFamily: Send + Sync {
    /// How names in the file may begin, where the encoder was saved as a part of a larger model.
    const PREFIXES: &'static [&'static str];
    /// The words' vectors, by which the beginning is recognised.
    const WORDS: &'static str;

    fn sizes(&self) -> Sizes;
    /// Whether a tensor, named without its beginning, is a part of the encoder.
    fn is_part(&self, name: &str) -> bool;
    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer>;
}

impl<F: EncoderFamily> Architecture for F {
    fn width(&self) -> usize {
        self.sizes().width
    }

    fn vocabulary(&self) -> usize {
        self.sizes().vocabulary
    }

    fn longest(&self) -> usize {
        self.sizes().longest
    }

    fn uses(&self, tensor: &str) -> bool {
        Self::PREFIXES.iter().any(|prefix| tensor.strip_prefix(prefix).is_some_and(|name| self.is_part(name)))
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        self.sizes().scratch(tokens, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let prefix =
            Self::PREFIXES.iter().find(|prefix| weights.contains(&format!("{prefix}{}", Self::WORDS)));
        let reader = weights.reader(prefix.copied().unwrap_or_default(), device, context);
        Ok(Arc::new(self.assemble(&reader)?))
    }
}

/// A loaded encoder.
pub(super) struct Transformer {
    /// Each word's vector.
    pub(super) words: Tensor,
    pub(super) positions: Option<Positions>,
    /// After the sum of word and position.
    pub(super) norm: LayerNorm,
    pub(super) layers: Vec<Layer>,
    pub(super) last_norm: Option<LayerNorm>,
    pub(super) heads: usize,
    /// What distance takes off each head's scores; empty for nothing.
    pub(super) slopes: Vec<f32>,
    /// The rotary embeddings that layers choose from.
    pub(super) frequencies: Vec<RotaryEmbedding>,
}

/// Learned positions.
pub(super) struct Positions {
    /// Each position's vector.
    pub(super) table: Tensor,
    /// RoBERTa's way: the token that is padding, in whose place nothing is counted. Its own position comes before
    /// that of the first token.
    pub(super) padding: Option<u32>,
}

/// One layer's pieces.
pub(super) struct Layer {
    pub(super) norms: Norms,
    /// Query, key and value in one product.
    pub(super) mixed: Linear,
    pub(super) attended: Linear,
    pub(super) wide: Linear,
    pub(super) activation: Activation,
    /// Whether the first half of what `wide` gives is a gate for the second.
    pub(super) gated: bool,
    pub(super) narrow: Linear,
    /// What a token sees.
    pub(super) mask: AttentionMask,
    /// Which of the frequencies turn its queries and keys.
    pub(super) rope: Option<usize>,
}

/// Where a layer's norms are.
pub(super) enum Norms {
    /// Each after its sum, as BERT has them.
    After { attention: LayerNorm, feed: LayerNorm },
    /// Each before its step, the sums left as they are.
    Before { attention: Option<LayerNorm>, feed: LayerNorm },
}

impl Encoder for Transformer {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        let device = self.words.device();
        let words = self.words.index_select(&Tensor::new(batch.ids.as_slice(), device)?, 0)?;
        let mut hidden = match &self.positions {
            Some(positions) => self.norm.of_sum(&words, &positions.of(batch)?)?,
            None => self.norm.of(&words)?,
        };
        let tables: Vec<RopeTable> =
            self.frequencies.iter().map(|each| rope_table(each, &batch.lengths)).collect();
        for layer in &self.layers {
            let rope = layer.rope.and_then(|index| tables.get(index));
            let form =
                SelfAttention { heads: self.heads, alibi_slopes: &self.slopes, mask: layer.mask, rope };
            hidden = layer.forward(&hidden, &batch.lengths, form)?;
            watch()?;
        }
        match &self.last_norm {
            Some(norm) => norm.of(&hidden),
            None => Ok(hidden),
        }
    }
}

fn rope_table(frequencies: &RotaryEmbedding, lengths: &[usize]) -> RopeTable {
    let mut table = RopeTable::new(frequencies.inverse_frequencies.len());
    for length in lengths {
        table.extend(frequencies, (0..*length as u32).map(|place| [place; 3]));
    }
    table
}

impl Positions {
    fn of(&self, batch: &TokenBatch) -> Result<Tensor> {
        let places: Vec<u32> = match self.padding {
            None => batch.lengths.iter().flat_map(|length| 0..*length as u32).collect(),
            Some(padding) => places_without(padding, batch),
        };
        Ok(self.table.index_select(&Tensor::new(places, self.table.device())?, 0)?)
    }
}

/// Each token's place among those of its text that are no padding, counted from the one after padding's own.
fn places_without(padding: u32, batch: &TokenBatch) -> Vec<u32> {
    let mut places = Vec::with_capacity(batch.ids.len());
    let mut ids = batch.ids.as_slice();
    for length in &batch.lengths {
        let (text, rest) = ids.split_at(*length);
        let mut place = padding;
        places.extend(text.iter().map(|id| match *id == padding {
            true => padding,
            false => {
                place += 1;
                place
            }
        }));
        ids = rest;
    }
    places
}

impl Layer {
    fn forward(&self, input: &Tensor, lengths: &[usize], form: SelfAttention<'_>) -> Result<Tensor> {
        match &self.norms {
            Norms::After { attention, feed } => {
                let attended = attention.of_sum(&self.attend(input, lengths, form)?, input)?;
                feed.of_sum(&self.feed(&attended)?, &attended)
            }
            Norms::Before { attention, feed } => {
                let attended = match attention {
                    Some(norm) => self.attend(&norm.of(input)?, lengths, form)?,
                    None => self.attend(input, lengths, form)?,
                };
                let attended = (attended + input)?;
                Ok((self.feed(&feed.of(&attended)?)? + attended)?)
            }
        }
    }

    fn attend(&self, input: &Tensor, lengths: &[usize], form: SelfAttention<'_>) -> Result<Tensor> {
        let mixed = self.mixed.forward(input, Activation::Identity)?;
        self.attended.forward(&form.forward(&mixed, lengths)?, Activation::Identity)
    }

    fn feed(&self, input: &Tensor) -> Result<Tensor> {
        let wide = match self.gated {
            true => glu(&self.wide.forward(input, Activation::Identity)?, self.activation)?,
            false => self.wide.forward(input, self.activation)?,
        };
        self.narrow.forward(&wide, Activation::Identity)
    }
}

/// A linear layer, with a bias or without.
pub(super) fn linear(
    reader: &WeightReader<'_>,
    name: &str,
    [outside, inside]: [usize; 2],
    bias: bool,
) -> Result<Linear> {
    stacked(reader, &[name.to_owned()], [outside, inside], bias)
}

/// Several linear layers of one shape as one, the outputs one after another.
pub(super) fn stacked(
    reader: &WeightReader<'_>,
    names: &[String],
    [outside, inside]: [usize; 2],
    bias: bool,
) -> Result<Linear> {
    let (mut weight, mut biases) = (Vec::new(), Vec::new());
    for name in names {
        reader.append(&format!("{name}.weight"), &[outside, inside], &mut weight)?;
        if bias {
            reader.append(&format!("{name}.bias"), &[outside], &mut biases)?;
        }
    }
    let outside = outside * names.len();
    let bias = if bias { Some(reader.place(biases, &[outside])?) } else { None };
    Linear::new(&reader.place(weight, &[outside, inside])?, bias)
}

/// A linear layer whose outputs' halves change places: the gate is expected first.
pub(super) fn swapped(
    reader: &WeightReader<'_>,
    name: &str,
    [half, inside]: [usize; 2],
    bias: bool,
) -> Result<Linear> {
    let (mut weight, mut biases) = (Vec::new(), Vec::new());
    reader.append(&format!("{name}.weight"), &[2 * half, inside], &mut weight)?;
    weight.rotate_left(half * inside);
    let mut bias_of = None;
    if bias {
        reader.append(&format!("{name}.bias"), &[2 * half], &mut biases)?;
        biases.rotate_left(half);
        bias_of = Some(reader.place(biases, &[2 * half])?);
    }
    Linear::new(&reader.place(weight, &[2 * half, inside])?, bias_of)
}

/// A layer norm; without a bias it is one of zeros.
pub(super) fn layer_norm(
    reader: &WeightReader<'_>,
    name: &str,
    width: usize,
    epsilon: f64,
    bias: bool,
) -> Result<LayerNorm> {
    // Checkpoints converted from TensorFlow call the two gamma and beta.
    let old = !reader.contains(&format!("{name}.weight")) && reader.contains(&format!("{name}.gamma"));
    let (weight_name, bias_name) = if old { ("gamma", "beta") } else { ("weight", "bias") };
    let weight = reader.tensor(&format!("{name}.{weight_name}"), &[width])?;
    let bias = match bias {
        true => reader.tensor(&format!("{name}.{bias_name}"), &[width])?,
        false => weight.zeros_like()?,
    };
    Ok(LayerNorm { weight, bias, epsilon })
}

/// The words' vectors with that of the first segment, which is the only one in use, added already.
pub(super) fn words_of_first_segment(
    reader: &WeightReader<'_>,
    [words, types]: [&str; 2],
    sizes: Sizes,
    segments: usize,
) -> Result<Tensor> {
    let (shape, mut values, mut segment) = ([sizes.vocabulary, sizes.width], Vec::new(), Vec::new());
    reader.append(words, &shape, &mut values)?;
    if segments > 0 {
        reader.append(types, &[segments, sizes.width], &mut segment)?;
        for row in values.chunks_exact_mut(sizes.width) {
            row.iter_mut().zip(&segment).for_each(|(value, first)| *value += *first);
        }
    }
    reader.place(values, &shape)
}

/// The activation of a configuration.
///
/// # Errors
/// [`Error::UnsupportedSetting`].
pub(super) fn activation(file: &Path, setting: &'static str, name: &str) -> Result<Activation> {
    Activation::from_name(name).ok_or_else(|| unsupported(file, setting, name, Activation::NAMES))
}

pub(super) fn unsupported(file: &Path, what: &'static str, found: &str, supported: &'static str) -> Error {
    Error::UnsupportedSetting {
        file: file.to_owned(),
        what: what.into(),
        found: found.to_owned(),
        supported: supported.into(),
    }
}

pub(super) fn invalid(file: &Path, reason: String) -> Error {
    Error::InvalidConfig { file: file.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_inside_a_text_is_not_counted() {
        let batch =
            TokenBatch { ids: vec![0, 5, 1, 6, 2, 0, 2], lengths: vec![5, 2], ..TokenBatch::default() };
        assert_eq!(places_without(1, &batch), [2, 3, 1, 4, 5, 2, 3]);
    }

    #[test]
    fn sizes_that_make_no_model_are_refused() {
        let good = Sizes { vocabulary: 10, width: 8, layers: 1, heads: 2, middle: 16, longest: 4 };
        let file = Path::new("config.json");
        assert!(good.check(file).is_ok());
        for bad in [
            Sizes { heads: 0, ..good },
            Sizes { heads: 3, ..good },
            Sizes { width: 0, ..good },
            Sizes { middle: usize::MAX, ..good },
            Sizes { longest: 0, ..good },
        ] {
            assert!(matches!(bad.check(file), Err(Error::InvalidConfig { .. })), "{bad:?}");
        }
        assert!(Sizes { width: 6, ..good }.frequencies(file, 1e4).is_err());
        assert!(good.frequencies(file, 0.0).is_err());
        assert!(good.frequencies(file, f64::NAN).is_err());
    }
}
