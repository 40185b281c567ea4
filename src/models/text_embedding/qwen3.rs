//! Qwen3-Embedding (Zhang et al., 2025): Qwen3, of which the last token's vector is taken. Its tokenizer ends
//! each text, and its instructions are prompts like any other.

use super::Architecture;
use super::decoding::Embedder;
use super::qwen2::{OWN_CODE, direction};
use crate::architecture::Family;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    read: |file, config| {
        Ok(Box::new(Embedder::read(file, config, direction(file, config, Some(OWN_CODE))?)?))
    },
};
