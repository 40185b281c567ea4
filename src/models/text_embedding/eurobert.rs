//! EuroBERT (Boizard et al., 2025): Llama's blocks, in which every token sees its whole text.

use std::path::Path;

use serde_json::{Value, json};

use super::Architecture;
use super::decoding::{AttentionDirection, Embedder};
use crate::architecture::Family;
use crate::error::Result;
use crate::models::config_file::with_defaults;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "eurobert",
    architectures: &["EuroBertModel", "EuroBertForMaskedLM"],
    read: |file, config| Ok(Box::new(read(file, config)?)),
};

/// Reads a `config.json`.
pub(super) fn read(file: &Path, config: &Value) -> Result<Embedder> {
    let mut config = with_defaults(config, defaults());
    // Read as the decoder that it is, but for what its tokens see.
    if let Some(settings) = config.as_object_mut() {
        settings.insert("model_type".to_owned(), json!("llama"));
    }
    Embedder::read(file, &config, AttentionDirection::Everywhere)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 128256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5
    })
}
