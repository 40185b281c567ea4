//! ViT of candle-transformers (Dosovitskiy et al., 2020; DINO): images alone. An image's vector is its class token after the
//! last norm.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::{LayerNorm, Module, layer_norm};
use candle_transformers::models::vit;
use model_actors::{Bytes, LoadContext};
use serde_json::{Value, json};

use super::{
    Architecture, Encoder, ImageSide, ImageSize, TextSide, Watch, encoder_scratch, without_text_side,
};
use crate::architecture::{Family, parse};
use crate::device::ComputeThreads;
use crate::error::Result;
use crate::models::config_file::{MAX_LAYERS, MAX_SIDE, invalid, with_defaults};
use crate::models::transformers::build;
use crate::preprocessing::Processor;
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "vit",
    architectures: &["ViTModel", "ViTForImageClassification"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

struct Config(vit::Config);

impl Config {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let defaults = json!({
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
            "qkv_bias": true,
        });
        let config: vit::Config = parse(file, &with_defaults(config, defaults))?;
        let sides = [
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.image_size,
            config.patch_size,
        ];
        if let Some(side) = sides.into_iter().find(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(invalid(file, format!("a side is {side}; 1 to {MAX_SIDE} are allowed")));
        }
        let layers = config.num_hidden_layers;
        if !(1..=MAX_LAYERS).contains(&layers) || config.num_channels != 3 {
            let channels = config.num_channels;
            return Err(invalid(file, format!("{layers} layers over {channels} channels are not supported")));
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads)
            || !config.image_size.is_multiple_of(config.patch_size)
        {
            return Err(invalid(file, "the width is no whole heads, or the image no whole patches"));
        }
        Ok(Self(config))
    }
}

impl Architecture for Config {
    fn dimensions(&self) -> usize {
        self.0.hidden_size
    }

    fn images(&self) -> Option<ImageSide> {
        Some(ImageSide {
            processor: Processor::Vit,
            size: ImageSize::Square(self.0.image_size),
            patch: self.0.patch_size,
            leading: 1,
        })
    }

    fn texts(&self) -> Option<TextSide> {
        None
    }

    fn uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("vit.").unwrap_or(tensor);
        ["embeddings.", "encoder.", "layernorm."].iter().any(|part| name.starts_with(part))
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("vit.").unwrap_or(tensor);
        name == "embeddings.mask_token" || name.starts_with("pooler.") || tensor.starts_with("classifier.")
    }

    fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let vit::Config { num_attention_heads, hidden_size, intermediate_size, .. } = self.0;
        encoder_scratch((num_attention_heads, hidden_size, intermediate_size), rows, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let is_part = weights.contains("vit.embeddings.cls_token");
        let model = build(weights, device, context, |weights| {
            let weights = if is_part { weights.pp("vit") } else { weights };
            Ok(Vit {
                embeddings: vit::Embeddings::new(&self.0, false, weights.pp("embeddings"))?,
                encoder: vit::Encoder::new(&self.0, weights.pp("encoder"))?,
                norm: layer_norm(self.0.hidden_size, self.0.layer_norm_eps, weights.pp("layernorm"))?,
            })
        })?;
        Ok(Arc::new(model))
    }
}

struct Vit {
    embeddings: vit::Embeddings,
    encoder: vit::Encoder,
    norm: LayerNorm,
}

impl Encoder for Vit {
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        ComputeThreads::pool(threads)
    }

    fn images(&self, images: &[Tensor], watch: &Watch<'_>) -> Result<Tensor> {
        watch()?;
        let embedded = self.embeddings.forward(&Tensor::stack(images, 0)?, None, false)?;
        let hidden = self.encoder.forward(&embedded)?;
        watch()?;
        Ok(self.norm.forward(&hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?)
    }

    fn texts(&self, _: &[u32], _: &[usize]) -> Result<Tensor> {
        Err(without_text_side())
    }
}
