//! T5's encoder (Raffel et al., arXiv 1910.10683; version 1.1 with gated feed-forward layers), which Stable
//! Diffusion 3 and FLUX encode prompts with. A prompt is padded to one length without a mask, because the
//! models are trained so. The reference is `T5EncoderModel` of transformers.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;

use super::layers::{Attention, FeedForward, ScopedReader};
use super::pipeline::Watch;
use super::prompt::{PromptTokens, TokenizerFiles};
use super::repository::{MAX_COUNT, MAX_WIDTH, Repository, check_sizes, invalid};
use crate::error::{Error, Result};
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{Activation, relative_position_bucket};

/// Maximum number of tokens of its vocabulary.
const MAX_VOCABULARY: usize = 1 << 24;
/// Maximum width of a feed-forward layer's intermediate row.
const MAX_INTERMEDIATE: usize = 1 << 20;
/// Maximum number of heads.
const MAX_HEADS: usize = 256;
/// Maximum width of a head.
const MAX_HEAD: usize = 4096;
/// Maximum number of buckets of relative positions.
const MAX_BUCKETS: usize = 1 << 16;
/// Largest distance that a bucket of its own may begin with.
const MAX_DISTANCE: usize = 1 << 20;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("model_type", "\"t5\""), ("is_decoder", "false")];

/// `config.json`, with the defaults of transformers.
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
        }
    }
}

/// Kind of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FeedForwardKind {
    Plain(Activation),
    Gated(Activation),
}

impl FeedForwardKind {
    /// Kind by its name in `feed_forward_proj`.
    fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("gated-") {
            // Version 1.1 was published with this name and uses the approximation by tanh.
            Some("gelu") => Some(Self::Gated(Activation::GeluTanh)),
            Some(name) => Activation::from_name(name).map(Self::Gated),
            None => Activation::from_name(name).map(Self::Plain),
        }
    }
}

impl Config {
    fn feed_forward(&self, path: &Path) -> Result<FeedForwardKind> {
        FeedForwardKind::from_name(&self.feed_forward_proj).ok_or_else(|| Error::UnsupportedSetting {
            file: path.to_owned(),
            what: "feed_forward_proj".into(),
            found: self.feed_forward_proj.clone(),
            supported: "relu, gated-gelu, gated-silu".into(),
        })
    }

    fn check(&self, path: &Path) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("d_model", self.d_model, MAX_WIDTH),
            ("d_kv", self.d_kv, MAX_HEAD),
            ("d_ff", self.d_ff, MAX_INTERMEDIATE),
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

    /// Width of all heads together.
    fn attention_width(&self) -> usize {
        self.num_heads * self.d_kv
    }
}

/// Encoder that is not loaded, with its tokenizer.
pub(super) struct T5Config {
    config: Config,
    feed_forward: FeedForwardKind,
    tokenizer: TokenizerFiles,
}

/// True for the tensors that are loaded; a whole model has a decoder too.
pub(super) fn is_loaded(tensor: &str) -> bool {
    !tensor.starts_with("decoder.") && !tensor.starts_with("lm_head.")
}

impl T5Config {
    /// From the folders of the encoder and of its tokenizer, named with a slash at their ends.
    pub(super) fn read(repository: &Repository<'_>, encoder: &str, tokenizer: &str) -> Result<Self> {
        let (path, config): (_, Config) = repository.config(&format!("{encoder}config.json"), &[], ONLY)?;
        config.check(&path)?;
        let feed_forward = config.feed_forward(&path)?;
        Ok(Self { config, feed_forward, tokenizer: TokenizerFiles::find(repository, tokenizer)? })
    }

    /// Width of a token's embedding.
    pub(super) fn width(&self) -> usize {
        self.config.d_model
    }

    /// Memory that encoding prompts of so many tokens needs besides the weights.
    pub(super) fn scratch(&self, tokens: usize) -> Bytes {
        let config = &self.config;
        let rows =
            (3 * config.d_model + (4 * config.attention_width()).max(2 * config.d_ff)).saturating_mul(tokens);
        let bias = config.num_heads.saturating_mul(tokens).saturating_mul(tokens);
        Bytes((rows.saturating_add(bias) as u64).saturating_mul(4))
    }

