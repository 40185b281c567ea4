//! Qwen2.5-VL: a tower with root-mean-square norms and gated networks, most of whose blocks attend within windows,
//! and the text of a Qwen2 with M-RoPE. Follows `modeling_qwen2_5_vl.py` of transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Architecture;
use super::super::chat::part;
use super::tower::{RopeSettings, TowerConfig, TowerNames, Windows, blocks, check_patches};
use super::{Config, TextHalf};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::transformer::{Bias, Names, NormKind, QkvNames, Sizes, UpNames};

/// The family's entry in the list.
pub(in super::super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen2_5_vl",
    architectures: &["Qwen2_5_VLForConditionalGeneration"],
    read: |file, config| {
        Ok(Box::new(Config::new(file, config, tower(file, part(config, "vision_config"))?, &TEXT)?))
    },
};

pub(super) const TEXT: TextHalf = TextHalf {
    kind: "qwen2",
    sections: [16, 24, 24],
    is_interleaved: false,
    theta: 1e6,
    defaults: || {
        json!({
            "vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 29_568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "max_window_layers": 80, "rms_norm_eps": 1e-5
        })
    },
    fixed: &[],
    names: None,
};

/// Reads the settings of a model with this text half.
pub(in super::super) fn with_text(
    file: &Path,
    config: &Value,
    text: DecoderConfig,
) -> Result<Box<dyn Architecture>> {
    let tower = tower(file, part(config, "vision_config"))?;
    Ok(Box::new(Config::with_text(file, config, tower, text)?))
}

const NAMES: TowerNames = TowerNames {
    blocks: Names {
        blocks: "blocks.",
        attention_norm: "norm1",
        qkv: QkvNames::Fused("attn.qkv"),
        out_proj: "attn.proj",
        feed_forward_norm: "norm2",
        feed_forward: "mlp.",
        up: UpNames::Separate { gate: "gate_proj", up: "up_proj" },
        down: "down_proj",
        ..Names::NONE
    },
    merger: ["ln_q", "mlp.0", "mlp.2"],
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
    /// The same in the published files.
    in_chans: Option<usize>,
    patch_size: usize,
    /// The same a second time.
    spatial_patch_size: Option<usize>,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    window_size: usize,
    fullatt_block_indexes: Vec<usize>,
    out_hidden_size: usize,
    rope_parameters: Option<RopeSettings>,
}

fn defaults() -> Value {
    json!({
        "depth": 32, "hidden_size": 3584, "hidden_act": "silu", "intermediate_size": 3420, "num_heads": 16,
        "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 3584
    })
}

/// Reads a `vision_config`.
pub(super) fn tower(file: &Path, config: &Value) -> Result<TowerConfig> {
    let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
    let patch = settings.patch_size;
    let channels = [settings.in_channels, settings.in_chans.unwrap_or(3)];
    check_patches(file, channels, [patch, settings.spatial_patch_size.unwrap_or(patch)])?;
    let sizes = Sizes {
        width: settings.hidden_size,
        intermediate: settings.intermediate_size,
        layers: settings.depth,
        heads: settings.num_heads,
    };
    let activation = activation(file, "hidden_act", &settings.hidden_act)?;
    let mut transformer = blocks(file, sizes, activation, settings.rope_parameters.as_ref())?.gated();
    transformer.norm = NormKind::Rms;
    let merged = settings.spatial_merge_size.saturating_mul(patch);
    TowerConfig {
        transformer,
        names: &NAMES,
        patch_bias: Bias::No,
        patch_size: patch,
        spatial_merge_size: settings.spatial_merge_size,
        temporal_patch_size: settings.temporal_patch_size,
        out_hidden_size: settings.out_hidden_size,
        learned_positions: None,
        windows: Some(Windows {
            side: settings.window_size.checked_div(merged).unwrap_or(0),
            full: settings.fullatt_block_indexes,
        }),
        deepstack_visual_indexes: Vec::new(),
    }
    .checked(file)
}
