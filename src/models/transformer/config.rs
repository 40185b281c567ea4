//! A transformer as data: everything in which the blocks of one family differ from those of another, with the
//! checks of a configuration and the memory of a pass that follow from it.

mod memory;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::rope::Rope;
use crate::error::Result;
use crate::kernels::delta_net::DeltaNetSizes;
use crate::kernels::glu::GluForm;
use crate::kernels::{Activation, AttentionMask, DistanceRows};
use crate::models::config_file::{MAX_LAYERS, MAX_SIDE, invalid};

/// A stack of transformer blocks that is not loaded.
#[derive(Debug, Clone)]
pub(crate) struct TransformerConfig {
    /// Length of a row.
    pub(crate) width: usize,
    pub(crate) attention: AttentionConfig,
    /// Width of the rows that cross-attention sees; `None` for blocks without cross-attention.
    pub(crate) cross_attention: Option<usize>,
    pub(crate) norm: NormKind,
    pub(crate) norm_placement: NormPlacement,
    pub(crate) epsilon: f64,
    pub(crate) biases: Biases,
    pub(crate) activation: Activation,
    /// Use of the activation by gated networks.
    pub(crate) glu: GluForm,
    /// Several residual streams in place of one. Of decoders alone.
    pub(crate) streams: Option<StreamsConfig>,
    /// One entry for each block.
    pub(crate) layers: Vec<LayerConfig>,
    /// The rotary embeddings that blocks name by number.
    pub(crate) ropes: Vec<Rope>,
    pub(crate) workload: Workload,
}

/// Several residual streams, of which each block works on one, with inputs of the blocks' own (Gemma 3n).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamsConfig {
    /// Number of streams, at least 2.
    pub(crate) count: usize,
    /// Number of the stream that blocks work on.
    pub(crate) active: usize,
    /// Width between the two projections of the path around attention.
    pub(crate) laurel_rank: usize,
    /// Numbers of a block's input for each token.
    pub(crate) input_size: usize,
    /// Number of tokens that the table of inputs knows. Others have the first one's.
    pub(crate) table: usize,
}

/// Settings that all self-attentions of a model share.
#[derive(Debug, Clone)]
pub(crate) struct AttentionConfig {
    /// Number of query heads.
    pub(crate) heads: usize,
    /// Number of key-value heads, a divisor of `heads`.
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
    /// Factor on the product of a query and a key.
    pub(crate) scale: f32,
    /// Soft cap of the scores: `cap · tanh(score / cap)`.
    pub(crate) soft_cap: Option<f32>,
    pub(crate) head_norms: HeadNorms,
    pub(crate) sinks: AttentionSinks,
    pub(crate) output_gate: OutputGate,
    pub(crate) value_norm: ValueNorm,
    /// Bias of the key projection, where it is not that of queries and values. Of safetensors alone.
    pub(crate) key_bias: Option<Bias>,
    /// For each head what a step of distance takes off a score (ALiBi); empty for none.
    pub(crate) alibi_slopes: Vec<f32>,
    /// Learned biases by distance that all blocks share, in place of ALiBi: of encoders for keys on both sides, of
    /// decoders for those before alone.
    pub(crate) relative_bias: Option<RelativeBiasConfig>,
    /// Learned vectors of distances in each block, in place of both. Of encoders alone.
    pub(crate) distance_vectors: Option<DistanceVectorsConfig>,
}

/// Learned vectors of the relative position of key and query (Shaw et al., 2018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DistanceVectorsConfig {
    /// Number of rows of the longest sequence.
    pub(crate) reach: usize,
    pub(crate) rows: DistanceRows,
}

/// Learned biases on scores by the relative position of key and query (T5, MPNet).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelativeBiasConfig {
    /// Number of ranges of distances that share a bias, of encoders in both directions together.
    pub(crate) buckets: usize,
    /// Distance from which on all share the last bucket.
    pub(crate) max_distance: usize,
}

