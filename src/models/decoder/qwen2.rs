//! Qwen2 and Qwen2.5: biases on queries, keys and values, and a window in the upper layers where one is asked
//! for.

use std::path::Path;

use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::Family;
use crate::error::Result;
use crate::models::transformer::Bias;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen2", architectures: &["Qwen2ForCausalLM", "Qwen2Model"], read };

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let settings = Settings::read(file, config, defaults())?.optional_window();
    let first = settings.windows.max_window_layers;
    let mut decoder = settings.decoder(file, |layer| layer >= first)?;
    decoder.transformer.biases.qkv = Bias::Yes;
    decoder.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "sliding_window": 4096, "max_window_layers": 28
    })
}
