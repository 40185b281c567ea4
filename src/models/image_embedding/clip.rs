//! CLIP: images and texts in one space. `get_image_features` and `get_text_features` of `CLIPModel` in
//! transformers, and one tower alone with its projection: `image_embeds` of `CLIPVisionModelWithProjection` and
//! `text_embeds` of `CLIPTextModelWithProjection`.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::{
    Architecture, Encoder, ImageSide, ImageSize, Padding, TextSide, Watch, without_image_side,
    without_text_side,
};
use crate::architecture::Family;
use crate::error::{Error, Result};
use crate::models::towers::VisionTower;
use crate::models::towers::clip::{ClipText, Projection, TextConfig, VisionConfig};
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::Processor;
use crate::weights::{WeightFiles, WeightReader};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "clip",
    architectures: &["CLIPModel"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

/// The entry of the vision tower alone.
pub(super) const FAMILY_OF_IMAGES: Family<Box<dyn Architecture>> = Family {
    model_type: "clip_vision_model",
    architectures: &["CLIPVisionModelWithProjection"],
    read: |file, config| {
        let vision = Some(VisionConfig::read(file, config)?);
        Ok(Box::new(Config { vision, text: None, dimensions: dimensions(file, config)? }))
    },
};

/// The entry of the text tower alone.
pub(super) const FAMILY_OF_TEXTS: Family<Box<dyn Architecture>> = Family {
    model_type: "clip_text_model",
    architectures: &["CLIPTextModelWithProjection"],
    read: |file, config| {
        let text = Some(TextConfig::read(file, config)?);
        Ok(Box::new(Config { vision: None, text, dimensions: dimensions(file, config)? }))
    },
};

/// Longest vector.
const MAX_DIMENSIONS: u64 = 1 << 20;

/// The towers that a model has.
struct Config {
    vision: Option<VisionConfig>,
    text: Option<TextConfig>,
    dimensions: usize,
}

impl Config {
    /// Reads the configuration of both towers.
    fn read(file: &Path, config: &Value) -> Result<Self> {
        // Old files have the settings a second time under a name with `_dict`, and transformers takes that then.
        let part = |name: &str| {
            let old = config.get(format!("{name}_dict")).filter(|value| !value.is_null());
            old.or(config.get(name)).cloned().unwrap_or_default()
        };
        let dimensions = dimensions(file, config)?;
        let vision = Some(VisionConfig::read(file, &part("vision_config"))?);
        Ok(Self { vision, text: Some(TextConfig::read(file, &part("text_config"))?), dimensions })
    }
}

/// The length of a vector.
fn dimensions(file: &Path, config: &Value) -> Result<usize> {
    match config.get("projection_dim").filter(|value| !value.is_null()).map(Value::as_u64) {
        None => Ok(512),
        Some(Some(dimensions @ 1..=MAX_DIMENSIONS)) => Ok(dimensions as usize),
        Some(_) => {
            let reason = format!("projection_dim must be 1 to {MAX_DIMENSIONS}");
            Err(Error::InvalidConfig { file: file.to_owned(), reason })
        }
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn images(&self) -> Option<ImageSide> {
        self.vision.as_ref().map(|vision| ImageSide {
            processor: Processor::Clip,
            size: ImageSize::Square(vision.settings.image_size),
            patch: vision.settings.patch_size,
            leading: 1,
        })
    }

    fn texts(&self) -> Option<TextSide> {
        self.text.as_ref().map(|text| TextSide {
            vocabulary: text.tower.vocabulary,
            longest: text.tower.context,
            padding: Padding::None,
        })
    }

    fn uses(&self, tensor: &str) -> bool {
        tensor != "logit_scale" && !tensor.ends_with("position_ids")
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        !self.uses(tensor)
    }

    fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let vision = self.vision.as_ref().map(|vision| vision.transformer.scratch(rows, longest));
        let texts = self.text.as_ref().map(|text| text.tower.transformer.scratch(rows, longest));
        vision.max(texts).unwrap_or_default()
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let reader = weights.reader("", device, context);
        let vision = self.vision.as_ref().map(|vision| Images::load(vision, &reader, self.dimensions));
        let text = self.text.as_ref().map(|text| Texts::load(text, &reader, self.dimensions));
        Ok(Arc::new(Clip { images: vision.transpose()?, texts: text.transpose()? }))
    }
}

/// The towers of a loaded model.
struct Clip {
    images: Option<Images>,
    texts: Option<Texts>,
}

/// The vision tower and its projection.
struct Images {
    tower: VisionTower,
    /// Norm of the class token after the last block.
    norm: Norm,
    projection: Projection,
}

impl Images {
    fn load(config: &VisionConfig, reader: &WeightReader<'_>, dimensions: usize) -> Result<Self> {
        let tensors = SafeTensors::new(reader, "vision_model.", config.transformer.workload);
        let width = config.transformer.width;
        Ok(Self {
            tower: config.load(&tensors)?,
            norm: config.load_last_norm(&tensors)?,
            projection: Projection::load(reader, "visual_projection", dimensions, width)?,
        })
    }
}

/// The text tower and its projection.
struct Texts {
    text: ClipText,
    projection: Projection,
}

impl Texts {
    fn load(config: &TextConfig, reader: &WeightReader<'_>, dimensions: usize) -> Result<Self> {
        let width = config.tower.transformer.width;
        Ok(Self {
            text: config.load(reader, "text_model.")?,
            projection: Projection::load(reader, "text_projection", dimensions, width)?,
        })
    }
}

impl Encoder for Clip {
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        let Images { tower, norm, projection } = self.images.as_ref().ok_or_else(without_image_side)?;
        projection.forward(&norm.forward(&tower.forward(images, watch)?.first()?)?)
    }

    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let Texts { text, projection } = self.texts.as_ref().ok_or_else(without_text_side)?;
        let hidden = text.tower.encode(ids, lengths, || Ok(()))?;
        projection.forward(&text.pool(&hidden, ids, lengths)?)
    }
}
