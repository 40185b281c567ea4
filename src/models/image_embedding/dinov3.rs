//! DINOv3: images alone. An image's vector is its class token after the last norm, which is `pooler_output` of
//! `DINOv3ViTModel` in transformers.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::{Architecture, Encoder, ImageSide, ImageSize, TextSide, Watch, without_text_side};
use crate::architecture::Family;
use crate::error::Result;
use crate::models::towers::VisionTower;
use crate::models::towers::dinov3::Dinov3Config;
use crate::models::transformer::{Norm, SafeTensors};
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "dinov3_vit",
    architectures: &["DINOv3ViTModel"],
    read: |file, config| Ok(Box::new(Config { tower: Dinov3Config::read(file, config)? })),
};

struct Config {
    tower: Dinov3Config,
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.tower.width()
    }

    fn images(&self) -> Option<ImageSide> {
        Some(ImageSide {
            processor: Processor::Dinov3,
            size: ImageSize::Any,
            patch: self.tower.patch(),
            leading: 1 + self.tower.registers(),
        })
    }

    fn texts(&self) -> Option<TextSide> {
        None
    }

    fn uses(&self, tensor: &str) -> bool {
        !self.has_no_effect(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        // A model without registers may have a tensor of none.
        let is_empty = tensor == "embeddings.register_tokens" && self.tower.registers() == 0;
        is_empty || tensor == "embeddings.mask_token" || tensor == "rope_embeddings.inv_freq"
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
        let tensors = SafeTensors::new(&reader, "", self.tower.transformer.workload);
        let vision = self.tower.load(&tensors)?;
        Ok(Arc::new(Dinov3 { vision, norm: self.tower.load_last_norm(&tensors)? }))
    }
}

struct Dinov3 {
    vision: VisionTower,
    norm: Norm,
}

impl Encoder for Dinov3 {
    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        self.norm.forward(&self.vision.forward(images, watch)?.first()?)
    }

    fn texts(&self, _: &[u32], _: &[usize]) -> Result<Tensor> {
        Err(without_text_side())
    }
}
