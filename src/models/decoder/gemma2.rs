//! Gemma 2: norms before and after each half of a layer, soft caps on scores and logits, and a window in
//! every other layer. The settings that it shares with Gemma 3 are here.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{DecoderConfig, Embeddings};
use super::names::GEMMA;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{unsupported, with_defaults};
use crate::models::transformer::{Bias, Biases, NormKind, NormPlacement};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gemma2", architectures: &["Gemma2ForCausalLM", "Gemma2Model"], read };

/// Settings of Gemma alone.
#[derive(Debug, Deserialize)]
struct Own {
    #[serde(default)]
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    use_bidirectional_attention: Option<bool>,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let settings = Settings::read(file, config, defaults())?.gemma_activation();
    // The first layer has the window, the second not, and so on.
    let base = settings.decoder(file, |layer| layer % 2 == 0)?;
    shape(file, &with_defaults(config, defaults()), base)?.checked(file)
}

/// The settings that both generations have.
pub(super) fn shape(file: &Path, config: &Value, mut decoder: DecoderConfig) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    if own.use_bidirectional_attention == Some(true) {
        return Err(unsupported(file, "use_bidirectional_attention", "true", "false"));
    }
    let transformer = &mut decoder.transformer;
    transformer.attention.scale = (1.0 / own.query_pre_attn_scalar.sqrt()) as f32;
    transformer.attention.soft_cap = own.attn_logit_softcapping;
    transformer.norm = NormKind::RmsLessOne;
    transformer.norm_placement = NormPlacement::Sandwich;
    transformer.biases = Biases::both(own.attention_bias.into(), Bias::No);
    let embeddings = Embeddings::Scaled((decoder.width() as f64).sqrt() as f32);
    Ok(DecoderConfig { embeddings, logit_cap: own.final_logit_softcapping, names: &GEMMA, ..decoder })
}

fn defaults() -> Value {
    json!({
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "eos_token_id": 1
    })
}
