//! Gemma 3n: Gemma's norms and windows with four residual streams, of which each layer works on one, inputs of the layers'
//! own for each token, networks of which the first ones are sparse, and keys and values that the last layers share. Models
//! that see and hear have the text's settings one level down.

use std::f64::consts::SQRT_2;
use std::path::Path;

use candle_core::cpu::erf::erf_inv;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{DecoderConfig, Embeddings};
use super::names::{DecoderNames, GEMMA3N};
use super::settings::{SLIDING, Settings};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::kernels::glu::GluForm;
use crate::models::config_file::{invalid, unsupported, with_defaults};
use crate::models::transformer::{
    Bias, Biases, FeedForwardConfig, HeadNorms, LayerConfig, NormPlacement, StreamsConfig, ValueNorm,
};

/// The text models' entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "gemma3n_text", architectures: &["Gemma3nForCausalLM", "Gemma3nTextModel"], read };

/// The entry of the models that see and hear, of which this is the text half.
pub(super) const WITH_IMAGES: Family<DecoderConfig> = Family {
    model_type: "gemma3n",
    architectures: &["Gemma3nForConditionalGeneration", "Gemma3nModel"],
    read: |file, config| match config.get("text_config") {
        Some(text) => Ok(DecoderConfig { names: &NAMES_WITH_IMAGES, ..read(file, text)? }),
        None => Err(invalid(file, "it has no text_config")),
    },
};

/// The same names beside those of the towers, which a text does not need.
const NAMES_WITH_IMAGES: DecoderNames = DecoderNames {
    no_effect: &["model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."],
    ..GEMMA3N
};

/// Settings of Gemma 3n alone.
#[derive(Debug, Deserialize)]
struct Own {
    intermediate_size: OfLayers,
    sliding_window: usize,
    num_kv_shared_layers: usize,
    /// Share of each layer's gates that are 0.
    activation_sparsity_pattern: Option<Vec<f64>>,
    hidden_size_per_layer_input: usize,
    vocab_size_per_layer_input: usize,
    altup_num_inputs: usize,
    altup_active_idx: usize,
    altup_correct_scale: bool,
    laurel_rank: usize,
    final_logit_softcapping: Option<f32>,
    #[serde(default)]
    attention_bias: bool,
    /// The base of the rotary embedding in layers with a window, in files before transformers 5.
    rope_local_base_freq: Option<f64>,
}

/// One width for all layers, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OfLayers {
    All(usize),
    Each(Vec<usize>),
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let mut config = with_defaults(config, defaults());
    let own: Own = parse(file, &config)?;
    if !own.altup_correct_scale {
        return Err(unsupported(file, "altup_correct_scale", "false", "true"));
    }
    if let (OfLayers::Each(widths), Some(settings)) = (&own.intermediate_size, config.as_object_mut()) {
        let first = widths.first().copied().unwrap_or_default();
        settings.insert("intermediate_size".to_owned(), json!(first));
    }
    let settings = Settings::read(file, &config, json!({}))?.gemma_activation();
    let mut decoder = settings.decoder(file, |layer| !(layer + 1).is_multiple_of(5))?;
    let embeddings = Embeddings::Scaled((decoder.width() as f64).sqrt() as f32);
    let transformer = &mut decoder.transformer;
    transformer.norm_placement = NormPlacement::Sandwich;
    transformer.biases = Biases::both(own.attention_bias.into(), Bias::No);
    transformer.attention.scale = 1.0;
    transformer.attention.head_norms = HeadNorms::EachHead;
    transformer.attention.value_norm = ValueNorm::EachHead;
    transformer.streams = Some(StreamsConfig {
        count: own.altup_num_inputs,
        active: own.altup_active_idx,
        laurel_rank: own.laurel_rank,
        input_size: own.hidden_size_per_layer_input,
        table: own.vocab_size_per_layer_input,
    });
    let full = settings.rope.parameters(file, Some("full_attention"))?;
    let mut sliding = settings.rope.own_parameters(file, SLIDING)?;
    sliding.rope_theta = sliding.rope_theta.or(own.rope_local_base_freq);
    transformer.ropes = vec![
        full.rope(file, settings.rope_shape(1_000_000.0))?,
        sliding.rope(file, settings.rope_shape(10_000.0))?,
    ];
    own.apply(file, &mut transformer.layers)?;
    let logit_cap = own.final_logit_softcapping;
    DecoderConfig { embeddings, logit_cap, names: &GEMMA3N, ..decoder }.checked(file)
}

