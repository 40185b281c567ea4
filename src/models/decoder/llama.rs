//! Llama and what shares its shape (TinyLlama, SmolLM).

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::transformer::Biases;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "llama", architectures: &["LlamaForCausalLM", "LlamaModel"], read };

/// Settings of Llama alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    let mut decoder =
        Settings::read(file, config, defaults())?.window_of_family().decoder(file, |_| false)?;
    decoder.transformer.biases = Biases::both(own.attention_bias.into(), own.mlp_bias.into());
    decoder.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6
    })
}
