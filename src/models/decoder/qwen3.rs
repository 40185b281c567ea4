//! Qwen3: norms on each head's query and key.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::transformer::{Bias, Biases, HeadNorms};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    read: |file, config| {
        let settings = Settings::read(file, config, defaults())?.optional_window();
        let first = settings.windows.max_window_layers;
        shape(file, config, settings.decoder(file, |layer| layer >= first)?)?.checked(file)
    },
};

/// The settings that Qwen3 and its mixture of experts have in common.
pub(super) fn shape(file: &Path, config: &Value, mut decoder: DecoderConfig) -> Result<DecoderConfig> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Own {
        attention_bias: bool,
    }
    let bias = parse::<Own>(file, config)?.attention_bias;
    decoder.transformer.biases = Biases::both(bias.into(), Bias::No);
    decoder.transformer.attention.head_norms = HeadNorms::EachHead;
    Ok(decoder)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28
    })
}
