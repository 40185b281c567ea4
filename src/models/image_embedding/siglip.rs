//! SigLIP, and SigLIP 2 in its variants with images of one size, which are published as the same
//! architecture, and its NaFlex variant: images and texts in one space. `get_image_features` and
//! `get_text_features` of `SiglipModel` and `Siglip2Model` in transformers, with texts padded to the longest, as the
//! models were trained and as their documentation asks for. Images of the NaFlex variant need no padding here.
//!
//! SigLIP 2 was trained on texts in lower case. `Siglip2Tokenizer` makes them so, and is taken for the NaFlex variant
//! whatever class its files name; where those of a fixed size name Gemma's class, the case stays as it is. So it is in
//! transformers.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::{Architecture, Encoder, ImageSide, ImageSize, Padding, TextSide, Watch};
use crate::architecture::Family;
use crate::error::{Error, Result};
use crate::models::towers::siglip::{ProbeHead, SiglipText, TextConfig, Variant, VisionConfig};
use crate::models::towers::{VisionSettings, VisionTower};
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "siglip",
    architectures: &["SiglipModel"],
    read: |file, config| Ok(Box::new(Config::read(file, config, VisionConfig::read)?)),
};

/// The entry of the NaFlex variant of SigLIP 2.
pub(super) const FAMILY_NAFLEX: Family<Box<dyn Architecture>> = Family {
    model_type: "siglip2",
    architectures: &["Siglip2Model"],
    read: |file, config| Ok(Box::new(Config::read(file, config, VisionConfig::read_naflex)?)),
};

struct Config {
    vision: VisionConfig,
    text: TextConfig,
}

impl Config {
    fn read(
        file: &Path,
        config: &Value,
        read_vision: fn(&Path, &Value) -> Result<VisionConfig>,
    ) -> Result<Self> {
        let part = |name: &str| config.get(name).cloned().unwrap_or_default();
        let vision = part("vision_config");
        if vision.get("vision_use_head") == Some(&Value::Bool(false)) {
            return Err(Error::UnsupportedSetting {
                file: file.to_owned(),
                what: "vision_use_head".into(),
                found: "false".to_owned(),
                supported: "true".into(),
            });
        }
        let config =
            Self { vision: read_vision(file, &vision)?, text: TextConfig::read(file, &part("text_config"))? };
        if config.text.projection != config.vision.transformer.width {
            let reason = format!(
                "texts become vectors of {} numbers and images of {}; they must be the same",
                config.text.projection, config.vision.transformer.width
            );
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        Ok(config)
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.vision.transformer.width
    }

    fn images(&self) -> Option<ImageSide> {
        let VisionSettings { image_size, patch_size, .. } = self.vision.settings;
        let (processor, size) = match self.vision.variant {
            Variant::Fixed => (Processor::Siglip, ImageSize::Square(image_size)),
            Variant::NaFlex => (Processor::Siglip2, ImageSize::WholePatches),
        };
        Some(ImageSide { processor, size, patch: patch_size, leading: 0 })
    }

    fn texts(&self) -> Option<TextSide> {
        Some(TextSide {
            vocabulary: self.text.tower.vocabulary,
            longest: self.text.tower.context,
            padding: Padding::ToLongest,
        })
    }

    fn uses(&self, tensor: &str) -> bool {
        !tensor.starts_with("logit_") && !tensor.ends_with("position_ids")
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
        let tensors = SafeTensors::new(&reader, "", self.vision.transformer.workload);
        let images = tensors.at("vision_model.");
        Ok(Arc::new(Siglip {
            vision: self.vision.load(&images)?,
            norm: self.vision.load_last_norm(&images)?,
            head: self.vision.load_head(&images)?,
            text: self.text.load(&tensors.at("text_model."))?,
        }))
    }
}

struct Siglip {
    vision: VisionTower,
    norm: Norm,
    head: ProbeHead,
    text: SiglipText,
}

impl Encoder for Siglip {
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        let mut rows = self.vision.forward(images, watch)?;
        rows.hidden = self.norm.forward(&rows.hidden)?;
        self.head.forward(&rows)
    }

    fn texts(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        self.text.forward(ids, lengths)
    }
}
