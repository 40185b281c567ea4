//! Qwen3-Next: gated delta nets in place of attention in three of four layers, attention with output gates in the others,
//! norms whose factors are stored less 1, and Qwen2-MoE's experts. What it shares with Qwen3.5 is here.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::DecoderConfig;
use super::names::QWEN3_NEXT;
use super::qwen2_moe;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::delta_net::{DeltaNetSizes, ValueOrder};
use crate::models::config_file::{invalid, unsupported, with_defaults};
use crate::models::transformer::{Bias, Biases, HeadNorms, MixerConfig, NormKind, OutputGate};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "qwen3_next", architectures: &["Qwen3NextForCausalLM", "Qwen3NextModel"], read };

/// Settings of the gated delta nets, and of the layers that have them.
#[derive(Debug, Deserialize)]
struct Own {
    linear_conv_kernel_dim: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    #[serde(default)]
    attention_bias: bool,
    layer_types: Option<Vec<String>>,
    /// One of so many layers has attention, in files that do not list the layers.
    full_attention_interval: Option<usize>,
}

/// The names in `layer_types` of a layer with a gated delta net and of one with attention.
const DELTA_NET: &str = "linear_attention";
const ATTENTION: &str = "full_attention";

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = with_defaults(config, defaults());
    let mut decoder = shape(file, &config)?;
    qwen2_moe::add_experts(file, &config, &mut decoder)?;
    decoder.checked(file)
}

/// The decoder without experts.
pub(super) fn shape(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let own: Own = parse(file, config)?;
    let mut others = config.clone();
    if let Some(settings) = others.as_object_mut() {
        // The names of layers are other ones than those of layers with windows.
        settings.remove("layer_types");
    }
    let settings = Settings::read(file, &others, json!({}))?.partial_rotary();
    let mut decoder = settings.decoder(file, |_| false)?;
    let transformer = &mut decoder.transformer;
    transformer.norm = NormKind::RmsLessOne;
    transformer.biases = Biases::both(own.attention_bias.into(), Bias::No);
    transformer.attention.head_norms = HeadNorms::EachHead;
    transformer.attention.output_gate = OutputGate::EachHead;
    let net = MixerConfig::DeltaNet(DeltaNetSizes {
        key_heads: own.linear_num_key_heads,
        value_heads: own.linear_num_value_heads,
        order: ValueOrder::Grouped,
        key_size: own.linear_key_head_dim,
        value_size: own.linear_value_head_dim,
        taps: own.linear_conv_kernel_dim,
    });
    for (index, layer) in transformer.layers.iter_mut().enumerate() {
        if own.has_net(file, index)? {
            (layer.mixer, layer.rope) = (net, None);
        }
    }
    Ok(DecoderConfig { names: &QWEN3_NEXT, ..decoder })
}

impl Own {
    /// True if a layer has a gated delta net.
    fn has_net(&self, file: &Path, layer: usize) -> Result<bool> {
        let Some(types) = &self.layer_types else {
            let interval = self.full_attention_interval.unwrap_or(4);
            return match interval {
                0 => Err(invalid(file, "full_attention_interval is 0")),
                _ => Ok(!(layer + 1).is_multiple_of(interval)),
            };
        };
        match types.get(layer).map(String::as_str) {
            Some(DELTA_NET) => Ok(true),
            Some(ATTENTION) => Ok(false),
            other => {
                let found = other.unwrap_or("a list shorter than num_hidden_layers");
                Err(unsupported(file, "layer_types", found, "linear_attention, full_attention"))
            }
        }
    }
}

fn defaults() -> Value {
    json!({
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512, "norm_topk_prob": true,
        "decoder_sparse_step": 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn nets(settings: Value) -> Result<Vec<bool>> {
        let mut config = json!({"num_hidden_layers": 5});
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let layers = read("config.json".as_ref(), &config)?.transformer.layers;
        Ok(layers.iter().map(|layer| layer.mixer != MixerConfig::Attention).collect())
    }

    #[test]
    fn the_list_of_layers_counts_for_more_than_the_interval() {
        assert_eq!(nets(json!({})).unwrap(), [true, true, true, false, true]);
        assert_eq!(nets(json!({"full_attention_interval": 2})).unwrap(), [true, false, true, false, true]);
        let types = [ATTENTION, DELTA_NET, ATTENTION, ATTENTION, DELTA_NET];
        let listed = json!({"full_attention_interval": 2, "layer_types": types});
        assert_eq!(nets(listed).unwrap(), [false, true, false, false, true]);
    }

    #[test]
    fn nets_that_cannot_be_are_refused() {
        for settings in [
            json!({"full_attention_interval": 0}),
            json!({"linear_num_value_heads": 33}),
            json!({"linear_num_key_heads": 0}),
            json!({"linear_conv_kernel_dim": 1}),
            json!({"linear_key_head_dim": 0}),
            json!({"linear_value_head_dim": 1u64 << 40}),
        ] {
            let refused = nets(settings.clone());
            assert!(matches!(refused, Err(Error::InvalidConfig { .. })), "{settings}");
        }
        for types in [json!([DELTA_NET]), json!(vec!["sliding_attention"; 5])] {
            let refused = nets(json!({"layer_types": types}));
            assert!(matches!(refused, Err(Error::UnsupportedSetting { .. })), "{types}");
        }
    }

    /// Of Qwen3-Next-80B-A3B as it is published: 36 nets with a state of 2 MiB and three rows, and 12 layers with keys and
    /// values.
    #[test]
    fn states_are_counted_for_each_sequence_and_keys_for_each_token() {
        let decoder = read("config.json".as_ref(), &json!({})).unwrap();
        let state = 36 * 4 * (32 * 128 * 128 + 3 * 8192);
        let token = 12 * 2 * 2 * 256 * 4;
        assert_eq!(decoder.cache_bytes(0, 1).0, state);
        assert_eq!(decoder.cache_bytes(0, 7).0, 7 * state);
        assert_eq!(decoder.cache_bytes(256, 7).0, 7 * state + 256 * token);
    }
}
