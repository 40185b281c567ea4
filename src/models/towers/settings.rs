//! The settings that the towers of CLIP and SigLIP read from `config.json`, and what is wrong with those that cannot
//! be: every number in the file may be absurd.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::StackShape;
use crate::error::{Error, Result};
use crate::families::parse;
use crate::kernels::Activation;
use crate::limits::MAX_MODEL_SIDE;

/// Largest of any number that sizes a tower; keeps products of two of them far from overflowing.
pub(crate) const MAX_SIZE: usize = 1 << 24;

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
    /// Reads the settings, where `config` does not say with these `defaults`, and checks them.
    pub(crate) fn read(file: &Path, defaults: Value, config: &Value) -> Result<Self> {
        let settings: Self = parse(file, &with_defaults(defaults, &[config]))?;
        settings.shape(file)?;
        check_image(file, settings.num_channels, settings.image_size, settings.patch_size)?;
        Ok(settings)
    }

    /// The sides of its stack, checked.
    pub(crate) fn shape(&self, file: &Path) -> Result<StackShape> {
        let shape = StackShape {
            width: self.hidden_size,
            middle: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            epsilon: self.layer_norm_eps,
            activation: activation(file, &self.hidden_act)?,
        };
        check_stack(file, &shape)?;
        Ok(shape)
    }

    /// Patches along one side.
    pub(crate) fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

impl TextSettings {
    /// Reads the settings, where `config` does not say with these `defaults`, and checks them.
    pub(crate) fn read(file: &Path, defaults: Value, config: &Value) -> Result<Self> {
        let settings: Self = parse(file, &with_defaults(defaults, &[config]))?;
        settings.shape(file)?;
        let counts = [settings.vocab_size, settings.max_position_embeddings];
        if counts.iter().any(|count| !(1..=MAX_SIZE).contains(count)) {
            let reason = format!("vocab_size and max_position_embeddings must be 1 to {MAX_SIZE}");
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        Ok(settings)
    }

    /// The sides of its stack, checked.
    pub(crate) fn shape(&self, file: &Path) -> Result<StackShape> {
        let shape = StackShape {
            width: self.hidden_size,
            middle: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            epsilon: self.layer_norm_eps,
            activation: activation(file, &self.hidden_act)?,
        };
        check_stack(file, &shape)?;
        Ok(shape)
    }
}

/// The settings of `configs` over those of `defaults`, later ones over earlier ones; a setting of `null` is none.
pub(crate) fn with_defaults(mut defaults: Value, configs: &[&Value]) -> Value {
    if let Value::Object(all) = &mut defaults {
        let given = configs.iter().filter_map(|config| config.as_object()).flatten();
        for (name, value) in given.filter(|(_, value)| !value.is_null()) {
            all.insert(name.clone(), value.clone());
        }
    }
    defaults
}

/// Refuses sides that no stack can have.
pub(crate) fn check_stack(file: &Path, shape: &StackShape) -> Result<()> {
    let StackShape { width, middle, layers, heads, .. } = *shape;
    let invalid = |reason: String| Err(Error::InvalidConfig { file: file.to_owned(), reason });
    if [width, middle, layers, heads].iter().any(|size| !(1..=MAX_SIZE).contains(size)) {
        return invalid(format!(
            "hidden_size {width}, intermediate_size {middle}, num_hidden_layers {layers} and num_attention_heads \
             {heads} must be 1 to {MAX_SIZE}"
        ));
    }
    match width.is_multiple_of(heads) {
        true => Ok(()),
        false => invalid(format!("hidden_size {width} is no multiple of num_attention_heads {heads}")),
    }
}

/// Refuses images that cannot be cut into patches.
pub(crate) fn check_image(file: &Path, channels: usize, image: usize, patch: usize) -> Result<()> {
    if channels != 3 {
        return Err(Error::UnsupportedSetting {
            file: file.to_owned(),
            what: "num_channels".into(),
            found: channels.to_string(),
            supported: "3".into(),
        });
    }
    if patch == 0 || image < patch || image > MAX_MODEL_SIDE {
        let reason = format!(
            "image_size {image} and patch_size {patch} do not fit: a patch has at least 1 pixel a side, an image at \
             least one patch and at most {MAX_MODEL_SIDE} pixels"
        );
        return Err(Error::InvalidConfig { file: file.to_owned(), reason });
    }
    Ok(())
}

/// The activation of this name.
pub(crate) fn activation(file: &Path, name: &str) -> Result<Activation> {
    Activation::from_name(name).ok_or_else(|| Error::UnsupportedSetting {
        file: file.to_owned(),
        what: "hidden_act".into(),
        found: name.to_owned(),
        supported: Activation::NAMES.into(),
    })
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
