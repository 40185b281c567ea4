//! Qwen3.5: Qwen3-Next with dense networks in place of experts, and projections of their own into the gated delta nets.
//! The published models see images, and have the text's settings one level down.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{DecoderConfig, Head};
use super::names::DecoderNames;
use super::names::QWEN3_5;
use super::qwen3_next;
use crate::architecture::Family;
use crate::error::Result;
use crate::models::config_file::{invalid, with_defaults};

/// The text models' entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen3_5_text", architectures: &["Qwen3_5ForCausalLM", "Qwen3_5TextModel"], read };

/// The entry of the models that see images, of which this is the text half.
pub(super) const WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "qwen3_5",
    architectures: &["Qwen3_5ForConditionalGeneration", "Qwen3_5Model"],
    read: |file, config| {
        let text = config.get("text_config").ok_or_else(|| invalid(file, "it has no text_config"))?;
        let decoder = read(file, text)?;
        // The whole model's setting counts.
        let head = match config.get("tie_word_embeddings") {
            Some(Value::Bool(true)) => Head::Tied,
            _ => decoder.head,
        };
        Ok(DecoderConfig { names: &NAMES_WITH_IMAGES, head, ..decoder })
    },
};

/// The same names beside those of the vision tower, which a text does not need.
const NAMES_WITH_IMAGES: DecoderNames =
    DecoderNames { no_effect: &["model.visual.", "mtp.", "model.mtp."], ..QWEN3_5 };

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let decoder = qwen3_next::shape(file, &with_defaults(config, defaults()))?;
    DecoderConfig { names: &QWEN3_5, ..decoder }.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32
    })
}
