//! A decoder as data: its blocks, and the embeddings before and the logits after them. Families make it from
//! a file's settings.

use std::path::Path;

use model_actors::Bytes;

use super::names::DecoderNames;
use crate::error::Result;
use crate::kernels::glu::GluForm;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::invalid;
use crate::models::transformer::{
    AttentionConfig, Bias, Biases, FeedForwardConfig, LayerConfig, MixerConfig, NormKind, NormPlacement,
    QkvNames, TransformerConfig, Workload, check_side, is_buffer, is_tensor_of,
};

/// A decoder that is not loaded.
#[derive(Debug, Clone)]
pub(crate) struct DecoderConfig {
    /// Number of tokens that it knows.
    pub(crate) vocabulary: usize,
    /// Maximum number of tokens of a sequence.
    pub(crate) context: usize,
    pub(crate) embeddings: Embeddings,
    pub(crate) transformer: TransformerConfig,
    pub(crate) head: Head,
    /// Soft cap of the logits: `cap · tanh(logit / cap)`.
    pub(crate) logit_cap: Option<f32>,
    /// Tokens that end a text, as `config.json` has them.
    pub(crate) end_tokens: Vec<u32>,
    /// Names of the tensors in the file.
    pub(crate) names: &'static DecoderNames,
    /// Names of the modules in the reference implementation, where they are others.
    pub(crate) modules: Option<&'static DecoderNames>,
}

/// The rows that the first block is given of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Embeddings {
    /// The tokens' vectors.
    Plain,
    /// The tokens' vectors with this factor (Gemma).
    Scaled(f32),
    /// The norm of the sum of token and learned position (BERT), of which there is one for each place of the
    /// context.
    WithPositions,
    /// The sum alone, where the first positions are of no place (OPT).
    PlusPositions { unused: usize },
}

/// The layer that makes logits of the last hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// After a norm, a matrix of its own.
    Own(Bias),
    /// After a norm, the token embeddings; or a matrix of its own where the file has one all the same, as the reference
    /// implementation does.
    Tied,
    /// A linear layer with this activation, a norm, and a matrix with a bias (BERT's masked language model): those of the
    /// output where the file has them, else, if they are tied, the token embeddings and the bias beside the layer.
    Transformed { activation: Activation, is_tied: bool },
    /// A norm alone: an embedder has no logits.
    None,
}

impl DecoderConfig {
    /// Attention in which each token sees its whole sequence, or in layers with a window that many tokens to either side,
    /// for embedders.
    pub(crate) fn bidirectional(mut self) -> Self {
        for layer in &mut self.transformer.layers {
            layer.mask = match layer.mask {
                AttentionMask::SlidingWindow(window) => AttentionMask::LocalWindow(window),
                _ => AttentionMask::Full,
            };
        }
        self
    }

    /// Attention in which each token sees its whole sequence in every layer, for embedders.
    pub(crate) fn everywhere(mut self) -> Self {
        self.transformer = self.transformer.with_mask(AttentionMask::Full);
        self
    }

    /// Without logits, for embedders.
    pub(crate) fn without_logits(mut self) -> Self {
        self.head = Head::None;
        self
    }

    /// Length of a token's vector.
    pub(crate) fn width(&self) -> usize {
        self.transformer.width
    }

    /// True for tensors that are packed: all but learned positions, whose rows are added, and convolutions.
    pub(crate) fn packs(&self, tensor: &str) -> bool {
        let others = [self.names.positions, self.names.blocks.delta_net.convolution];
        self.uses(tensor) && others.iter().all(|name| name.is_empty() || !tensor.contains(name))
    }

    /// True for the tensors of the file that are loaded.
    pub(crate) fn uses(&self, tensor: &str) -> bool {
        let names = self.names;
        let is_part = |prefix: &&str| {
            tensor.strip_prefix(prefix).is_some_and(|name| {
                let single = [
                    names.token_embeddings,
                    names.block_inputs,
                    names.positions,
                    names.embedding_norm,
                    names.norm,
                    names.blocks.streams.inputs,
                    names.blocks.streams.inputs_norm,
                ];
                let begins = |beginning: &str| !beginning.is_empty() && name.starts_with(beginning);
                begins(names.blocks.blocks)
                    || begins(names.blocks.streams.embed)
                    || begins(names.blocks.streams.unembed)
                    || single.iter().any(|single| is_tensor_of(single, name))
            })
        };
        let is_head = self.head != Head::None && names.heads.iter().any(|head| is_tensor_of(head, tensor));
        is_head || (names.prefixes.iter().any(is_part) && !tensor.ends_with(".inv_freq"))
    }

