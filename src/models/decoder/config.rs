//! What one decoder differs from another in, as data. Families make it; the layers are built from it.

use std::path::{Path, PathBuf};

use candle_core::Device;
use model_actors::{Bytes, LoadContext};

use super::Decoder;
use super::load::{self, PREFIXES, SafeTensors};
use super::rope::Rope;
use crate::error::{Error, Result};
use crate::kernels::causal::{KvCache, growing_bytes};
use crate::kernels::{Activation, AttentionMask, SCORES_PER_THREAD};
use crate::weights::WeightFiles;

/// Most layers that a configuration may ask for.
const MAX_LAYERS: usize = 1024;
/// Largest length, count or width that a configuration may name; products of three of them fit 64 bits.
pub(super) const MAX_SIDE: usize = 1 << 20;

/// A decoder that is not loaded.
#[derive(Debug, Clone)]
pub(crate) struct DecoderConfig {
    pub(crate) vocabulary: usize,
    /// Length of a token's vector.
    pub(crate) width: usize,
    /// Most tokens of a sequence.
    pub(crate) context: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values.
    pub(crate) kv_heads: usize,
    /// Numbers of a head.
    pub(crate) head_size: usize,
    /// Factor on a query's product with a key.
    pub(crate) attention_scale: f32,
    /// Limit that scores are bent to.
    pub(crate) attention_cap: Option<f32>,
    /// Limit that logits are bent to.
    pub(crate) logit_cap: Option<f32>,
    pub(crate) embedding_scale: Option<f32>,
    pub(crate) activation: Activation,
    pub(crate) epsilon: f64,
    pub(crate) norm_weight: NormWeight,
    pub(crate) norms: Norms,
    pub(crate) head_norms: HeadNorms,
    pub(crate) biases: Biases,
    pub(crate) fusion: Fusion,
    pub(crate) head: Head,
    pub(crate) layers: Vec<LayerConfig>,
    /// The rotary embeddings that the layers name by number.
    pub(crate) ropes: Vec<Rope>,
    /// Tokens that end a text, as `config.json` has them.
    pub(crate) end_tokens: Vec<u32>,
}

/// What a layer differs from another layer of the same model in.
#[derive(Debug, Clone)]
pub(crate) struct LayerConfig {
    pub(crate) mask: AttentionMask,
    /// Number of its rotary embedding.
    pub(crate) rope: usize,
    pub(crate) feed_forward: FeedForward,
}

/// The second half of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedForward {
    /// One gated network with so many hidden numbers.
    Dense { middle: usize },
    /// A few of many, for each token.
    Experts { middle: usize, count: usize, chosen: usize, weights: ExpertWeights },
}

/// What the results of the chosen experts are weighed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpertWeights {
    /// Their share in the softmax over all experts.
    OfAll,
    /// The same, scaled so that those of the chosen add up to 1.
    OfChosen,
}

/// What the numbers in a norm's tensor mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormWeight {
    /// The factor.
    Factor,
    /// What the factor is more than 1 (Gemma).
    AboveOne,
}

/// Where a layer has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before attention and before the feed-forward.
    Before,
    /// Before and after both (Gemma).
    Around,
}

/// Whether queries and keys have norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadNorms {
    None,
    /// One for each head's query and one for each head's key.
    EachHead,
}

/// Which linear layers have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) query_key_value: Bias,
    pub(crate) attended: Bias,
    pub(crate) feed_forward: Bias,
}

impl Biases {
    pub(crate) const NONE: Self =
        Self { query_key_value: Bias::No, attended: Bias::No, feed_forward: Bias::No };
}

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Yes,
    No,
}

impl From<bool> for Bias {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// How the file has the projections that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// Query, key, value, gate and up are tensors of their own.
    Separate,
    /// `qkv_proj` and `gate_up_proj` (Phi-3).
    Fused,
}

/// Where logits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// The tensor `lm_head`, or the embedding's where the file has none.
    Own,
    /// The embedding's.
    Tied,
    /// They are not wanted.
    None,
}

