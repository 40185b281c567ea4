//! Qwen3 with a mixture of experts in most layers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::qwen3;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::transformer::{Bias, ExpertForm, ExpertWeights, FeedForwardConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen3_moe", architectures: &["Qwen3MoeForCausalLM", "Qwen3MoeModel"], read };

/// Settings of the mixture of experts.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Own {
    moe_intermediate_size: usize,
    num_experts_per_tok: usize,
    num_experts: Option<usize>,
    /// The same in some files.
    num_local_experts: Option<usize>,
    norm_topk_prob: bool,
    /// Every so many layers have experts.
    decoder_sparse_step: usize,
    /// Layers without experts.
    mlp_only_layers: Option<Vec<usize>>,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            moe_intermediate_size: 768,
            num_experts_per_tok: 8,
            num_experts: None,
            num_local_experts: None,
            norm_topk_prob: false,
            decoder_sparse_step: 1,
            mlp_only_layers: None,
        }
    }
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let settings = Settings::read(file, config, defaults())?.optional_window().window_of_family();
    let mut decoder = qwen3::shape(file, config, settings.decoder(file, |_| true)?)?;
    let own: Own = parse(file, config)?;
    let experts = FeedForwardConfig::Experts {
        intermediate: own.moe_intermediate_size,
        count: own.num_experts.or(own.num_local_experts).unwrap_or(128),
        chosen: own.num_experts_per_tok,
        weights: if own.norm_topk_prob { ExpertWeights::OfChosen } else { ExpertWeights::OfAll },
        router_bias: Bias::No,
        form: ExpertForm::Gated,
        shared: None,
    };
    let dense = own.mlp_only_layers.unwrap_or_default();
    for (index, layer) in decoder.transformer.layers.iter_mut().enumerate() {
        let has_experts = own.decoder_sparse_step > 0 && (index + 1).is_multiple_of(own.decoder_sparse_step);
        if has_experts && !dense.contains(&index) {
            layer.feed_forward = experts;
        }
    }
    decoder.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "sliding_window": 4096
    })
}
