//! The encoder half of T5 (Raffel et al., arXiv 1910.10683; version 1.1 with gated middles), which Stable Diffusion 3 and
//! FLUX read prompts with. A prompt is filled up with padding that is not masked, because the models are trained so. The
//! reference is `T5EncoderModel` of transformers.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;

use super::Watch;
use super::layers::Place;
use super::mmdit::RmsNorm;
use super::prompt::{PromptTokens, TokenizerFiles};
use super::repository::{MAX_COUNT, MAX_WIDTH, Repository, check_sizes, invalid};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, scaled_dot_product_attention};

/// Most tokens of its vocabulary.
const MAX_VOCABULARY: usize = 1 << 24;
/// Widest middle of a layer.
const MAX_MIDDLE: usize = 1 << 20;
/// Most heads.
const MAX_HEADS: usize = 256;
/// Most numbers of a head.
const MAX_HEAD: usize = 4096;
/// Most buckets that distances are sorted into.
const MAX_BUCKETS: usize = 1 << 16;
/// Longest distance that the buckets tell from a longer one.
const MAX_DISTANCE: usize = 1 << 20;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("model_type", "\"t5\""), ("is_decoder", "false")];

/// `config.json`. What has a default in transformers has it here.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    feed_forward_proj: String,
    #[serde(skip)]
    middle: Option<MiddleKind>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            middle: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MiddleKind {
    Plain(Activation),
    Gated(Activation),
}

impl MiddleKind {
    fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("gated-") {
            // The first version 1.1 called it so and meant the one by tanh.
            Some("gelu") => Some(Self::Gated(Activation::GeluTanh)),
            Some(name) => Activation::from_name(name).map(Self::Gated),
            None => Activation::from_name(name).map(Self::Plain),
        }
    }
}

impl Config {
    fn check(&mut self, path: &Path) -> Result<()> {
        self.middle = MiddleKind::from_name(&self.feed_forward_proj);
        if self.middle.is_none() {
            return Err(Error::UnsupportedSetting {
                file: path.to_owned(),
                what: "feed_forward_proj".into(),
                found: self.feed_forward_proj.clone(),
                supported: "relu, gated-gelu, gated-silu".into(),
            });
        }
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("d_model", self.d_model, MAX_WIDTH),
            ("d_kv", self.d_kv, MAX_HEAD),
            ("d_ff", self.d_ff, MAX_MIDDLE),
            ("num_layers", self.num_layers, MAX_COUNT),
            ("num_heads", self.num_heads, MAX_HEADS),
            ("relative_attention_max_distance", self.relative_attention_max_distance, MAX_DISTANCE),
        ];
        check_sizes(path, &sizes)?;
        let (buckets, farthest) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if !(4..=MAX_BUCKETS).contains(&buckets) || farthest <= buckets / 4 {
            let reason = format!(
                "relative_attention_num_buckets is {buckets} and relative_attention_max_distance {farthest}; 4 to \
                 {MAX_BUCKETS} buckets are allowed, and a distance above a quarter of them"
            );
            return Err(invalid(path, reason));
        }
        if !(0.0..1.0).contains(&self.layer_norm_epsilon) {
            return Err(invalid(path, "layer_norm_epsilon cannot be computed with"));
        }
        Ok(())
    }

    /// The width of all heads together.
    fn inside(&self) -> usize {
        self.num_heads * self.d_kv
    }
}

/// An encoder that is not loaded, with its tokenizer.
pub(super) struct T5Config {
    config: Config,
    tokenizer: TokenizerFiles,
}

/// Which tensors of the weights are loaded: a whole model has a decoder too.
pub(super) fn is_loaded(tensor: &str) -> bool {
    tensor.starts_with("encoder.") || tensor == "shared.weight"
}

