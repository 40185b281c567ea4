//! Mistral: Llama's shape, with a window in every layer where the file names one. Ministral 8B has it in the layers that it
//! lists. Ministral 3 has none, and queries that grow with the position instead, for texts beyond those of its
//! pretraining. Models that see images have the text's settings one level down.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::names::{DecoderNames, LLAMA};
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::rotary::QueryGrowth;
use crate::models::config_file::{invalid, unsupported, with_defaults};

/// The families' entries in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "mistral", architectures: &["MistralForCausalLM", "MistralModel"], read };
pub(super) const ALTERNATING: Family<DecoderConfig> = Family {
    model_type: "ministral",
    architectures: &["MinistralForCausalLM", "MinistralModel"],
    read: read_alternating,
};
pub(super) const MINISTRAL3: Family<DecoderConfig> = Family {
    model_type: "ministral3",
    architectures: &["Ministral3ForCausalLM", "Ministral3Model"],
    read: read_growing,
};
/// The entry of the models that see images, of which this is the text half.
pub(super) const WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "mistral3",
    architectures: &["Mistral3ForConditionalGeneration"],
    read: |file, config| {
        let text = config.get("text_config").ok_or_else(|| invalid(file, "it has no text_config"))?;
        let decoder = match text.get("model_type").and_then(Value::as_str) {
            Some("ministral3") => read_growing(file, text)?,
            None | Some("mistral") => read(file, text)?,
            Some(other) => {
                return Err(unsupported(file, "text_config.model_type", other, "mistral, ministral3"));
            }
        };
        Ok(DecoderConfig { names: &NAMES_WITH_IMAGES, ..decoder })
    },
};

/// The same names beside those of the vision tower, which a text does not need.
const NAMES_WITH_IMAGES: DecoderNames = DecoderNames {
    no_effect: &[
        "vision_tower.",
        "model.vision_tower.",
        "multi_modal_projector.",
        "model.multi_modal_projector.",
    ],
    ..LLAMA
};

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    Settings::read(file, config, defaults())?.window_of_family().decoder(file, |_| true)?.checked(file)
}

fn read_alternating(file: &Path, config: &Value) -> Result<DecoderConfig> {
    Settings::read(file, config, defaults())?.decoder(file, |_| true)?.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "sliding_window": 4096
    })
}

/// The settings of the growth, which stand among those of the rotary embedding.
#[derive(Debug, Deserialize)]
struct Growth {
    rope_parameters: GrowthSettings,
}

#[derive(Debug, Deserialize)]
struct GrowthSettings {
    llama_4_scaling_beta: f64,
    original_max_position_embeddings: usize,
}

fn read_growing(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = with_defaults(config, growing_defaults());
    let mut decoder =
        Settings::read(file, &config, growing_defaults())?.window_of_family().decoder(file, |_| true)?;
    let Growth { rope_parameters: growth } = parse(file, &config)?;
    let original =
        u32::try_from(growth.original_max_position_embeddings).ok().filter(|original| *original > 0);
    let (true, Some(original)) = (growth.llama_4_scaling_beta.is_finite(), original) else {
        return Err(invalid(
            file,
            "llama_4_scaling_beta or original_max_position_embeddings is no usable number",
        ));
    };
    let growth = QueryGrowth { beta: growth.llama_4_scaling_beta as f32, original };
    decoder.transformer.ropes.iter_mut().for_each(|rope| rope.frequencies.query_growth = Some(growth));
    decoder.checked(file)
}

fn growing_defaults() -> Value {
    json!({
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "eos_token_id": 2,
        "rope_parameters": {
            "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1
        }
    })
}