impl Own {
    /// Sets what is each layer's own.
    fn apply(&self, file: &Path, layers: &mut [LayerConfig]) -> Result<()> {
        let count = layers.len();
        let listed = |name: &str, length: usize| match length == count {
            true => Ok(()),
            false => Err(invalid(file, format!("{name} has {length} entries for {count} layers"))),
        };
        if self.sliding_window == 0 {
            return Err(invalid(file, "sliding_window is 0"));
        }
        let widths = match &self.intermediate_size {
            OfLayers::All(width) => vec![*width; count],
            OfLayers::Each(widths) => widths.clone(),
        };
        listed("intermediate_size", widths.len())?;
        for (layer, intermediate) in layers.iter_mut().zip(widths) {
            layer.feed_forward = FeedForwardConfig::Gated { intermediate };
        }
        let sparsity = match &self.activation_sparsity_pattern {
            Some(pattern) => pattern.clone(),
            None => (0..count).map(|layer| if count > 10 && layer < 10 { 0.95 } else { 0.0 }).collect(),
        };
        listed("activation_sparsity_pattern", sparsity.len())?;
        for (layer, share) in layers.iter_mut().zip(sparsity) {
            if share.is_nan() || share >= 1.0 {
                return Err(invalid(file, format!("activation_sparsity_pattern has {share}")));
            }
            if share > 0.0 {
                layer.glu = Some(GluForm::Sparse { deviations: deviations(share) });
            }
        }
        let Some(own) = count.checked_sub(self.num_kv_shared_layers) else {
            return Err(invalid(file, "num_kv_shared_layers is more than num_hidden_layers"));
        };
        for index in 0..count {
            let mask = layers[index].mask;
            layers[index].rope = Some(usize::from(mask != AttentionMask::Causal));
            if index < own {
                continue;
            }
            let Some(last) = layers[..own].iter().rposition(|layer| layer.mask == mask) else {
                let reason =
                    "num_kv_shared_layers leaves no layer of a kind that has keys and values of its own";
                return Err(invalid(file, reason));
            };
            layers[index].key_values_of = Some(last);
        }
        Ok(())
    }
}

/// Number of standard deviations above the mean below which a normally distributed number is with this probability.
fn deviations(probability: f64) -> f32 {
    (SQRT_2 * erf_inv(2.0 * probability - 1.0)) as f32
}

fn defaults() -> Value {
    json!({
        "vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "sliding_window": 512, "final_logit_softcapping": 30.0, "eos_token_id": 1, "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256, "altup_active_idx": 0, "altup_correct_scale": true, "altup_num_inputs": 4,
        "num_kv_shared_layers": 15, "laurel_rank": 64
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const FILE: &str = "config.json";

    /// As published: of 35 layers the last 15 see the keys and values of two, and the first ten are sparse.
    #[test]
    fn the_last_layers_share_the_keys_of_the_last_layer_of_their_kind_before() {
        let decoder = read(FILE.as_ref(), &json!({})).unwrap();
        let layers = &decoder.transformer.layers;
        assert!(layers[..20].iter().all(|layer| layer.key_values_of.is_none()));
        for (index, layer) in layers.iter().enumerate().skip(20) {
            assert_eq!(layer.key_values_of, Some(if (index + 1) % 5 == 0 { 19 } else { 18 }));
        }
        assert_eq!(layers.iter().filter(|layer| layer.glu.is_some()).count(), 10);
        let token = 20 * 2 * 2 * 256 * 4;
        assert_eq!(decoder.cache_bytes(256, 3).0, 256 * token);
        // The inverse of the normal distribution, by torch.
        assert!((deviations(0.95) - 1.644_853_6).abs() < 1e-6 && deviations(0.5) == 0.0);
    }

    /// Published files have keys and values of the layers that share others' all the same.
    #[test]
    fn tensors_that_the_text_does_not_need_have_no_effect() {
        let decoder = (WITH_IMAGES.read)(FILE.as_ref(), &json!({"text_config": {}})).unwrap();
        let has_no_effect = |name: &str| decoder.has_no_effect(&format!("model.{name}.weight"));
        for name in ["k_proj", "v_proj", "k_norm"] {
            assert!(has_no_effect(&format!("language_model.layers.34.self_attn.{name}")));
            assert!(!has_no_effect(&format!("language_model.layers.19.self_attn.{name}")));
        }
        assert!(!has_no_effect("language_model.layers.34.self_attn.q_proj"));
        assert!(has_no_effect("audio_tower.conformer.0.norm") && has_no_effect("embed_vision.embedding"));
    }

    #[test]
    fn layers_that_cannot_be_are_refused() {
        for settings in [
            json!({"num_kv_shared_layers": 36}),
            json!({"num_kv_shared_layers": 35}),
            json!({"num_kv_shared_layers": 31}),
            json!({"intermediate_size": [16384, 16384]}),
            json!({"intermediate_size": []}),
            json!({"activation_sparsity_pattern": [0.95]}),
            json!({"num_hidden_layers": 1, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [1.0]}),
            json!({"altup_num_inputs": 1}),
            json!({"altup_active_idx": 4}),
            json!({"laurel_rank": 0}),
            json!({"hidden_size_per_layer_input": 0}),
            json!({"hidden_size_per_layer_input": 1u64 << 40}),
            json!({"sliding_window": 0}),
        ] {
            let refused = read(FILE.as_ref(), &settings);
            assert!(matches!(refused, Err(Error::InvalidConfig { .. })), "{settings}");
        }
        let refused = read(FILE.as_ref(), &json!({"altup_correct_scale": false}));
        assert!(matches!(refused, Err(Error::UnsupportedSetting { .. })));
    }
}
