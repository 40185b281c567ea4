//! Qwen3.5: Qwen3-Next with projections of their own into the gated delta nets, and with dense networks in place of experts
//! or in every layer with them. The published models see images, and have the text's settings one level down.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{DecoderConfig, Head};
use super::names::DecoderNames;
use super::names::{QWEN3_5, QWEN3_5_MOE};
use super::{qwen2_moe, qwen3_next};
use crate::architecture::Family;
use crate::error::Result;
use crate::models::config_file::{invalid, with_defaults};

/// The text models' entries in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen3_5_text", architectures: &["Qwen3_5ForCausalLM", "Qwen3_5TextModel"], read };
pub(super) const WITH_EXPERTS: Family<DecoderConfig> = Family {
    model_type: "qwen3_5_moe_text",
    architectures: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextModel"],
    read: read_experts,
};

/// The entries of the models that see images, of which these are the text halves.
pub(super) const WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "qwen3_5",
    architectures: &["Qwen3_5ForConditionalGeneration", "Qwen3_5Model"],
    read: |file, config| text_half(file, config, read, &NAMES_WITH_IMAGES),
};
pub(super) const EXPERTS_WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "qwen3_5_moe",
    architectures: &["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeModel"],
    read: |file, config| text_half(file, config, read_experts, &MOE_NAMES_WITH_IMAGES),
};

/// The same names beside those of the vision tower, which a text does not need.
const NAMES_WITH_IMAGES: DecoderNames = DecoderNames { no_effect: BESIDE_TEXT, ..QWEN3_5 };
const MOE_NAMES_WITH_IMAGES: DecoderNames = DecoderNames { no_effect: BESIDE_TEXT, ..QWEN3_5_MOE };
const BESIDE_TEXT: &[&str] = &["model.visual.", "mtp.", "model.mtp."];

fn text_half(
    file: &Path,
    config: &Value,
    read: fn(&Path, &Value) -> Result<DecoderConfig>,
    names: &'static DecoderNames,
) -> Result<DecoderConfig> {
    let text = config.get("text_config").ok_or_else(|| invalid(file, "it has no text_config"))?;
    let decoder = read(file, text)?;
    // The whole model's setting counts.
    let head = match config.get("tie_word_embeddings") {
        Some(Value::Bool(true)) => Head::Tied,
        _ => decoder.head,
    };
    Ok(DecoderConfig { names, head, ..decoder })
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let decoder = qwen3_next::shape(file, &with_defaults(config, defaults()))?;
    DecoderConfig { names: &QWEN3_5, ..decoder }.checked(file)
}

fn read_experts(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let mut config = with_defaults(&with_defaults(config, expert_defaults()), defaults());
    if let Some(settings) = config.as_object_mut() {
        // Of the family, whatever the file says.
        settings.insert("norm_topk_prob".to_owned(), json!(true));
        settings.insert("decoder_sparse_step".to_owned(), json!(1));
        settings.remove("mlp_only_layers");
    }
    let mut decoder = qwen3_next::shape(file, &config)?;
    qwen2_moe::add_experts(file, &config, &mut decoder)?;
    DecoderConfig { names: &QWEN3_5_MOE, ..decoder }.checked(file)
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

/// Of models with experts, where they are others.
fn expert_defaults() -> Value {
    json!({
        "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256
    })
}
