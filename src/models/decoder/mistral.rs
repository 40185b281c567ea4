//! Mistral: Llama's shape, with a window in every layer where the file names one.

use std::path::Path;

use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::Family;
use crate::error::Result;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "mistral", architectures: &["MistralForCausalLM", "MistralModel"], read };

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    Settings::read(file, config, defaults())?.decoder(file, |_| true)?.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "sliding_window": 4096
    })
}
