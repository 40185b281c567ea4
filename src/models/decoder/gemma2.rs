//! Gemma 2: norms before and after each half of a layer, soft caps on scores and logits, and a window in every other
//! layer. What it shares with Gemma 3 is here.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{Bias, Biases, DecoderConfig, NormWeight, Norms};
use super::settings::{Settings, with_defaults};
use crate::error::{Error, Result};
use crate::families::{Family, parse};

/// This family's line in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gemma2", architectures: &["Gemma2ForCausalLM", "Gemma2Model"], read };

/// What is Gemma's own in `config.json`.
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
    let settings = Settings::read(file, config, defaults())?;
    // The first layer has the window, the second not, and so on.
    let base = settings.decoder(file, |layer| layer % 2 == 0)?;
    shape(file, &with_defaults(config, defaults()), base)?.checked(file)
}

/// What both generations have.
pub(super) fn shape(file: &Path, config: &Value, base: DecoderConfig) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    if own.use_bidirectional_attention == Some(true) {
        return Err(Error::UnsupportedSetting {
            file: file.to_owned(),
            what: "use_bidirectional_attention".into(),
            found: "true".to_owned(),
            supported: "false".into(),
        });
    }
    let bias = Bias::from(own.attention_bias);
    Ok(DecoderConfig {
        attention_scale: (1.0 / own.query_pre_attn_scalar.sqrt()) as f32,
        attention_cap: own.attn_logit_softcapping,
        logit_cap: own.final_logit_softcapping,
        embedding_scale: Some((base.width as f64).sqrt() as f32),
        norm_weight: NormWeight::AboveOne,
        norms: Norms::Around,
        biases: Biases { query_key_value: bias, attended: bias, feed_forward: Bias::No },
        ..base
    })
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
