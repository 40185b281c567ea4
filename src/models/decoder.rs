//! One decoder-only transformer for every family that is built like Llama: text to text, text embedding and vision
//! all run on it. What differs between families is data, a [`DecoderConfig`], which a family's file makes from
//! `config.json` or from the metadata of a GGUF file. Weights are shared; each sequence has a [`Cache`] of its own.
//! Sampling, tokenizing and pooling are left to the capabilities.

mod rope;
mod config;
mod settings;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod gguf;
mod experts;
mod layer;
mod cache;
mod load;
mod plan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod speed;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::families::Family;
use crate::kernels::causal::{KvCache, LayerSegment};
use crate::kernels::packed::PackedLinear;
use crate::kernels::rms_norm::RmsNorm;
pub(crate) use cache::Cache;
pub(crate) use config::DecoderConfig;
use layer::{Layer, Pass};
pub(crate) use plan::Segment;

/// The families, in the order that errors list them. A new one is its file and its line here.
pub(crate) const FAMILIES: &[Family<DecoderConfig>] = &[
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    phi3::FAMILY,
    mistral::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma3::WITH_IMAGES,
];

/// A decoder in memory: weights alone, which all workers share.
pub(crate) struct Decoder {
    words: PackedLinear,
    layers: Vec<Layer>,
    norm: RmsNorm,
    logits: Logits,
    config: DecoderConfig,
    device: Device,
}

/// How hidden states become scores of tokens.
enum Logits {
    /// By a matrix of their own.
    Own(PackedLinear),
    /// By the embedding's.
    Tied,
    /// Not at all: an embedder's.
    None,
}

impl Decoder {
    /// Length of a token's vector.
    pub(crate) fn width(&self) -> usize {
        self.config.width
    }

    /// Tokens that it knows.
    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Most tokens of a sequence.
    pub(crate) fn context(&self) -> usize {
        self.config.context
    }

    /// The memory of a new sequence that gets at least `known` tokens: those of its prompt, of which only a part may be
    /// in the first pass.
    pub(crate) fn cache(&self, known: usize) -> Result<Cache> {
        let width = self.config.kv_heads.saturating_mul(self.config.head_size);
        Cache::new(self.layers.len(), width, known, &self.device)
    }

    /// Token numbers to `(tokens, width)`, scaled as the family does.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let words = self.words.lookup(tokens)?;
        match self.config.embedding_scale {
            Some(scale) => Ok((words * f64::from(scale))?),
            None => Ok(words),
        }
    }

    /// Rows of several sequences, `(rows, width)`, prompts and single tokens mixed, through all layers and the last
    /// norm: `(rows, width)`. The segments cover the rows in order; each row is added to its sequence's cache. After
    /// an error the caches are as they were. A row's result does not depend on the other sequences.
    pub(crate) fn forward(&self, rows: &Tensor, segments: &mut [Segment<'_>]) -> Result<Tensor> {
        self.forward_with(rows, segments, |_, hidden| Ok(hidden))
    }

    /// As [`Self::forward`]; `after` is given each layer's number and result, and what it returns goes on.
    pub(crate) fn forward_with(
        &self,
        rows: &Tensor,
        segments: &mut [Segment<'_>],
        mut after: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ropes = self.rope_tables(rows, segments)?;
        let mut hidden = rows.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut layer_segments = Vec::with_capacity(segments.len());
            for segment in segments.iter_mut() {
                let (past, length) = (segment.cache.length(), segment.length);
                layer_segments.push(LayerSegment { cache: segment.cache.layer(index)?, past, length });
            }
            let rope = ropes.get(layer.rope).ok_or_else(|| misfit("a layer has no rotary embedding"))?;
            hidden = after(index, layer.forward(hidden, &mut Pass { rope, segments: &mut layer_segments })?)?;
        }
        segments.iter_mut().for_each(|segment| segment.cache.advance(segment.length));
        self.norm.forward(&hidden)
    }

    /// Whole texts at once, of these lengths, for their hidden states alone: nothing is kept. `(tokens, width)` to
    /// `(tokens, width)`. `after` is called after each layer and may end the pass.
    pub(crate) fn encode(
        &self,
        rows: &Tensor,
        lengths: &[usize],
        after: impl Fn() -> Result<()>,
    ) -> Result<Tensor> {
        let width = self.config.kv_heads.saturating_mul(self.config.head_size);
        let ropes = {
            let caches = lengths.iter().map(|length| Cache::new(0, width, *length, &self.device));
            let mut caches = caches.collect::<Result<Vec<_>>>()?;
            let segments = caches.iter_mut().zip(lengths);
            let segments =
                segments.map(|(cache, length)| Segment { cache, length: *length, positions: None });
            self.rope_tables(rows, &segments.collect::<Vec<_>>())?
        };
        let caches = lengths.iter().map(|length| KvCache::of(*length, width, &self.device));
        let mut caches = caches.collect::<Result<Vec<KvCache>>>()?;
        let mut hidden = rows.clone();
        for layer in &self.layers {
            let pairs = caches.iter_mut().zip(lengths);
            let mut layer_segments: Vec<LayerSegment<'_>> =
                pairs.map(|(cache, length)| LayerSegment { cache, past: 0, length: *length }).collect();
            let rope = ropes.get(layer.rope).ok_or_else(|| misfit("a layer has no rotary embedding"))?;
            hidden = layer.forward(hidden, &mut Pass { rope, segments: &mut layer_segments })?;
            after()?;
        }
        self.norm.forward(&hidden)
    }

    /// `(rows, width)` to `(rows, vocabulary)`: scores of the next token.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let matrix = match &self.logits {
            Logits::Own(matrix) => matrix,
            Logits::Tied => &self.words,
            Logits::None => return Err(misfit("it was loaded without logits")),
        };
        let logits = matrix.forward(hidden, crate::kernels::Activation::Identity)?;
        match self.config.logit_cap {
            Some(cap) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
            None => Ok(logits),
        }
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("decoder: {reason}"))
}
