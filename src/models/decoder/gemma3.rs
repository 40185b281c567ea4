//! Gemma 3: Gemma 2 with norms on queries and keys in place of the soft caps, five layers with a window to
//! each without, and a rotary embedding for either kind. Models that see images have the text's settings one
//! level down.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::gemma2;
use super::names::{DecoderNames, GEMMA};
use super::settings::{SLIDING, Settings};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::models::config_file::{invalid, with_defaults};
use crate::models::transformer::HeadNorms;

/// The text models' entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gemma3_text", architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"], read };

/// The entry of the models that see images, of which this is the text half.
pub(super) const WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "gemma3",
    architectures: &["Gemma3ForConditionalGeneration", "Gemma3Model"],
    read: |file, config| match config.get("text_config") {
        // The reference implementation caps the logits of the text models alone.
        Some(text) => Ok(DecoderConfig { names: &NAMES_WITH_IMAGES, logit_cap: None, ..read(file, text)? }),
        None => Err(invalid(file, "it has no text_config")),
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
    ..GEMMA
};

/// Settings of Gemma 3 alone.
#[derive(Debug, Deserialize)]
struct Own {
    /// One of so many layers has no window.
    #[serde(default = "pattern")]
    sliding_window_pattern: usize,
    /// The base of the rotary embedding in layers with a window, in files before transformers 5. That of the
    /// layers' own parameters counts for more.
    rope_local_base_freq: Option<f64>,
}

fn pattern() -> usize {
    6
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    let settings = Settings::read(file, config, defaults())?.gemma_activation();
    let pattern = own.sliding_window_pattern.max(1);
    let base = settings.decoder(file, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let mut decoder = gemma2::shape(file, &with_defaults(config, defaults()), base)?;
    decoder.transformer.attention.head_norms = HeadNorms::EachHead;
    // The reference implementation takes the soft cap of attention from the file, and does not apply it.
    decoder.transformer.attention.soft_cap = None;

    let full = settings.rope.parameters(file, Some("full_attention"))?;
    // Older files name one set of parameters, and the layers with a window have none of them but a base of their own.
    let mut sliding = settings.rope.own_parameters(file, SLIDING)?;
    sliding.rope_theta = sliding.rope_theta.or(own.rope_local_base_freq);
    decoder.transformer.ropes = vec![
        full.rope(file, settings.rope_shape(1_000_000.0))?,
        sliding.rope(file, settings.rope_shape(10_000.0))?,
    ];
    for layer in &mut decoder.transformer.layers {
        layer.rope = Some(usize::from(layer.mask != AttentionMask::Causal));
    }
    decoder.checked(file)
}

fn defaults() -> Value {
    json!({
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "eos_token_id": 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "config.json";

    /// The base of the layers with a window, from the angle of their second pair of heads of 256 numbers.
    fn sliding_base(config: Value) -> f64 {
        let decoder = read(FILE.as_ref(), &config).unwrap();
        let step = f64::from(decoder.transformer.ropes[1].frequencies.inverse_frequencies[1]);
        step.powf(-128.0)
    }

    /// As `Gemma3TextConfig` of transformers has them in `rope_parameters["sliding_attention"]`.
    #[test]
    fn layers_with_a_window_never_have_the_base_of_the_others() {
        let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6});
        let cases = [
            (json!({}), 1e4),
            (json!({"rope_theta": 5e5}), 1e4),
            (json!({"rope_theta": 5e5, "rope_local_base_freq": 2e4}), 2e4),
            (json!({"rope_theta": 5e5, "rope_parameters": {"full_attention": full}}), 1e4),
            (json!({"rope_local_base_freq": 2e4, "rope_parameters": {"full_attention": full}}), 2e4),
            (
                json!({"rope_theta": 5e5, "rope_parameters": {
                    "full_attention": full, "sliding_attention": {"rope_type": "default"}
                }}),
                1e4,
            ),
            (
                json!({"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_parameters": {
                    "full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 7e4}
                }}),
                7e4,
            ),
            (
                json!({"rope_theta": 5e5, "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 7e4}
                }}),
                7e4,
            ),
        ];
        for (config, wanted) in cases {
            let base = sliding_base(config.clone());
            assert!((base / wanted - 1.0).abs() < 1e-3, "{config}: {base}");
        }
    }

    #[test]
    fn only_the_text_models_cap_their_logits() {
        let text = json!({"final_logit_softcapping": 30.0});
        assert_eq!((FAMILY.read)(FILE.as_ref(), &text).unwrap().logit_cap, Some(30.0));
        let with_images = json!({"text_config": text});
        assert_eq!((WITH_IMAGES.read)(FILE.as_ref(), &with_images).unwrap().logit_cap, None);
    }
}
