//! Phi-1, Phi-1.5 and Phi-2: attention and feed-forward network side by side on one layer norm, biases everywhere, and
//! rotary positions on a part of each head.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{DecoderConfig, Head};
use super::names::PHI;
use super::settings::{Settings, epsilon_of_layer_norms};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{unsupported, with_defaults};
use crate::models::transformer::{Bias, Biases, NormKind, NormPlacement};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "phi", architectures: &["PhiForCausalLM", "PhiModel"], read };

/// Settings of Phi alone.
#[derive(Debug, Deserialize)]
struct Own {
    #[serde(default)]
    qk_layernorm: bool,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = epsilon_of_layer_norms(with_defaults(config, defaults()));
    if parse::<Own>(file, &config)?.qk_layernorm {
        return Err(unsupported(file, "qk_layernorm", "true", "false"));
    }
    let settings = Settings::read(file, &config, defaults())?.window_of_family().partial_rotary();
    // The reference implementation rotates a part of each head, which has no room for the pairs that this kind has.
    let parameters = settings.rope.parameters(file, None)?;
    if parameters.is_proportional() {
        return Err(unsupported(file, "rope_type", "proportional", "any other"));
    }
    let mut decoder = settings.decoder(file, |_| false)?;
    shape(&mut decoder);
    DecoderConfig { names: &PHI, ..decoder }.checked(file)
}

/// Changes Llama's shape into Phi's.
pub(super) fn shape(decoder: &mut DecoderConfig) {
    let transformer = &mut decoder.transformer;
    transformer.norm = NormKind::Layer(Bias::Yes);
    transformer.norm_placement = NormPlacement::Parallel;
    transformer.biases = Biases::ALL;
    transformer.without_gates();
    decoder.head = Head::Own(Bias::Yes);
}

fn defaults() -> Value {
    json!({
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "hidden_act": "gelu_new", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5
    })
}
