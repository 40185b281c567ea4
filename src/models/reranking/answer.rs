//! Language models as rerankers: a prompt asks whether a document answers a query, and the score is how much rather the
//! model would go on with yes than with no.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::pairs::{PairForm, PairPrompt};
use super::{Architecture, CAPABILITY, Scorer, TokenBatch, TokenId, Watch};
use crate::architecture;
use crate::error::Result;
use crate::models::decoder::{self, Decoder, DecoderConfig};
use crate::weights::WeightFiles;

/// A language model that is asked, and not loaded.
pub(super) struct AnswerReranker {
    decoder: DecoderConfig,
    question: &'static Question,
}

/// The question, and the two answers.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) prompt: PairPrompt,
    pub(super) yes: &'static str,
    pub(super) no: &'static str,
    /// Maximum number of tokens of a prompt, as the model is published to be used.
    pub(super) longest: usize,
}

impl AnswerReranker {
    /// # Errors
    /// As [`architecture::find`].
    pub(super) fn architecture(
        question: &'static Question,
        file: &Path,
        config: &Value,
    ) -> Result<Box<dyn Architecture>> {
        let decoder = architecture::find(decoder::FAMILIES, CAPABILITY, file, config)?;
        Ok(Box::new(Self { decoder, question }))
    }
}

impl Architecture for AnswerReranker {
    fn vocabulary(&self) -> usize {
        self.decoder.vocabulary
    }

    fn longest(&self) -> usize {
        self.decoder.context.min(self.question.longest)
    }

    fn form(&self) -> PairForm {
        PairForm::Prompt(&self.question.prompt)
    }

    fn uses(&self, tensor: &str) -> bool {
        self.decoder.uses(tensor)
    }

    fn packs(&self, tensor: &str) -> bool {
        self.decoder.packs(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        self.decoder.has_no_effect(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // Keys and values are kept for one block at a time; the logits are those of a pair in the worst case of a pass.
        let keys_and_values = (self.decoder.transformer.kv_width() as u64).saturating_mul(8);
        let logits = (self.decoder.vocabulary as u64).saturating_mul(8);
        let pairs = (tokens as u64) / (MIN_PROMPT as u64) + 1;
        self.decoder.scratch(tokens, longest)
            + Bytes(keys_and_values.saturating_mul(tokens as u64))
            + Bytes(logits.saturating_mul(pairs))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        id: &TokenId<'_>,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Scorer>> {
        let (yes, no) = (id(self.question.yes)?, id(self.question.no)?);
        Ok(Arc::new(Asked { decoder: self.decoder.load(weights, device, context)?, yes, no }))
    }
}

/// Fewest tokens of a prompt, in which the model is told its task.
const MIN_PROMPT: usize = 32;

/// A loaded language model that is asked.
struct Asked {
    decoder: Decoder,
    yes: u32,
    no: u32,
}

impl Scorer for Asked {
    fn logits(&self, pairs: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<f32>> {
        let hidden = self.decoder.encode(&self.decoder.embed(&pairs.ids)?, &pairs.lengths, watch)?;
        let ends = pairs.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some((*end).saturating_sub(1) as u32)
        });
        let ends = Tensor::new(ends.collect::<Vec<u32>>(), hidden.device())?;
        let logits = self.decoder.logits(&hidden.index_select(&ends, 0)?)?;
        let of = |token: u32| logits.narrow(1, token as usize, 1).and_then(|column| column.flatten_all());
        Ok((of(self.yes)? - of(self.no)?)?.to_vec1()?)
    }
}
