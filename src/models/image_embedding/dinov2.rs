//! DINOv2, with and without registers: images alone. An image's vector is its class token after the last
//! norm, which is `pooler_output` of `Dinov2Model` in transformers.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde_json::Value;

use super::{Architecture, Encoder, ImageSide, ImageSize, TextSide, Watch, without_text_side};
use crate::architecture::Family;
use crate::error::Result;
use crate::models::towers::VisionTower;
use crate::models::towers::dinov2::{Dinov2Config, Registers};
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "dinov2",
    architectures: &["Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone"],
    read: |file, config| Ok(Box::new(Config::read(file, config, Registers::Without)?)),
};

/// The entry of the variant with registers.
pub(super) const FAMILY_WITH_REGISTERS: Family<Box<dyn Architecture>> = Family {
    model_type: "dinov2_with_registers",
    architectures: &[
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersBackbone",
    ],
    read: |file, config| Ok(Box::new(Config::read(file, config, Registers::With)?)),
};

struct Config {
    tower: Dinov2Config,
    /// Beginning of the tensors' names where the model was saved as a part of a larger one.
    outer: &'static str,
}

impl Config {
    fn read(file: &Path, config: &Value, registers: Registers) -> Result<Self> {
        let outer = match registers {
            Registers::Without => "dinov2.",
            Registers::With => "dinov2_with_registers.",
        };
        Ok(Self { tower: Dinov2Config::read(file, config, registers)?, outer })
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.tower.width()
    }

    fn images(&self) -> Option<ImageSide> {
        Some(ImageSide {
            processor: Processor::Clip,
            size: ImageSize::Any,
            patch: self.tower.patch(),
            leading: self.tower.leading(),
        })
    }

    fn texts(&self) -> Option<TextSide> {
        None
    }

    fn uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix(self.outer).unwrap_or(tensor);
        let is_part = ["embeddings.", "encoder.", "layernorm."].iter().any(|part| name.starts_with(part));
        is_part && name != "embeddings.mask_token"
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix(self.outer).unwrap_or(tensor);
        name == "embeddings.mask_token" || tensor.starts_with("classifier.")
    }

    fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        self.tower.transformer.scratch(rows, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let reader = weights.reader("", device, context);
        let is_part = weights.contains(&format!("{}embeddings.cls_token", self.outer));
        let path = if is_part { self.outer } else { "" };
        let tensors = SafeTensors::new(&reader, path, self.tower.transformer.workload);
        let vision = self.tower.load(&tensors)?;
        Ok(Arc::new(Dinov2 { vision, norm: self.tower.load_last_norm(&tensors)? }))
    }
}

struct Dinov2 {
    vision: VisionTower,
    norm: Norm,
}

impl Encoder for Dinov2 {
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        self.norm.forward(&self.vision.forward(images, watch)?.first()?)
    }

    fn texts(&self, _: &[u32], _: &[usize]) -> Result<Tensor> {
        Err(without_text_side())
    }
}
