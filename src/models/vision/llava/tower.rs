//! The vision tower of a LLaVA, CLIP's or SigLIP's, up to the last layer whose rows are taken.

use std::path::Path;

use model_actors::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::parse;
use crate::error::Result;
use crate::models::config_file::unsupported;
use crate::models::towers::{VisionSettings, VisionTower, clip, siglip};
use crate::models::transformer::{SafeTensors, TransformerConfig};

/// Model types of the towers in `vision_config`.
pub(super) const CLIP: &str = "clip_vision_model";
pub(super) const SIGLIP: &str = "siglip_vision_model";

/// A tower that is not loaded.
pub(super) enum TowerConfig {
    Clip(clip::VisionConfig),
    Siglip(siglip::VisionConfig),
}

impl TowerConfig {
    /// Reads a `vision_config`; one without a model type is of the type `default`.
    pub(super) fn read(file: &Path, config: &Value, default: &str) -> Result<Self> {
        match config.get("model_type").and_then(Value::as_str).unwrap_or(default) {
            CLIP => clip::VisionConfig::read(file, config).map(Self::Clip),
            SIGLIP => {
                // The head makes one vector of an image, which is not asked for, whether there is one or not.
                #[derive(Deserialize)]
                #[expect(dead_code, reason = "the setting is only checked")]
                struct Head {
                    vision_use_head: Option<bool>,
                }
                if !config.is_null() {
                    parse::<Head>(file, config)?;
                }
                siglip::VisionConfig::read(file, config).map(Self::Siglip)
            }
            other => Err(unsupported(file, "the vision tower", other, format!("{CLIP}, {SIGLIP}"))),
        }
    }

    pub(super) fn settings(&self) -> &VisionSettings {
        match self {
            Self::Clip(config) => &config.settings,
            Self::Siglip(config) => &config.settings,
        }
    }

    pub(super) fn transformer(&self) -> &TransformerConfig {
        match self {
            Self::Clip(config) => &config.transformer,
            Self::Siglip(config) => &config.transformer,
        }
    }

    /// Leaves out the blocks after the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        match self {
            Self::Clip(config) => config.transformer.layers.truncate(count),
            Self::Siglip(config) => config.transformer.layers.truncate(count),
        }
    }

    /// Number of rows of an image.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Clip(config) => config.rows(),
            Self::Siglip(config) => config.rows(),
        }
    }

    /// Bytes that a pass over an image needs besides the weights.
    pub(super) fn scratch(&self) -> Bytes {
        self.transformer().scratch(self.rows(), self.rows())
    }

    /// True for the tensor of a tower, named without the tower's prefix, that is loaded.
    pub(super) fn uses(&self, name: &str) -> bool {
        let is_after_the_blocks = ["post_layernorm", "head."].iter().any(|part| name.starts_with(part));
        match name.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.')) {
            Some((index, _)) => {
                index.parse().is_ok_and(|index: usize| index < self.transformer().layers.len())
            }
            None => !is_after_the_blocks && !name.ends_with("position_ids"),
        }
    }

    pub(super) fn load(&self, tensors: &SafeTensors<'_>) -> Result<VisionTower> {
        match self {
            Self::Clip(config) => config.load(tensors),
            Self::Siglip(config) => config.load(tensors),
        }
    }
}