impl AttentionConfig {
    /// Scaled by the head's size, and nothing else.
    pub(crate) fn plain(heads: usize, kv_heads: usize, head_size: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_size,
            scale: 1.0 / (head_size as f32).sqrt(),
            soft_cap: None,
            head_norms: HeadNorms::None,
            sinks: AttentionSinks::None,
            output_gate: OutputGate::None,
            value_norm: ValueNorm::None,
            key_bias: None,
            alibi_slopes: Vec::new(),
            relative_bias: None,
            distance_vectors: None,
        }
    }
}

/// Settings in which a block may differ from the other blocks of its model.
#[derive(Debug, Clone)]
pub(crate) struct LayerConfig {
    pub(crate) mixer: MixerConfig,
    /// The rows of its sequence that a row sees.
    pub(crate) mask: AttentionMask,
    /// Number of an earlier block whose keys and values its attention sees in place of its own.
    pub(crate) key_values_of: Option<usize>,
    /// Number of its rotary embedding.
    pub(crate) rope: Option<usize>,
    pub(crate) feed_forward: FeedForwardConfig,
    /// Use of the activation by its gated network, where it is another than the model's.
    pub(crate) glu: Option<GluForm>,
    /// True if the input is normed already, so that the norm before attention is left out (ModernBERT's first
    /// block).
    pub(crate) input_is_normed: bool,
    /// True if it has cross-attention, in a model that has any.
    pub(crate) looks_beside: bool,
}

/// The part of a block in which a row sees other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MixerConfig {
    Attention,
    /// A gated delta net. Of decoders alone.
    DeltaNet(DeltaNetSizes),
}

impl MixerConfig {
    fn is_sound(self) -> bool {
        let Self::DeltaNet(sizes) = self else { return true };
        let DeltaNetSizes { key_heads, value_heads, key_size, value_size, taps, order: _ } = sizes;
        let sides = [key_heads, value_heads, key_size, value_size, taps];
        sides.iter().all(|side| (1..=MAX_SIDE).contains(side))
            && value_heads.is_multiple_of(key_heads)
            && taps > 1
    }
}

/// The feed-forward network of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FeedForwardConfig {
    /// Two projections with an activation between them.
    Dense { intermediate: usize },
    /// Three projections, one of which is an activated gate.
    Gated { intermediate: usize },
    /// Many gated networks, a few of which work on each token.
    Experts {
        intermediate: usize,
        count: usize,
        chosen: usize,
        weights: ExpertWeights,
        /// Of the layer that picks experts.
        router_bias: Bias,
        form: ExpertForm,
        /// Hidden width of one more that works on every token, weighed by a gate; `None` without one.
        shared: Option<usize>,
    },
}

/// The kind of each expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpertForm {
    /// A gated network with the biases of the model's feed-forward networks.
    Gated,
    /// A dense one without biases, and one bias on the sum of all (Nomic Embed v2).
    Dense,
}

/// Weights of the chosen experts' outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ExpertWeights {
    /// Their share in the softmax over all experts.
    OfAll,
    /// The same, scaled so that those of the chosen add up to 1.
    OfChosen,
    /// The best expert's share among those that are about as good, and then the same without it, for the second
    /// (Phi-3.5-MoE). As good is whose score is not below the best by more than twice the jitter, as a part of either.
    SparseMixer { jitter: f32 },
}

/// The kind of a model's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// Layer norm.
    Layer(Bias),
    /// Root-mean-square norm.
    Rms,
    /// Root-mean-square norm whose file has the factors less 1 (Gemma).
    RmsLessOne,
}

/// The places of a block's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlacement {
    /// Before attention and before the feed-forward network (GPT-2, Llama, ViT).
    Pre,
    /// After the sum with the residual stream (BERT).
    Post,
    /// Before and after both, inside the residual connections (Gemma).
    Sandwich,
    /// One before attention and feed-forward network, which work side by side (Phi, Moondream).
    Parallel,
}

/// Norms of each head's queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadNorms {
    None,
    /// One for the query and one for the key of each head, of the model's kind.
    EachHead,
}

/// Learned scores of a key that stands for no token (Xiao et al., 2024, arXiv 2309.17453).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionSinks {
    None,
    /// One for each head. Of decoders alone.
    EachHead,
}

/// Norm of each head's values, without factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueNorm {
    None,
    EachHead,
}