impl DecoderConfig {
    /// Attention in which each token sees its whole sequence, for embedders.
    pub(crate) fn bidirectional(mut self) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.mask = AttentionMask::Full);
        self
    }

    /// Without logits, for embedders.
    pub(crate) fn without_logits(mut self) -> Self {
        self.head = Head::None;
        self
    }

    /// Whether a tensor of the file will be loaded.
    pub(crate) fn uses(&self, tensor: &str) -> bool {
        let part = |prefix: &&str| {
            tensor.strip_prefix(prefix).is_some_and(|name| {
                name.starts_with("layers.") || name == "norm.weight" || name == "embed_tokens.weight"
            })
        };
        let head = self.head == Head::Own && load::HEADS.contains(&tensor);
        head || (PREFIXES.iter().any(part) && !tensor.ends_with(".inv_freq"))
    }

    /// What the cache of a sequence takes at so many tokens.
    pub(crate) fn cache_bytes(&self, tokens: usize) -> Bytes {
        let width = self.kv_heads.saturating_mul(self.head_size);
        let layer = KvCache::bytes_for(tokens, width);
        Bytes(layer.saturating_mul(self.layers.len() as u64))
    }

    /// The longest sequence that all of its rotary embeddings last for.
    pub(crate) fn steady_context(&self) -> usize {
        self.ropes.iter().filter_map(Rope::limit).fold(self.context, usize::min)
    }

    /// What a pass over so many rows needs besides weights and caches, where the longest sequence has `longest`
    /// tokens.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let middle = |layer: &LayerConfig| match layer.feed_forward {
            FeedForward::Dense { middle } => middle,
            FeedForward::Experts { middle, chosen, .. } => middle.saturating_mul(chosen),
        };
        let middle = self.layers.iter().map(middle).max().unwrap_or(0);
        let heads = self.heads.saturating_add(2 * self.kv_heads).saturating_mul(self.head_size);
        // The widest moments: gate and up with their copy in panels and their product, or the mixed heads likewise.
        let row = middle.saturating_mul(5).max(heads.saturating_mul(3)).saturating_add(self.width * 4);
        let scores = longest.saturating_mul(rows.max(1)).min(SCORES_PER_THREAD);
        let growing = growing_bytes(longest, self.kv_heads.saturating_mul(self.head_size));
        let numbers = row.saturating_mul(rows).saturating_add(scores);
        Bytes((numbers as u64).saturating_mul(4)) + Bytes(growing)
    }

    /// Reads the weights.
    pub(crate) fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Decoder> {
        load::load(self, &SafeTensors::new(weights, device, context), device)
    }

    /// The configuration, if it can be computed with. Families call it last.
    pub(crate) fn checked(self, file: &Path) -> Result<Self> {
        let invalid = |reason: String| Err(Error::InvalidConfig { file: PathBuf::from(file), reason });
        let sides = [
            ("vocab_size", self.vocabulary),
            ("hidden_size", self.width),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_size),
        ];
        for (name, side) in sides {
            if !(1..=MAX_SIDE).contains(&side) {
                return invalid(format!("{name} is {side}; from 1 to {MAX_SIDE} are allowed"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, shared) = (self.heads, self.kv_heads);
            return invalid(format!(
                "num_attention_heads {heads} is no multiple of num_key_value_heads {shared}"
            ));
        }
        if self.context == 0 {
            return invalid("max_position_embeddings is 0".to_owned());
        }
        let finite = [Some(self.attention_scale), self.attention_cap, self.logit_cap, self.embedding_scale];
        if finite.into_iter().flatten().any(|factor| !factor.is_normal()) || !self.epsilon.is_finite() {
            return invalid("a scale, soft cap or epsilon is no usable number".to_owned());
        }
        for layer in &self.layers {
            let sound = match layer.feed_forward {
                FeedForward::Dense { middle } => (1..=MAX_SIDE).contains(&middle),
                FeedForward::Experts { middle, count, chosen, .. } => {
                    (1..=MAX_SIDE).contains(&middle) && (1..=count).contains(&chosen) && count <= MAX_SIDE
                }
            };
            if !sound || layer.mask == AttentionMask::SlidingWindow(0) {
                return invalid(format!("a layer makes no sense: {layer:?}"));
            }
        }
        for rope in &self.ropes {
            if let Err(reason) = rope.check(self.head_size) {
                return invalid(reason);
            }
        }
        Ok(self)
    }
}

/// The number of layers, if it is one that can be.
pub(super) fn layer_count(file: &Path, count: usize) -> Result<usize> {
    if (1..=MAX_LAYERS).contains(&count) {
        return Ok(count);
    }
    let reason = format!("num_hidden_layers is {count}; from 1 to {MAX_LAYERS} are allowed");
    Err(Error::InvalidConfig { file: file.to_owned(), reason })
}
