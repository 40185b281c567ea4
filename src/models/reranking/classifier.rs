//! Cross-encoders: an encoder of text embedding reads query and document together, and a classifier with one label makes
//! the score.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::Value;

use super::head::{Head, HeadConfig};
use super::pairs::PairForm;
use super::{Architecture, Scorer, TokenBatch, TokenId, Watch};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::unsupported;
use crate::models::text_embedding::{self, Encoder};
use crate::weights::WeightFiles;

/// A cross-encoder that is not loaded.
pub(super) struct Classifier {
    encoder: Box<dyn text_embedding::Architecture>,
    head: HeadConfig,
}

/// Settings of a classifier in `config.json`.
#[derive(Deserialize)]
struct Labels {
    id2label: Option<serde_json::Map<String, Value>>,
    num_labels: Option<usize>,
}

impl Classifier {
    /// The cross-encoder of an encoder's family.
    ///
    /// # Errors
    /// [`Error::UnsupportedSetting`](crate::Error::UnsupportedSetting) for a classifier with other than one label; those of
    /// the family.
    pub(super) fn architecture(
        encoder: &Family<Box<dyn text_embedding::Architecture>>,
        head: HeadConfig,
        file: &Path,
        config: &Value,
    ) -> Result<Box<dyn Architecture>> {
        let Labels { id2label, num_labels } = parse(file, config)?;
        // As transformers counts them; a file without either has two.
        let labels = id2label.map(|labels| labels.len()).or(num_labels).unwrap_or(2);
        if labels != 1 {
            let supported = "1, the relevance of a document to a query; this model sorts texts into classes";
            return Err(unsupported(file, "num_labels", &labels.to_string(), supported));
        }
        Ok(Box::new(Self { encoder: (encoder.read)(file, config)?, head }))
    }
}

impl Architecture for Classifier {
    fn vocabulary(&self) -> usize {
        self.encoder.vocabulary()
    }

    fn longest(&self) -> usize {
        self.encoder.longest()
    }

    fn form(&self) -> PairForm {
        PairForm::Texts
    }

    fn uses(&self, tensor: &str) -> bool {
        self.encoder.uses(tensor) || self.head.uses(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        self.encoder.has_no_effect(tensor) && !self.head.is_beside(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        self.encoder.scratch(tokens, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        _: &TokenId<'_>,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Scorer>> {
        let head = self.head.load(self.encoder.width(), weights, device, context)?;
        Ok(Arc::new(CrossEncoder { encoder: self.encoder.load(weights, device, context)?, head }))
    }
}

/// A loaded cross-encoder.
struct CrossEncoder {
    encoder: Arc<dyn Encoder>,
    head: Head,
}

impl Scorer for CrossEncoder {
    fn logits(&self, pairs: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<f32>> {
        self.head.forward(&self.encoder.encode(pairs, watch)?, &pairs.lengths)
    }
}
