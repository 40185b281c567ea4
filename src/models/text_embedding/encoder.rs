//! Text encoders as embedders: BERT and its relatives. A family's file says what its encoder is as data; the
//! encoder is that of `towers`.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::{Architecture, Encoder, TokenBatch, Watch};
use crate::error::Result;
use crate::models::towers::{TextTower, TextTowerConfig};
use crate::models::transformer::{SafeTensors, Workload, check_side, is_buffer};
use crate::weights::WeightFiles;

/// Beginnings of the names of pooling layers and heads of other tasks, which no vector of a token depends on.
const HEADS: [&str; 14] = [
    "pooler.",
    "cls.",
    "lm_head.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "classifier.",
    "pre_classifier.",
    "qa_outputs.",
    "score.",
    "head.",
    "decoder.",
    "generator_",
    "discriminator_predictions.",
];

/// An embedding model that is a text encoder.
pub(super) struct TextEncoder {
    tower: TextTowerConfig,
    /// Beginnings of the tensors' names, where the encoder was saved as a part of a larger model; the first
    /// that has token embeddings counts.
    prefixes: &'static [&'static str],
}

impl TextEncoder {
    /// The architecture of a family with this encoder.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for a vocabulary or context out of range.
    pub(super) fn architecture(
        file: &Path,
        tower: TextTowerConfig,
        prefixes: &'static [&'static str],
    ) -> Result<Box<dyn Architecture>> {
        check_side(file, "vocab_size", tower.vocabulary)?;
        check_side(file, "max_position_embeddings", tower.context)?;
        Ok(Box::new(Self { tower, prefixes }))
    }
}

impl Architecture for TextEncoder {
    fn width(&self) -> usize {
        self.tower.transformer.width
    }

    fn vocabulary(&self) -> usize {
        self.tower.vocabulary
    }

    fn longest(&self) -> usize {
        self.tower.context
    }

    fn hides_tokens(&self) -> bool {
        self.tower.transformer.workload == Workload::WholeSequences
    }

    fn uses(&self, tensor: &str) -> bool {
        let names = self.prefixes.iter().filter_map(|prefix| tensor.strip_prefix(prefix));
        names.into_iter().any(|name| self.tower.uses(name))
    }

    fn packs(&self, tensor: &str, eight_bit: bool) -> bool {
        let mut names = self.prefixes.iter().filter_map(|prefix| tensor.strip_prefix(prefix));
        let blocks = &self.tower.names.blocks;
        let is_linear = |name: &str| {
            let vectors = blocks.distance_vectors;
            name.starts_with(blocks.blocks) && (vectors.is_empty() || !name.contains(vectors))
        };
        eight_bit && names.any(is_linear)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        let names = self.prefixes.iter().filter_map(|prefix| tensor.strip_prefix(prefix));
        names.into_iter().any(|name| has_no_effect(name) || self.tower.has_no_effect(name))
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        self.tower.transformer.scratch(tokens, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let embeddings = format!("{}.weight", self.tower.names.token_embeddings);
        let reader = weights.reader(prefix_in(weights, self.prefixes, &embeddings), device, context);
        let tensors = SafeTensors::new(&reader, "", self.tower.transformer.workload);
        Ok(Arc::new(self.tower.load(&tensors, device)?))
    }
}

/// The first beginning of names under which a file has this tensor.
pub(super) fn prefix_in(weights: &WeightFiles, prefixes: &[&'static str], tensor: &str) -> &'static str {
    let has_it = |prefix: &&&str| weights.contains(&format!("{prefix}{tensor}"));
    prefixes.iter().find(has_it).copied().unwrap_or_default()
}

/// True for tensors, named on the encoder's path, that change no vector of a token whatever the family.
pub(super) fn has_no_effect(tensor: &str) -> bool {
    is_buffer(tensor) || HEADS.iter().any(|head| tensor.starts_with(head))
}

impl Encoder for TextTower {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        self.encode_segments(&batch.ids, &batch.segments, batch.whole(), watch)
    }
}
