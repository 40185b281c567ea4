//! Qwen1.5-MoE and Qwen2-MoE: Qwen2 with a mixture of experts in most layers, and in each mixture a network that sees
//! every token, weighed by a gate of its own.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::with_defaults;
use crate::models::transformer::{Bias, ExpertForm, ExpertWeights, FeedForwardConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen2_moe", architectures: &["Qwen2MoeForCausalLM", "Qwen2MoeModel"], read };

/// Settings of the mixture of experts.
#[derive(Debug, Deserialize)]
struct Mixture {
    moe_intermediate_size: usize,
    shared_expert_intermediate_size: usize,
    num_experts_per_tok: usize,
    num_experts: usize,
    norm_topk_prob: bool,
    /// Every so many layers have experts.
    decoder_sparse_step: usize,
    /// Layers without experts.
    mlp_only_layers: Option<Vec<usize>>,
}

/// Settings of Qwen2-MoE alone.
#[derive(Debug, Deserialize)]
struct Own {
    qkv_bias: bool,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = with_defaults(config, defaults());
    let own: Own = parse(file, &config)?;
    let settings = Settings::read(file, &config, defaults())?.optional_window();
    // Every other of the first layers has the window.
    let first = settings.windows.max_window_layers;
    let mut decoder = settings.decoder(file, |layer| layer % 2 == 0 && layer < first)?;
    decoder.transformer.biases.qkv = own.qkv_bias.into();
    add_experts(file, &config, &mut decoder)?;
    decoder.checked(file)
}

/// Puts experts, with one that sees every token, into the layers that have them.
pub(super) fn add_experts(file: &Path, config: &Value, decoder: &mut DecoderConfig) -> Result<()> {
    let own: Mixture = parse(file, config)?;
    let experts = FeedForwardConfig::Experts {
        intermediate: own.moe_intermediate_size,
        count: own.num_experts,
        chosen: own.num_experts_per_tok,
        weights: if own.norm_topk_prob { ExpertWeights::OfChosen } else { ExpertWeights::OfAll },
        router_bias: Bias::No,
        form: ExpertForm::Gated,
        shared: Some(own.shared_expert_intermediate_size),
    };
    let dense = own.mlp_only_layers.unwrap_or_default();
    for (index, layer) in decoder.transformer.layers.iter_mut().enumerate() {
        let has_experts = own.decoder_sparse_step > 0 && (index + 1).is_multiple_of(own.decoder_sparse_step);
        if has_experts && own.num_experts > 0 && !dense.contains(&index) {
            layer.feed_forward = experts;
        }
    }
    Ok(())
}

fn defaults() -> Value {
    json!({
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60, "norm_topk_prob": false,
        "decoder_sparse_step": 1, "qkv_bias": true
    })
}
