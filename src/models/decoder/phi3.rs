//! Phi-3 and Phi-4: queries, keys and values in one tensor, gate and up in another, and a rotary embedding
//! that has other frequencies for long texts.

use std::path::Path;

use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::names::PHI3;
use super::settings::Settings;
use crate::architecture::Family;
use crate::error::Result;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "phi3", architectures: &["Phi3ForCausalLM", "Phi3Model"], read };

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let base = Settings::read(file, config, defaults())?.window_of_family().decoder(file, |_| true)?;
    DecoderConfig { names: &PHI3, ..base }.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5
    })
}
