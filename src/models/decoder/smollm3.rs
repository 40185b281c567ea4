//! SmolLM3: Llama's shape, in which some layers have no positions (NoPE), every fourth unless the file lists them.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::invalid;
use crate::models::transformer::Biases;

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "smollm3", architectures: &["SmolLM3ForCausalLM", "SmolLM3Model"], read };

/// Settings of SmolLM3 alone.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Own {
    attention_bias: bool,
    mlp_bias: bool,
    /// 1 for each layer with positions, 0 for each without.
    no_rope_layers: Option<Vec<usize>>,
    no_rope_layer_interval: usize,
}

impl Default for Own {
    fn default() -> Self {
        Self { attention_bias: false, mlp_bias: false, no_rope_layers: None, no_rope_layer_interval: 4 }
    }
}

impl Own {
    fn has_rope(&self, layer: usize) -> bool {
        match &self.no_rope_layers {
            Some(layers) => layers.get(layer).is_some_and(|has| *has != 0),
            None => !(layer + 1).is_multiple_of(self.no_rope_layer_interval),
        }
    }
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    let settings = Settings::read(file, config, defaults())?.optional_window();
    // The window, if there is one, is of the layers without positions.
    let mut decoder = settings.decoder(file, |layer| !own.has_rope(layer))?;
    let layers = decoder.transformer.layers.len();
    if let Some(listed) = own.no_rope_layers.as_ref().filter(|listed| listed.len() != layers) {
        return Err(invalid(file, format!("{} no_rope_layers for {layers} layers", listed.len())));
    }
    for (index, layer) in decoder.transformer.layers.iter_mut().enumerate() {
        layer.rope = own.has_rope(index).then_some(0);
    }
    decoder.transformer.biases = Biases::both(own.attention_bias.into(), own.mlp_bias.into());
    decoder.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "eos_token_id": 128001, "rope_theta": 2000000.0
    })
}