    /// For prompts of `length` tokens.
    pub(super) fn load(&self, reader: &ScopedReader<'_>, length: usize) -> Result<T5> {
        let config = &self.config;
        let tokens = self.tokenizer.read(length)?;
        tokens.check(config.vocab_size)?;
        let encoder = reader.at("encoder");
        let shape = [config.vocab_size, config.d_model];
        let token_embeddings = match encoder.contains("embed_tokens.weight") {
            true => {
                // Mostly the same under another name; where it is not, the encoder is computed with its own.
                reader.leave("shared.weight");
                encoder.tensor("embed_tokens.weight", &shape)?
            }
            false => reader.tensor("shared.weight", &shape)?,
        };
        let blocks = (0..config.num_layers)
            .map(|index| Block::load(&encoder.at(format!("block.{index}")), config, self.feed_forward));
        let bias = encoder.at("block.0.layer.0.SelfAttention");
        let bias_shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(T5 {
            tokens,
            token_embeddings,
            relative_attention_bias: bias.tensor("relative_attention_bias.weight", &bias_shape)?,
            max_distance: config.relative_attention_max_distance,
            blocks: blocks.collect::<Result<_>>()?,
            final_norm: encoder.at("final_layer_norm").rms_norm(config.d_model, config.layer_norm_epsilon)?,
        })
    }
}

/// Loaded encoder with its tokenizer.
pub(super) struct T5 {
    tokens: PromptTokens,
    /// `(vocabulary, width)`.
    token_embeddings: Tensor,
    /// For each bucket of relative positions the number that is added to each head's scores, `(buckets,
    /// heads)`.
    relative_attention_bias: Tensor,
    /// Distance from which on all are in the last bucket.
    max_distance: usize,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
}

impl T5 {
    /// Encodes prompts to `(prompts, tokens, width)`, one after another.
    pub(super) fn encode(&self, prompts: &[&str], watch: &Watch<'_>) -> Result<Tensor> {
        let bias = self.position_bias(self.tokens.length())?;
        let encode = |prompt: &&str| {
            let ids = Tensor::new(self.tokens.encode(prompt)?, self.token_embeddings.device())?;
            let mut rows = self.token_embeddings.index_select(&ids, 0)?.unsqueeze(0)?;
            for block in &self.blocks {
                watch.check()?;
                rows = block.forward(&rows, &bias)?;
            }
            self.final_norm.forward(&rows)
        };
        let encoded: Vec<Tensor> = prompts.iter().map(encode).collect::<Result<_>>()?;
        Ok(Tensor::cat(&encoded, 0)?)
    }

    /// Bias on the scores of all layers, `(heads, tokens, tokens)`.
    fn position_bias(&self, tokens: usize) -> Result<Tensor> {
        let count = self.relative_attention_bias.dim(0)?;
        let bucket = |index: usize| {
            let (query, key) = (index / tokens, index % tokens);
            relative_position_bucket(query, key, count, self.max_distance) as u32
        };
        let buckets: Vec<u32> = (0..tokens * tokens).map(bucket).collect();
        let buckets = Tensor::new(buckets, self.relative_attention_bias.device())?;
        let bias = self.relative_attention_bias.t()?.contiguous()?.index_select(&buckets, 1)?;
        Ok(bias.reshape(((), tokens, tokens))?)
    }
}

/// Block of the encoder: attention and feed-forward layer, each behind an RMS norm and beside a residual
/// connection. The attention has a bias that all blocks share.
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn load(reader: &ScopedReader<'_>, config: &Config, kind: FeedForwardKind) -> Result<Self> {
        let (width, epsilon) = (config.d_model, config.layer_norm_epsilon);
        let (first, second) = (reader.at("layer.0"), reader.at("layer.1"));
        let attention = first.at("SelfAttention");
        let in_dim = config.attention_width();
        let linear = |name| attention.at(name).linear_without_bias(width, in_dim);
        Ok(Self {
            attention_norm: first.at("layer_norm").rms_norm(width, epsilon)?,
            attention: Attention {
                query: linear("q")?,
                key: linear("k")?,
                value: linear("v")?,
                out: attention.at("o").linear_without_bias(in_dim, width)?,
                heads: config.num_heads,
                scale: 1.0,
            },
            feed_forward_norm: second.at("layer_norm").rms_norm(width, epsilon)?,
            feed_forward: load_feed_forward(&second.at("DenseReluDense"), config, kind)?,
        })
    }

    /// `(batch, tokens, width)` to the same shape.
    fn forward(&self, rows: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let normal = self.attention_norm.forward(rows)?;
        let rows = (rows + self.attention.forward(&normal, &normal, Some(bias))?)?;
        let normal = self.feed_forward_norm.forward(&rows)?;
        Ok((&rows + self.feed_forward.forward(&normal)?)?)
    }
}

fn load_feed_forward(
    reader: &ScopedReader<'_>,
    config: &Config,
    kind: FeedForwardKind,
) -> Result<FeedForward> {
    let (width, intermediate) = (config.d_model, config.d_ff);
    let linear = |name| reader.at(name).linear_without_bias(width, intermediate);
    let down = reader.at("wo").linear_without_bias(intermediate, width)?;
    Ok(match kind {
        FeedForwardKind::Gated(activation) => {
            FeedForward { gate: Some(linear("wi_0")?), up: linear("wi_1")?, activation, down }
        }
        FeedForwardKind::Plain(activation) => FeedForward { gate: None, up: linear("wi")?, activation, down },
    })
}
