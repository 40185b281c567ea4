//! The settings that the towers of CLIP and SigLIP read from `config.json`, with their checks, as every
//! number in the file may be absurd; and the tensor names that both have.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::architecture::parse;
use crate::error::Result;
use crate::limits::MAX_MODEL_SIDE;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults, without_nulls};
use crate::models::transformer::{
    Names, NormPlacement, QkvNames, Sizes, TransformerConfig, UpNames, check_side,
};

/// Names of the blocks' tensors in CLIP and SigLIP.
pub(crate) const CLIP_BLOCKS: Names = Names {
    blocks: "encoder.layers.",
    attention_norm: "layer_norm1",
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out_proj: "self_attn.out_proj",
    feed_forward_norm: "layer_norm2",
    feed_forward: "mlp.",
    up: UpNames::Dense("fc1"),
    down: "fc2",
    ..Names::NONE
};

/// The same in the files of OpenCLIP.
pub(crate) const OPEN_CLIP_BLOCKS: Names = Names {
    blocks: "transformer.resblocks.",
    attention_norm: "ln_1",
    qkv: QkvNames::Fused("attn.in_proj"),
    out_proj: "attn.out_proj",
    feed_forward_norm: "ln_2",
    feed_forward: "mlp.",
    up: UpNames::Dense("c_fc"),
    down: "c_proj",
    ..Names::NONE
};

/// `vision_config` of CLIP and SigLIP.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct VisionSettings {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_channels: usize,
    #[serde(deserialize_with = "side")]
    pub(crate) image_size: usize,
    #[serde(deserialize_with = "side")]
    pub(crate) patch_size: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
}

/// `text_config` of CLIP and SigLIP.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TextSettings {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
}

impl VisionSettings {
    /// Reads the settings, with these `defaults` for those that `config` leaves out, and checks them.
    pub(crate) fn read(file: &Path, defaults: Value, config: &Value) -> Result<Self> {
        let settings: Self = parse(file, &with_defaults(&without_nulls(config), defaults))?;
        settings.transformer(file)?;
        check_image(file, settings.num_channels, settings.image_size, settings.patch_size)?;
        Ok(settings)
    }

    /// The tower's blocks, checked.
    pub(crate) fn transformer(&self, file: &Path) -> Result<TransformerConfig> {
        let sizes = Sizes {
            width: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &self.hidden_act)?;
        TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, self.layer_norm_eps)
    }

    /// Number of patches along a side.
    pub(crate) fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

impl TextSettings {
    /// Reads the settings, with these `defaults` for those that `config` leaves out, and checks them.
    pub(crate) fn read(file: &Path, defaults: Value, config: &Value) -> Result<Self> {
        let settings: Self = parse(file, &with_defaults(&without_nulls(config), defaults))?;
        settings.transformer(file)?;
        check_side(file, "vocab_size", settings.vocab_size)?;
        check_side(file, "max_position_embeddings", settings.max_position_embeddings)?;
        Ok(settings)
    }

    /// The tower's blocks, checked.
    pub(crate) fn transformer(&self, file: &Path) -> Result<TransformerConfig> {
        let sizes = Sizes {
            width: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &self.hidden_act)?;
        TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, self.layer_norm_eps)
    }
}

/// Refuses images that cannot be cut into patches.
pub(crate) fn check_image(file: &Path, channels: usize, image: usize, patch: usize) -> Result<()> {
    if channels != 3 {
        return Err(unsupported(file, "num_channels", &channels.to_string(), "3"));
    }
    if patch == 0 || image < patch || image > MAX_MODEL_SIDE {
        let reason = format!(
            "image_size {image} and patch_size {patch} do not fit: a patch has at least 1 pixel a side, an image at \
             least one patch and at most {MAX_MODEL_SIDE} pixels"
        );
        return Err(invalid(file, reason));
    }
    Ok(())
}

/// One number, or two that are the same.
pub(crate) fn side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Side {
        One(usize),
        Two([usize; 2]),
    }
    match Side::deserialize(deserializer) {
        Ok(Side::One(side)) => Ok(side),
        Ok(Side::Two([height, width])) if height == width => Ok(height),
        _ => Err(serde::de::Error::custom(
            "image_size and patch_size must be a whole number, or two of the same",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: Value) -> Result<VisionSettings> {
        let defaults = json!({
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_channels": 3, "image_size": 30, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-5
        });
        VisionSettings::read(Path::new("config.json"), defaults, &change)
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        assert_eq!(read(json!({"patch_size": [8, 8], "hidden_act": null})).unwrap().grid(), 3);
        for change in [
            json!({"patch_size": 0}),
            json!({"patch_size": 31}),
            json!({"patch_size": [8, 4]}),
            json!({"image_size": 1_000_000_000}),
            json!({"num_attention_heads": 0}),
            json!({"num_attention_heads": 5}),
            json!({"hidden_size": 0}),
            json!({"hidden_size": u64::MAX}),
            json!({"num_hidden_layers": u64::MAX}),
            json!({"num_channels": 1}),
            json!({"hidden_act": "swishy"}),
            json!({"hidden_size": -1}),
        ] {
            assert!(read(change.clone()).is_err(), "{change}");
        }
    }
}