impl T5Config {
    /// From the folders of the encoder and of its tokenizer, named with a slash at their ends.
    pub(super) fn read(repository: &Repository<'_>, encoder: &str, tokenizer: &str) -> Result<Self> {
        let (path, mut config): (_, Config) =
            repository.config(&format!("{encoder}config.json"), &[], ONLY)?;
        config.check(&path)?;
        Ok(Self { config, tokenizer: TokenizerFiles::find(repository, tokenizer)? })
    }

    /// Width of a token's vector.
    pub(super) fn width(&self) -> usize {
        self.config.d_model
    }

    /// What encoding prompts of so many tokens needs besides the weights.
    pub(super) fn scratch(&self, tokens: usize) -> Bytes {
        let config = &self.config;
        let rows = (3 * config.d_model + (4 * config.inside()).max(2 * config.d_ff)).saturating_mul(tokens);
        let bias = config.num_heads.saturating_mul(tokens).saturating_mul(tokens);
        Bytes((rows.saturating_add(bias) as u64).saturating_mul(4))
    }

    /// For prompts of `length` tokens.
    pub(super) fn load(&self, place: &Place<'_>, length: usize) -> Result<T5> {
        let config = &self.config;
        let tokens = self.tokenizer.read(length)?;
        tokens.check(config.vocab_size)?;
        let encoder = place.at("encoder");
        let shape = [config.vocab_size, config.d_model];
        let words = match place.contains("shared.weight") {
            true => place.tensor("shared.weight", &shape)?,
            false => encoder.tensor("embed_tokens.weight", &shape)?,
        };
        let blocks =
            (0..config.num_layers).map(|index| Block::load(&encoder.at(format!("block.{index}")), config));
        let bias = encoder.at("block.0.layer.0.SelfAttention");
        let bias_shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(T5 {
            tokens,
            words,
            bias: bias.tensor("relative_attention_bias.weight", &bias_shape)?,
            farthest: config.relative_attention_max_distance,
            blocks: blocks.collect::<Result<_>>()?,
            norm: RmsNorm::load(&encoder, "final_layer_norm", config.d_model, config.layer_norm_epsilon)?,
        })
    }
}

/// A loaded encoder with its tokenizer.
pub(super) struct T5 {
    tokens: PromptTokens,
    words: Tensor,
    /// For each range of distances what is added to each head's scores, `(ranges, heads)`.
    bias: Tensor,
    /// Beyond this distance all are one range.
    farthest: usize,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

impl T5 {
    /// The tokens' vectors of each prompt, `(prompts, tokens, width)`. Prompts go through one by one.
    pub(super) fn encode(&self, prompts: &[&str], watch: &Watch<'_>) -> Result<Tensor> {
        let bias = self.bias(self.tokens.length())?;
        let encode = |prompt: &&str| {
            let ids = Tensor::new(self.tokens.encode(prompt)?, self.words.device())?;
            let mut rows = self.words.index_select(&ids, 0)?;
            for block in &self.blocks {
                watch.check()?;
                rows = block.forward(&rows, &bias)?;
            }
            self.norm.forward(&rows)
        };
        let encoded: Vec<Tensor> = prompts.iter().map(encode).collect::<Result<_>>()?;
        Ok(Tensor::stack(&encoded, 0)?)
    }

