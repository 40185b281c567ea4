//! GPT-OSS: experts in every layer, whose gated networks are clamped and have biases, a window in every other layer, and
//! attention with sinks. The experts' matrices are published in blocks of 4-bit floats (MXFP4), and stay so.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::names::GPT_OSS;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::glu::GluForm;
use crate::models::config_file::{unsupported, with_defaults};
use crate::models::transformer::{
    AttentionSinks, Bias, Biases, ExpertForm, ExpertWeights, FeedForwardConfig,
};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gpt_oss", architectures: &["GptOssForCausalLM", "GptOssModel"], read };

/// Factor in the sigmoid of the experts' gates, that of [`Activation::QuickGelu`].
const ALPHA: f64 = 1.702;

/// Settings of GPT-OSS alone.
#[derive(Debug, Deserialize)]
struct Own {
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    attention_bias: bool,
    swiglu_alpha: f64,
    swiglu_limit: f32,
}

/// Sizes of the experts, from either kind of file.
pub(super) struct Experts {
    pub(super) intermediate: usize,
    pub(super) count: usize,
    pub(super) chosen: usize,
    /// Bound of what goes into the gated networks.
    pub(super) limit: f32,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let mut config = with_defaults(config, defaults());
    let has_rope = ["rope_parameters", "rope_scaling"]
        .iter()
        .any(|name| config.get(name).is_some_and(|value| !value.is_null()));
    if let (false, Some(settings)) = (has_rope, config.as_object_mut()) {
        settings.insert("rope_parameters".to_owned(), default_rope());
    }
    let own: Own = parse(file, &config)?;
    if own.swiglu_alpha != ALPHA {
        return Err(unsupported(file, "swiglu_alpha", &own.swiglu_alpha.to_string(), ALPHA.to_string()));
    }
    let mut decoder = Settings::read(file, &config, defaults())?.decoder(file, |layer| layer % 2 == 0)?;
    let experts = Experts {
        intermediate: own.intermediate_size,
        count: own.num_local_experts,
        chosen: own.num_experts_per_tok,
        limit: own.swiglu_limit,
    };
    shape(&mut decoder, &experts);
    let attention: Bias = own.attention_bias.into();
    decoder.transformer.biases = Biases::both(attention, Bias::Yes);
    DecoderConfig { names: &GPT_OSS, ..decoder }.checked(file)
}

/// Changes Llama's shape into that of GPT-OSS.
pub(super) fn shape(decoder: &mut DecoderConfig, experts: &Experts) {
    let transformer = &mut decoder.transformer;
    transformer.attention.sinks = AttentionSinks::EachHead;
    transformer.biases = Biases::ALL;
    // Whatever activation the file names, as in the reference implementation.
    transformer.activation = Activation::QuickGelu;
    transformer.glu = GluForm::Clamped { limit: experts.limit };
    for layer in &mut transformer.layers {
        layer.feed_forward = FeedForwardConfig::Experts {
            intermediate: experts.intermediate,
            count: experts.count,
            chosen: experts.chosen,
            weights: ExpertWeights::OfChosen,
            router_bias: Bias::Yes,
            form: ExpertForm::Gated,
            shared: None,
        };
    }
}

fn defaults() -> Value {
    json!({
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 128,
        "num_local_experts": 128, "num_experts_per_tok": 4, "attention_bias": true, "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0
    })
}

/// The rotary embedding of a file that names none.
fn default_rope() -> Value {
    json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096
    })
}
