//! Qwen3-VL: learned positions beside the rotated ones, and features of some of the tower's layers that are added
//! after the decoder's first ones (DeepStack). The text is a Qwen3 or its mixture of experts, with interleaved
//! M-RoPE. Follows `modeling_qwen3_vl.py` of transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Architecture;
use super::super::chat::part;
use super::tower::{RopeSettings, TowerConfig, TowerNames, blocks};
use super::{Config, TextHalf};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, unsupported, with_defaults, without_nulls};
use crate::models::decoder::QWEN3_VL_MOE;
use crate::models::transformer::{Bias, Names, QkvNames, Sizes, UpNames};

/// The family's entry in the list.
pub(in super::super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen3_vl",
    architectures: &["Qwen3VLForConditionalGeneration"],
    read: |file, config| {
        Ok(Box::new(Config::new(file, config, tower(file, part(config, "vision_config"))?, &TEXT)?))
    },
};

/// The entry of the versions with a mixture of experts.
pub(in super::super) const MOE_FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen3_vl_moe",
    architectures: &["Qwen3VLMoeForConditionalGeneration"],
    read: |file, config| {
        let text = TextHalf {
            kind: "qwen3_moe",
            defaults: || {
                json!({
                    "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16,
                    "max_position_embeddings": 128_000, "moe_intermediate_size": 1408, "num_experts_per_tok": 4
                })
            },
            // The reference has the chosen experts' weights add up to 1, whatever the file says.
            fixed: &[("norm_topk_prob", true)],
            names: Some(&QWEN3_VL_MOE),
            ..TEXT
        };
        Ok(Box::new(Config::new(file, config, tower(file, part(config, "vision_config"))?, &text)?))
    },
};

const TEXT: TextHalf = TextHalf {
    kind: "qwen3",
    sections: [24, 20, 20],
    is_interleaved: true,
    theta: 5e5,
    defaults: || json!({"max_position_embeddings": 128_000}),
    fixed: &[],
    names: None,
};

const NAMES: TowerNames = TowerNames {
    blocks: Names {
        blocks: "blocks.",
        attention_norm: "norm1",
        qkv: QkvNames::Fused("attn.qkv"),
        out_proj: "attn.proj",
        feed_forward_norm: "norm2",
        feed_forward: "mlp.",
        up: UpNames::Dense("linear_fc1"),
        down: "linear_fc2",
        ..Names::NONE
    },
    merger: ["norm", "linear_fc1", "linear_fc2"],
};

/// `vision_config`.
#[derive(Debug, Clone, Deserialize)]
struct Settings {
    depth: usize,
    hidden_size: usize,
    hidden_act: String,
    intermediate_size: usize,
    num_heads: usize,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    out_hidden_size: usize,
    num_position_embeddings: usize,
    deepstack_visual_indexes: Vec<usize>,
    rope_parameters: Option<RopeSettings>,
}

fn defaults() -> Value {
    json!({
        "depth": 27, "hidden_size": 1152, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 4304,
        "num_heads": 16, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": 3584, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]
    })
}

/// Reads a `vision_config`.
pub(super) fn tower(file: &Path, config: &Value) -> Result<TowerConfig> {
    let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
    if settings.in_channels != 3 {
        return Err(unsupported(file, "in_channels", &settings.in_channels.to_string(), "3"));
    }
    let sizes = Sizes {
        width: settings.hidden_size,
        intermediate: settings.intermediate_size,
        layers: settings.depth,
        heads: settings.num_heads,
    };
    let activation = activation(file, "hidden_act", &settings.hidden_act)?;
    TowerConfig {
        transformer: blocks(file, sizes, activation, settings.rope_parameters.as_ref())?,
        names: &NAMES,
        patch_bias: Bias::Yes,
        patch_size: settings.patch_size,
        spatial_merge_size: settings.spatial_merge_size,
        temporal_patch_size: settings.temporal_patch_size,
        out_hidden_size: settings.out_hidden_size,
        learned_positions: Some(settings.num_position_embeddings),
        windows: None,
        deepstack_visual_indexes: settings.deepstack_visual_indexes,
    }
    .checked(file)
}