    /// What is added to the scores, `(heads, tokens, tokens)`.
    fn bias(&self, tokens: usize) -> Result<Tensor> {
        let ranges = self.bias.dim(0)?;
        let range = |place: usize| {
            let (from, to) = (place / tokens, place % tokens);
            range_of(from, to, ranges, self.farthest) as u32
        };
        let ranges: Vec<u32> = (0..tokens * tokens).map(range).collect();
        let ranges = Tensor::new(ranges, self.bias.device())?;
        let bias = self.bias.t()?.contiguous()?.index_select(&ranges, 1)?;
        Ok(bias.reshape(((), tokens, tokens))?)
    }
}

/// The range that the distance between two tokens falls into: one for each near one, then wider and wider ones, and the
/// same again for tokens that come later. In 32 bits, as the reference has it.
fn range_of(from: usize, to: usize, ranges: usize, farthest: usize) -> usize {
    let (half, distance) = (ranges / 2, from.abs_diff(to));
    let near = half / 2;
    let range = if distance < near {
        distance
    } else {
        let part = (distance as f32 / near as f32).ln() / (farthest as f32 / near as f32).ln();
        (near + (part * (half - near) as f32) as usize).min(half - 1)
    };
    if to > from { half + range } else { range }
}

struct Block {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    heads: usize,
    middle_norm: RmsNorm,
    middle: Middle,
}

/// The layer's second half.
enum Middle {
    Plain { wide: Linear, activation: Activation, narrow: Linear },
    Gated { gate: Linear, activation: Activation, wide: Linear, narrow: Linear },
}

impl Block {
    fn load(place: &Place<'_>, config: &Config) -> Result<Self> {
        let (width, inside, epsilon) = (config.d_model, config.inside(), config.layer_norm_epsilon);
        let (first, second) = (place.at("layer.0"), place.at("layer.1"));
        let attention = first.at("SelfAttention");
        let linear = |name| attention.at(name).linear_without_bias(width, inside);
        Ok(Self {
            attention_norm: RmsNorm::load(&first, "layer_norm", width, epsilon)?,
            query: linear("q")?,
            key: linear("k")?,
            value: linear("v")?,
            attended: attention.at("o").linear_without_bias(inside, width)?,
            heads: config.num_heads,
            middle_norm: RmsNorm::load(&second, "layer_norm", width, epsilon)?,
            middle: Middle::load(&second.at("DenseReluDense"), config)?,
        })
    }

    /// `(tokens, width)` to the same.
    fn forward(&self, rows: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let normal = self.attention_norm.forward(rows)?;
        let of = |layer: &Linear| -> Result<Tensor> {
            Ok(layer.forward(&normal, Activation::Identity)?.unsqueeze(0)?)
        };
        let (query, key, value) = (of(&self.query)?, of(&self.key)?, of(&self.value)?);
        let attended =
            scaled_dot_product_attention(&query, &key, &value, self.heads, 1.0, Some(bias))?.squeeze(0)?;
        let rows = (rows + self.attended.forward(&attended, Activation::Identity)?)?;
        let middle = self.middle.forward(&self.middle_norm.forward(&rows)?)?;
        Ok((rows + middle)?)
    }
}

impl Middle {
    fn load(place: &Place<'_>, config: &Config) -> Result<Self> {
        let (width, middle) = (config.d_model, config.d_ff);
        let wide = |name| place.at(name).linear_without_bias(width, middle);
        let narrow = place.at("wo").linear_without_bias(middle, width)?;
        Ok(match config.middle {
            Some(MiddleKind::Gated(activation)) => {
                Self::Gated { gate: wide("wi_0")?, activation, wide: wide("wi_1")?, narrow }
            }
            Some(MiddleKind::Plain(activation)) => Self::Plain { wide: wide("wi")?, activation, narrow },
            None => Self::Plain { wide: wide("wi")?, activation: Activation::Relu, narrow },
        })
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { wide, activation, narrow } => {
                narrow.forward(&wide.forward(rows, *activation)?, Activation::Identity)
            }
            Self::Gated { gate, activation, wide, narrow } => {
                let gate = gate.forward(rows, *activation)?;
                let wide = (wide.forward(rows, Activation::Identity)? * gate)?;
                narrow.forward(&wide, Activation::Identity)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_narrow_near_and_wide_far_away() {
        // `T5Attention._relative_position_bucket` with 32 buckets and 128 at most.
        let range = |distance: i64| {
            let (from, to) = if distance < 0 { (-distance, 0) } else { (0, distance) };
            range_of(from as usize, to as usize, 32, 128)
        };
        let distances = [0, 1, -1, 7, -7, 8, -8, 12, -20, 63, -64, 127, -128, 500, -500];
        let expected = [0, 17, 1, 23, 7, 24, 8, 25, 10, 29, 14, 31, 15, 31, 15];
        assert_eq!(distances.map(range), expected);
    }
}
