//! Decoders as embedders: the hidden states of the last block, of whole texts at once and without caches. How
//! a family's configuration tells causal from bidirectional attention is left to its file.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::{Architecture, CAPABILITY, Encoder, TokenBatch, Watch};
use crate::architecture;
use crate::error::Result;
use crate::models::decoder::{self, Decoder, DecoderConfig};
use crate::weights::WeightFiles;

/// Attention between the tokens of a text in a decoder that makes embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionDirection {
    /// A token attends to itself and those before it.
    Causal,
    /// A token attends to those around it: all of them, or in layers with a window the nearest to either side.
    Bidirectional,
    /// Each token attends to all, whatever windows the file speaks of.
    Everywhere,
}

/// Beginnings of the names of heads, which no vector of a token depends on.
const HEADS: [&str; 3] = ["lm_head.", "model.lm_head.", "score."];

/// An embedding model that is a decoder.
pub(super) struct Embedder(pub(super) DecoderConfig);

impl Embedder {
    /// Reads the decoder's part of a configuration.
    ///
    /// # Errors
    /// As [`architecture::find`].
    pub(super) fn read(file: &Path, config: &Value, direction: AttentionDirection) -> Result<Self> {
        let decoder = architecture::find(decoder::FAMILIES, CAPABILITY, file, config)?.without_logits();
        Ok(Self(match direction {
            AttentionDirection::Causal => decoder,
            AttentionDirection::Bidirectional => decoder.bidirectional(),
            AttentionDirection::Everywhere => decoder.everywhere(),
        }))
    }
}

impl Architecture for Embedder {
    fn width(&self) -> usize {
        self.0.width()
    }

    fn vocabulary(&self) -> usize {
        self.0.vocabulary
    }

    fn longest(&self) -> usize {
        self.0.context
    }

    fn uses(&self, tensor: &str) -> bool {
        self.0.uses(tensor)
    }

    fn packs(&self, tensor: &str, _: bool) -> bool {
        self.0.packs(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        HEADS.iter().any(|head| tensor.starts_with(head)) || self.0.has_no_effect(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // Keys and values are kept for one block at a time.
        let keys_and_values = (self.0.transformer.kv_width() as u64).saturating_mul(8);
        self.0.scratch(tokens, longest) + Bytes(keys_and_values.saturating_mul(tokens as u64))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        Ok(Arc::new(self.0.load(weights, device, context)?))
    }
}

impl Encoder for Decoder {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        self.encode(&self.embed(&batch.ids)?, &batch.lengths, watch)
    }
}
