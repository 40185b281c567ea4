//! Qwen2-VL: a tower with layer norms and plain networks, in which each patch sees the whole image, and the text of a
//! Qwen2 with M-RoPE. Follows `modeling_qwen2_vl.py` of transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Architecture;
use super::super::chat::part;
use super::tower::{RopeSettings, TowerConfig, TowerNames, blocks, check_patches};
use super::{Config, qwen2_5};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, with_defaults, without_nulls};
use crate::models::decoder::DecoderConfig;
use crate::models::transformer::{Bias, Names, QkvNames, Sizes, UpNames};

/// The family's entry in the list.
pub(in super::super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "qwen2_vl",
    architectures: &["Qwen2VLForConditionalGeneration"],
    read: |file, config| {
        let tower = tower(file, part(config, "vision_config"))?;
        Ok(Box::new(Config::new(file, config, tower, &qwen2_5::TEXT)?))
    },
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
        up: UpNames::Dense("fc1"),
        down: "fc2",
        ..Names::NONE
    },
    merger: ["ln_q", "mlp.0", "mlp.2"],
};

/// `vision_config`.
#[derive(Debug, Clone, Deserialize)]
struct Settings {
    depth: usize,
    embed_dim: usize,
    /// Width of the text.
    hidden_size: usize,
    hidden_act: String,
    mlp_ratio: usize,
    num_heads: usize,
    in_channels: usize,
    /// The same in the published files.
    in_chans: Option<usize>,
    patch_size: usize,
    /// The same a second time.
    spatial_patch_size: Option<usize>,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    rope_parameters: Option<RopeSettings>,
}

fn defaults() -> Value {
    json!({
        "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "hidden_act": "quick_gelu", "mlp_ratio": 4,
        "num_heads": 16, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2
    })
}

/// Reads a `vision_config`.
pub(super) fn tower(file: &Path, config: &Value) -> Result<TowerConfig> {
    let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
    let patch = settings.patch_size;
    let channels = [settings.in_channels, settings.in_chans.unwrap_or(3)];
    check_patches(file, channels, [patch, settings.spatial_patch_size.unwrap_or(patch)])?;
    let sizes = Sizes {
        width: settings.embed_dim,
        intermediate: settings.embed_dim.saturating_mul(settings.mlp_ratio),
        layers: settings.depth,
        heads: settings.num_heads,
    };
    let activation = activation(file, "hidden_act", &settings.hidden_act)?;
    TowerConfig {
        transformer: blocks(file, sizes, activation, settings.rope_parameters.as_ref())?,
        names: &NAMES,
        patch_bias: Bias::No,
        patch_size: patch,
        spatial_merge_size: settings.spatial_merge_size,
        temporal_patch_size: settings.temporal_patch_size,
        out_hidden_size: settings.hidden_size,
        learned_positions: None,
        windows: None,
        deepstack_visual_indexes: Vec::new(),
    }
    .checked(file)
}