/// Gates of the attention's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputGate {
    None,
    /// A sigmoid for each number of each head's output. The query projection gives each head's gate after its query.
    EachHead,
}

/// Biases of the linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) qkv: Bias,
    pub(crate) attention_output: Bias,
    /// Of the projections into the feed-forward network, the gate included.
    pub(crate) up: Bias,
    pub(crate) down: Bias,
}

impl Biases {
    pub(crate) const ALL: Self = Self::both(Bias::Yes, Bias::Yes);
    pub(crate) const NONE: Self = Self::both(Bias::No, Bias::No);

    /// One choice for all layers of attention and one for all of the feed-forward network.
    pub(crate) const fn both(attention: Bias, feed_forward: Bias) -> Self {
        Self { qkv: attention, attention_output: attention, up: feed_forward, down: feed_forward }
    }
}

/// Presence of a bias.
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

/// The rows that come to the blocks, by which kernels are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Whole sequences with hundreds of rows together: gemm, and attention without a cache. Encoders and
    /// towers.
    WholeSequences,
    /// Sequences that grow, a piece of a prompt or a token at a time: packed products, and attention over KV
    /// caches.
    GrowingSequences,
}

/// The sizes of a model whose heads share out its width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) width: usize,
    /// Width of the feed-forward network's hidden layer.
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
}

impl TransformerConfig {
    /// An encoder's blocks: multi-head attention in which every row sees its whole sequence, layer norms, a
    /// dense feed-forward network, and biases everywhere. Families say what they have otherwise.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for sizes that are out of range or do not fit
    /// together.
    pub(crate) fn encoder(
        file: &Path,
        sizes: Sizes,
        norm_placement: NormPlacement,
        activation: Activation,
        epsilon: f64,
    ) -> Result<Self> {
        let Sizes { width, intermediate, layers, heads } = sizes;
        let head_size = width.checked_div(heads).unwrap_or(0);
        let layer = LayerConfig {
            mixer: MixerConfig::Attention,
            mask: AttentionMask::Full,
            key_values_of: None,
            rope: None,
            feed_forward: FeedForwardConfig::Dense { intermediate },
            glu: None,
            input_is_normed: false,
            looks_beside: true,
        };
        let config = Self {
            width,
            attention: AttentionConfig::plain(heads, heads, head_size),
            cross_attention: None,
            norm: NormKind::Layer(Bias::Yes),
            norm_placement,
            epsilon,
            biases: Biases::ALL,
            activation,
            glu: GluForm::Plain,
            streams: None,
            layers: vec![layer; layer_count(file, layers)?],
            ropes: Vec::new(),
            workload: Workload::WholeSequences,
        };
        config.check(file)?;
        match head_size.saturating_mul(heads) == width {
            true => Ok(config),
            false => Err(invalid(file, format!("the width {width} is no multiple of the {heads} heads"))),
        }
    }

    /// The same with `rope` in every block.
    pub(crate) fn with_rope(mut self, rope: Rope) -> Self {
        self.ropes = vec![rope];
        self.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
        self
    }

    /// The same with a gate in every dense feed-forward network.
    pub(crate) fn gated(mut self) -> Self {
        for layer in &mut self.layers {
            if let FeedForwardConfig::Dense { intermediate } = layer.feed_forward {
                layer.feed_forward = FeedForwardConfig::Gated { intermediate };
            }
        }
        self
    }

    /// Makes every gated feed-forward network a dense one.
    pub(crate) fn without_gates(&mut self) {
        for layer in &mut self.layers {
            if let FeedForwardConfig::Gated { intermediate } = layer.feed_forward {
                layer.feed_forward = FeedForwardConfig::Dense { intermediate };
            }
        }
    }