    /// True for tensors of the file that change nothing that is computed.
    pub(crate) fn has_no_effect(&self, tensor: &str) -> bool {
        is_buffer(tensor)
            || self.names.no_effect.iter().any(|beginning| tensor.starts_with(beginning))
            || self.is_of_shared_keys(tensor)
    }

    /// True for the keys and values of a block that sees those of another one.
    fn is_of_shared_keys(&self, tensor: &str) -> bool {
        let names = &self.names.blocks;
        let QkvNames::Separate([_, key, value]) = names.qkv else { return false };
        let block = |(index, layer): (usize, &LayerConfig)| {
            layer.key_values_of.is_some()
                && self.names.prefixes.iter().any(|prefix| {
                    let name = tensor.strip_prefix(&format!("{prefix}{}{index}.", names.blocks));
                    name.is_some_and(|name| {
                        [key, value, names.key_norm].iter().any(|part| is_tensor_of(part, name))
                    })
                })
        };
        self.transformer.layers.iter().enumerate().any(block)
    }

    /// Bytes of the caches of so many sequences, which have so many tokens together.
    pub(crate) fn cache_bytes(&self, tokens: usize, sequences: usize) -> Bytes {
        self.transformer.cache_bytes(tokens, sequences)
    }

    /// Length of the longest sequence that all of its rotary embeddings last for.
    pub(crate) fn steady_context(&self) -> usize {
        self.transformer.steady_context().map_or(self.context, |limit| limit.min(self.context))
    }

    /// Bytes that a pass over so many rows needs besides weights, caches and the logits that are handed on,
    /// where the longest sequence has `longest` tokens.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        // A row of logits is in memory twice while it is made.
        let logits = if self.head == Head::None { 0 } else { (self.vocabulary as u64).saturating_mul(8) };
        self.transformer.scratch(rows, longest) + Bytes(logits)
    }

    /// The configuration, if it can be computed with. Families call it last.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig).
    pub(crate) fn checked(self, file: &Path) -> Result<Self> {
        check_side(file, "vocab_size", self.vocabulary)?;
        if self.context == 0 {
            return Err(invalid(file, "max_position_embeddings is 0"));
        }
        let scale = match self.embeddings {
            Embeddings::Scaled(scale) => Some(scale),
            Embeddings::Plain | Embeddings::WithPositions | Embeddings::PlusPositions { .. } => None,
        };
        if [scale, self.logit_cap].into_iter().flatten().any(|factor| !factor.is_normal()) {
            return Err(invalid(file, "a scale or soft cap is no usable number"));
        }
        self.transformer.check(file)?;
        Ok(self)
    }
}

/// The sizes in which decoders of Llama's form differ, and what their layers see.
pub(super) struct LlamaSizes {
    pub(super) width: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    pub(super) epsilon: f64,
    /// One for each layer.
    pub(super) masks: Vec<AttentionMask>,
}

/// Llama's blocks: grouped-query attention with rotary positions, root-mean-square norms before each sublayer, SwiGLU, and
/// no biases. Families say what they have otherwise. Nothing is checked yet.
pub(super) fn llama_blocks(sizes: LlamaSizes) -> TransformerConfig {
    let LlamaSizes { width, intermediate, heads, kv_heads, head_size, epsilon, masks } = sizes;
    let feed_forward = FeedForwardConfig::Gated { intermediate };
    let layer = |mask| LayerConfig {
        mixer: MixerConfig::Attention,
        mask,
        key_values_of: None,
        rope: Some(0),
        feed_forward,
        glu: None,
        input_is_normed: false,
        looks_beside: true,
    };
    TransformerConfig {
        width,
        attention: AttentionConfig::plain(heads, kv_heads, head_size),
        cross_attention: None,
        norm: NormKind::Rms,
        norm_placement: NormPlacement::Pre,
        epsilon,
        biases: Biases::NONE,
        activation: Activation::Silu,
        glu: GluForm::Plain,
        streams: None,
        layers: masks.into_iter().map(layer).collect(),
        ropes: Vec::new(),
        workload: Workload::GrowingSequences,
    }
}
