//! CLIP: images and texts in one space. `get_image_features` and `get_text_features` of `CLIPModel` in
//! transformers.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::{Architecture, Encoder, Padding, TextSide, Watch};
use crate::architecture::Family;
use crate::error::{Error, Result};
use crate::models::towers::VisionTower;
use crate::models::towers::clip::{ClipText, Projection, TextConfig, VisionConfig};
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "clip",
    architectures: &["CLIPModel"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

/// Longest vector.
const MAX_DIMENSIONS: u64 = 1 << 20;

struct Config {
    vision: VisionConfig,
    text: TextConfig,
    dimensions: usize,
}

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        // Old files have the settings a second time under a name with `_dict`, and transformers takes that then.
        let part = |name: &str| {
            let old = config.get(format!("{name}_dict")).filter(|value| !value.is_null());
            old.or(config.get(name)).cloned().unwrap_or_default()
        };
        let dimensions =
            match config.get("projection_dim").filter(|value| !value.is_null()).map(Value::as_u64) {
                None => 512,
                Some(Some(dimensions @ 1..=MAX_DIMENSIONS)) => dimensions as usize,
                Some(_) => {
                    let reason = format!("projection_dim must be 1 to {MAX_DIMENSIONS}");
                    return Err(Error::InvalidConfig { file: file.to_owned(), reason });
                }
            };
        Ok(Self {
            vision: VisionConfig::read(file, &part("vision_config"))?,
            text: TextConfig::read(file, &part("text_config"))?,
            dimensions,
        })
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn processor(&self) -> Processor {
        Processor::Clip
    }

    fn side(&self) -> Option<usize> {
        Some(self.vision.settings.image_size)
    }

    fn patch(&self) -> usize {
        self.vision.settings.patch_size
    }

    fn rows(&self, _: usize, _: usize) -> usize {
        self.vision.rows()
    }

    fn texts(&self) -> Option<TextSide> {
        Some(TextSide {
            vocabulary: self.text.tower.vocabulary,
            longest: self.text.tower.context,
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
        let texts = self.text.tower.transformer.scratch(rows, longest);
        self.vision.transformer.scratch(rows, longest).max(texts)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let reader = weights.reader("", device, context);
        let images = SafeTensors::new(&reader, "vision_model.", self.vision.transformer.workload);
        Ok(Arc::new(Clip {
            vision: self.vision.load(&images)?,
            norm: self.vision.load_last_norm(&images)?,
            image_projection: Projection::load(
                &reader,
                "visual_projection",
                self.dimensions,
                self.vision.transformer.width,
            )?,
            text: self.text.load(&reader, "text_model.")?,
            text_projection: Projection::load(
                &reader,
                "text_projection",
                self.dimensions,
                self.text.tower.transformer.width,
            )?,
        }))
    }
}

struct Clip {
    vision: VisionTower,
    /// Norm of the class token after the last block.
    norm: Norm,
    image_projection: Projection,
    text: ClipText,
    text_projection: Projection,
}

impl Encoder for Clip {
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        let classes = self.vision.forward(images, watch)?.first()?;
        self.image_projection.forward(&self.norm.forward(&classes)?)
    }

    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let hidden = self.text.tower.encode(ids, lengths, || Ok(()))?;
        self.text_projection.forward(&self.text.pool(&hidden, ids, lengths)?)
    }
}