    /// The same with every row seeing `mask` of its sequence.
    pub(crate) fn with_mask(mut self, mask: AttentionMask) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.mask = mask);
        self
    }

    /// Numbers of a row of keys, or of values.
    pub(crate) fn kv_width(&self) -> usize {
        self.attention.kv_heads.saturating_mul(self.attention.head_size)
    }

    /// Numbers of the inputs that all blocks have of their own for a token.
    pub(crate) fn inputs_width(&self) -> usize {
        self.streams.map_or(0, |streams| streams.input_size.saturating_mul(self.layers.len()))
    }

    /// Numbers of a row of queries, keys and values.
    pub(crate) fn qkv_width(&self) -> usize {
        self.attention
            .heads
            .saturating_add(2 * self.attention.kv_heads)
            .saturating_mul(self.attention.head_size)
    }

    /// Length of the longest sequence that all rotary embeddings embed by the frequencies that they began with.
    pub(crate) fn steady_context(&self) -> Option<usize> {
        self.ropes.iter().filter_map(Rope::limit).min()
    }

    /// Refuses a configuration that cannot be computed with.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig).
    pub(crate) fn check(&self, file: &Path) -> Result<()> {
        let attention = &self.attention;
        let sides = [
            ("hidden_size", self.width),
            ("num_attention_heads", attention.heads),
            ("num_key_value_heads", attention.kv_heads),
            ("head_dim", attention.head_size),
        ];
        for (name, side) in sides {
            check_side(file, name, side)?;
        }
        if !attention.heads.is_multiple_of(attention.kv_heads) {
            let (heads, shared) = (attention.heads, attention.kv_heads);
            let reason =
                format!("num_attention_heads {heads} is no multiple of num_key_value_heads {shared}");
            return Err(invalid(file, reason));
        }
        let factors = [Some(attention.scale), attention.soft_cap];
        if factors.into_iter().flatten().any(|factor| !factor.is_normal()) || !self.epsilon.is_finite() {
            return Err(invalid(
                file,
                "an attention scale, soft cap or epsilon is no usable number".to_owned(),
            ));
        }
        if let GluForm::Clamped { limit } = self.glu
            && !(limit.is_normal() && limit > 0.0)
        {
            return Err(invalid(file, "the limit of the gated networks is no positive number"));
        }
        if let Some(streams) = self.streams {
            let StreamsConfig { count, active, laurel_rank, input_size, table } = streams;
            let sides = [count, laurel_rank, input_size, table, self.inputs_width()];
            if sides.iter().any(|side| !(1..=MAX_SIDE).contains(side)) || count < 2 || active >= count {
                return Err(invalid(file, format!("residual streams cannot be: {streams:?}")));
            }
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let sound = match layer.feed_forward {
                FeedForwardConfig::Dense { intermediate } | FeedForwardConfig::Gated { intermediate } => {
                    (1..=MAX_SIDE).contains(&intermediate)
                }
                FeedForwardConfig::Experts { intermediate, count, chosen, shared, .. } => {
                    (1..=MAX_SIDE).contains(&intermediate)
                        && shared.is_none_or(|shared| (1..=MAX_SIDE).contains(&shared))
                        && (1..=count).contains(&chosen)
                        && count <= MAX_SIDE
                }
            };
            let sound = sound && layer.mixer.is_sound();
            // The block before it has caches of its own.
            let shares = |block: usize| match self.layers.get(block) {
                Some(other) => {
                    block < index && other.key_values_of.is_none() && other.mixer == MixerConfig::Attention
                }
                None => false,
            };
            let sound = sound && layer.key_values_of.is_none_or(shares);
            if !sound || layer.mask == AttentionMask::SlidingWindow(0) {
                return Err(invalid(file, format!("a layer cannot be: {layer:?}")));
            }
        }
        self.ropes
            .iter()
            .try_for_each(|rope| rope.check(attention.head_size))
            .map_err(|why| invalid(file, why))
    }
}

/// Refuses a size that is 0 or out of range, before anything is computed with it.
pub(crate) fn check_side(file: &Path, name: &str, side: usize) -> Result<()> {
    match (1..=MAX_SIDE).contains(&side) {
        true => Ok(()),
        false => Err(invalid(file, format!("{name} is {side}; 1 to {MAX_SIDE} are allowed"))),
    }
}

/// The number of layers, if a model can have so many.
pub(crate) fn layer_count(file: &Path, count: usize) -> Result<usize> {
    match (1..=MAX_LAYERS).contains(&count) {
        true => Ok(count),
        false => Err(invalid(file, format!("num_hidden_layers is {count}; 1 to {MAX_LAYERS} are allowed"))),
    }
}
