//! The Gemmas in GGUF files: as in safetensors, but that norms have their factors whole. Their rotary embeddings are left to
//! `rope`.

use super::metadata::Metadata;
use super::rope::Sizes;
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::unsupported;
use crate::models::decoder::config::{DecoderConfig, Embeddings};
use crate::models::transformer::{HeadNorms, NormPlacement, TransformerConfig};

/// Changes Llama's shape into the first Gemma's, which the later ones have as well.
pub(super) fn shape(config: &mut DecoderConfig) {
    config.embeddings = Embeddings::Scaled((config.width() as f64).sqrt() as f32);
    config.transformer.activation = Activation::GeluTanh;
}

/// Sets the factor on scores: the largest models, which files tell only by their depth, scale by the width, the others by
/// the heads' size. As in llama.cpp, `attention.scale` counts for nothing.
fn scale(transformer: &mut TransformerConfig, largest: usize) {
    let attention = &mut transformer.attention;
    let scaled = match transformer.layers.len() == largest {
        true => transformer.width / attention.heads.max(1),
        false => attention.head_size,
    };
    attention.scale = (1.0 / (scaled as f64).sqrt()) as f32;
}

impl Metadata<'_> {
    /// Gemma 2: soft caps that hold without a key, and a window in every other layer.
    pub(super) fn gemma2(&self, config: &mut DecoderConfig) -> Result<()> {
        shape(config);
        let cap = |key, default| Some(self.float(key).unwrap_or(default) as f32);
        config.logit_cap = cap("final_logit_softcapping", 30.0);
        let transformer = &mut config.transformer;
        transformer.attention.soft_cap = cap("attn_logit_softcapping", 50.0);
        scale(transformer, 46);
        transformer.norm_placement = NormPlacement::Sandwich;
        let masks = self.masks(4096, 2)?;
        transformer.layers.iter_mut().zip(masks).for_each(|(layer, mask)| layer.mask = mask);
        // Layers with a window are rotated as the others are.
        let (key, base) = ("rope.freq_base_swa", self.float("rope.freq_base").unwrap_or(10_000.0));
        match self.float(key).filter(|own| *own != base) {
            Some(own) => Err(unsupported(self.path(), self.key(key), &own.to_string(), base.to_string())),
            None => Ok(()),
        }
    }

    /// Gemma 3: norms of heads, and layers with a window, whose rotary embedding is their own.
    pub(super) fn gemma3(&self, config: &mut DecoderConfig) -> Result<()> {
        config.logit_cap =
            self.float("final_logit_softcapping").filter(|cap| *cap != 0.0).map(|cap| cap as f32);
        shape(config);
        let context = config.context;
        let transformer = &mut config.transformer;
        scale(transformer, 62);
        let attention = &mut transformer.attention;
        attention.head_norms = HeadNorms::EachHead;
        transformer.norm_placement = NormPlacement::Sandwich;
        let rotated = self.optional("rope.dimension_count")?.unwrap_or(attention.head_size);
        transformer.ropes.push(self.sliding_rope(Sizes { rotated, context })?);
        for (layer, mask) in transformer.layers.iter_mut().zip(self.masks(0, 6)?) {
            layer.mask = mask;
            if mask != AttentionMask::Causal {
                layer.rope = Some(1);
            }
        }
        Ok(())
    }
}
