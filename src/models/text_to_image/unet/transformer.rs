//! The transformer inside a UNet: every pixel attends to every other of its image, then to the tokens of the prompt.

use candle_core::Tensor;

use super::super::layers::{Norm, Place, linear};
use super::Context;
use super::config::{LevelConfig, UnetConfig};
use crate::error::Result;
use crate::kernels::{Activation, GroupNorm, Linear, scaled_dot_product_attention};

const GROUP_EPSILON: f64 = 1e-6;
const LAYER_EPSILON: f64 = 1e-5;

/// A transformer over the pixels of an image, beside the way around it.
pub(super) struct ImageTransformer {
    norm: GroupNorm,
    before: Linear,
    blocks: Vec<TransformerBlock>,
    after: Linear,
}

struct TransformerBlock {
    self_norm: Norm,
    to_itself: Attention,
    text_norm: Norm,
    to_text: Attention,
    wide_norm: Norm,
    /// The halves of the gated layer (Shazeer, arXiv 2002.05202).
    wide: Linear,
    gate: Linear,
    narrow: Linear,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    scale: f64,
}

impl ImageTransformer {
    pub(super) fn load(place: &Place<'_>, config: &UnetConfig, level: &LevelConfig) -> Result<Self> {
        let width = level.width;
        let outer = |name: &str| match config.use_linear_projection {
            true => place.at(name).linear(width, width),
            false => place.at(name).pointwise(width, width),
        };
        let blocks = (0..level.transformer_layers)
            .map(|index| TransformerBlock::load(&place.at(format!("transformer_blocks.{index}")), level));
        Ok(Self {
            norm: place.at("norm").group_norm(config.norm_num_groups, width, GROUP_EPSILON)?,
            before: outer("proj_in")?,
            blocks: blocks.collect::<Result<_>>()?,
            after: outer("proj_out")?,
        })
    }

    pub(super) fn forward(&self, image: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = image.dims4()?;
        let rows = self.norm.forward(image, Activation::Identity)?;
        let rows = rows.reshape((batch, height * width, channels))?;
        let mut rows = linear(&self.before, &rows, Activation::Identity)?;
        for block in &self.blocks {
            context.watch.check()?;
            rows = block.forward(&rows, context.hidden)?;
        }
        let rows = linear(&self.after, &rows, Activation::Identity)?;
        Ok((image + rows.reshape(image.shape())?)?)
    }
}

impl TransformerBlock {
    fn load(place: &Place<'_>, level: &LevelConfig) -> Result<Self> {
        let (width, wide) = (level.width, 4 * level.width);
        let projection = place.at("ff.net.0.proj");
        let weight = projection.tensor("weight", &[2 * wide, width])?;
        let bias = projection.tensor("bias", &[2 * wide])?;
        let half = |first: usize| {
            Linear::new(&weight.narrow(0, first, wide)?, Some(bias.narrow(0, first, wide)?.copy()?))
        };
        let norm = |name: &str| place.at(name).layer_norm(width, LAYER_EPSILON);
        Ok(Self {
            self_norm: norm("norm1")?,
            to_itself: Attention::load(&place.at("attn1"), width, width, level.heads)?,
            text_norm: norm("norm2")?,
            to_text: Attention::load(&place.at("attn2"), width, level.text_width, level.heads)?,
            wide_norm: norm("norm3")?,
            wide: half(0)?,
            gate: half(wide)?,
            narrow: place.at("ff.net.2").linear(wide, width)?,
        })
    }

    /// `(batch, pixels, width)`, and the tokens' `(batch, tokens, width)`.
    fn forward(&self, rows: &Tensor, text: &Tensor) -> Result<Tensor> {
        let normal = self.self_norm.forward(rows)?;
        let rows = (rows + self.to_itself.forward(&normal, &normal)?)?;
        let normal = self.text_norm.forward(&rows)?;
        let rows = (&rows + self.to_text.forward(&normal, text)?)?;
        let normal = self.wide_norm.forward(&rows)?;
        let gate = linear(&self.gate, &normal, Activation::GeluErf)?;
        let wide = (linear(&self.wide, &normal, Activation::Identity)? * gate)?;
        Ok((&rows + linear(&self.narrow, &wide, Activation::Identity)?)?)
    }
}

impl Attention {
    fn load(place: &Place<'_>, width: usize, others: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            query: place.at("to_q").linear_without_bias(width, width)?,
            key: place.at("to_k").linear_without_bias(others, width)?,
            value: place.at("to_v").linear_without_bias(others, width)?,
            out: place.at("to_out.0").linear(width, width)?,
            heads,
            scale: 1.0 / ((width / heads.max(1)) as f64).sqrt(),
        })
    }

    fn forward(&self, rows: &Tensor, others: &Tensor) -> Result<Tensor> {
        let query = linear(&self.query, rows, Activation::Identity)?;
        let key = linear(&self.key, others, Activation::Identity)?;
        let value = linear(&self.value, others, Activation::Identity)?;
        let mixed = scaled_dot_product_attention(&query, &key, &value, self.heads, self.scale, None)?;
        linear(&self.out, &mixed, Activation::Identity)
    }
}
