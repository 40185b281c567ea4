//! The first Gemma: Llama's shape with scaled embeddings, factors of norms that the file has less 1, and GELU as gate.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{DecoderConfig, Embeddings};
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{activation, unsupported, with_defaults};
use crate::models::transformer::{Bias, Biases, NormKind};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gemma", architectures: &["GemmaForCausalLM", "GemmaModel"], read };

/// Settings of Gemma alone.
#[derive(Debug, Deserialize)]
struct Own {
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    use_bidirectional_attention: Option<bool>,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = with_defaults(config, defaults());
    let own: Own = parse(file, &config)?;
    if own.use_bidirectional_attention == Some(true) {
        return Err(unsupported(file, "use_bidirectional_attention", "true", "false"));
    }
    let mut decoder =
        Settings::read(file, &config, defaults())?.window_of_family().decoder(file, |_| false)?;
    let transformer = &mut decoder.transformer;
    // The first files say "gelu" and mean its approximation, as does one that says nothing.
    transformer.activation = match own.hidden_act.as_deref() {
        None | Some("gelu") => Activation::GeluTanh,
        Some(name) => activation(file, "hidden_act", name)?,
    };
    transformer.norm = NormKind::RmsLessOne;
    transformer.biases = Biases::both(own.attention_bias.into(), Bias::No);
    let embeddings = Embeddings::Scaled((decoder.width() as f64).sqrt() as f32);
    DecoderConfig { embeddings, ..decoder }.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "eos_token_id": 1
    })
}
