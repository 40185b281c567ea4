//! Transformer of a UNet, `Transformer2DModel` of diffusers: every pixel attends to every other of its image,
//! then to the tokens of the prompt. It has a block of its own, because its cross-attention and its norms
//! before each part stand in no other model here.

use candle_core::Tensor;

use super::super::layers::{Attention, FeedForward, ScopedReader};
use super::Context;
use super::config::{LevelConfig, UnetConfig};
use crate::error::Result;
use crate::kernels::{Activation, GroupNorm, LayerNorm, Linear};

const GROUP_EPSILON: f64 = 1e-6;
const LAYER_EPSILON: f64 = 1e-5;

/// Transformer over the pixels of an image, with a residual connection.
pub(super) struct ImageTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

/// `BasicTransformerBlock` of diffusers.
struct TransformerBlock {
    self_attention_norm: LayerNorm,
    self_attention: Attention,
    cross_attention_norm: LayerNorm,
    cross_attention: Attention,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl ImageTransformer {
    pub(super) fn load(reader: &ScopedReader<'_>, config: &UnetConfig, level: &LevelConfig) -> Result<Self> {
        let width = level.width;
        let projection = |name: &str| match config.use_linear_projection {
            true => reader.at(name).linear(width, width),
            false => reader.at(name).pointwise(width, width),
        };
        let blocks = (0..level.transformer_layers)
            .map(|index| TransformerBlock::load(&reader.at(format!("transformer_blocks.{index}")), level));
        Ok(Self {
            norm: reader.at("norm").group_norm(config.norm_num_groups, width, GROUP_EPSILON)?,
            proj_in: projection("proj_in")?,
            blocks: blocks.collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    pub(super) fn forward(&self, image: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = image.dims4()?;
        let rows = self.norm.forward(image, Activation::Identity)?;
        let rows = rows.reshape((batch, height * width, channels))?;
        let mut rows = self.proj_in.forward(&rows, Activation::Identity)?;
        for block in &self.blocks {
            context.watch.check()?;
            rows = block.forward(&rows, context.prompt_embeddings)?;
        }
        let rows = self.proj_out.forward(&rows, Activation::Identity)?;
        Ok((image + rows.reshape(image.shape())?)?)
    }
}

impl TransformerBlock {
    fn load(reader: &ScopedReader<'_>, level: &LevelConfig) -> Result<Self> {
        let width = level.width;
        let norm = |name: &str| reader.at(name).layer_norm(width, LAYER_EPSILON);
        Ok(Self {
            self_attention_norm: norm("norm1")?,
            self_attention: load_attention(&reader.at("attn1"), width, width, level.heads)?,
            cross_attention_norm: norm("norm2")?,
            cross_attention: load_attention(
                &reader.at("attn2"),
                width,
                level.cross_attention_width,
                level.heads,
            )?,
            feed_forward_norm: norm("norm3")?,
            feed_forward: load_feed_forward(&reader.at("ff"), width)?,
        })
    }

    /// Pixels `(batch, pixels, width)` and the prompt's embeddings `(batch, tokens, text width)`. Gives the
    /// pixels' shape.
    fn forward(&self, rows: &Tensor, text: &Tensor) -> Result<Tensor> {
        let normal = self.self_attention_norm.of(rows)?;
        let rows = (rows + self.self_attention.forward(&normal, &normal, None)?)?;
        let normal = self.cross_attention_norm.of(&rows)?;
        let rows = (&rows + self.cross_attention.forward(&normal, text, None)?)?;
        let normal = self.feed_forward_norm.of(&rows)?;
        Ok((&rows + self.feed_forward.forward(&normal)?)?)
    }
}

fn load_attention(
    reader: &ScopedReader<'_>,
    width: usize,
    context_width: usize,
    heads: usize,
) -> Result<Attention> {
    Ok(Attention {
        query: reader.at("to_q").linear_without_bias(width, width)?,
        key: reader.at("to_k").linear_without_bias(context_width, width)?,
        value: reader.at("to_v").linear_without_bias(context_width, width)?,
        out: reader.at("to_out.0").linear(width, width)?,
        heads,
        scale: 1.0 / ((width / heads.max(1)) as f64).sqrt(),
    })
}

/// Reads a GeGLU layer, whose first tensor has the rows of `up` and then those of `gate`.
fn load_feed_forward(reader: &ScopedReader<'_>, width: usize) -> Result<FeedForward> {
    let (projection, intermediate) = (reader.at("net.0.proj"), 4 * width);
    let weight = projection.tensor("weight", &[2 * intermediate, width])?;
    let bias = projection.tensor("bias", &[2 * intermediate])?;
    let half = |first: usize| {
        let bias = bias.narrow(0, first, intermediate)?.copy()?;
        Linear::new(&weight.narrow(0, first, intermediate)?, Some(bias))
    };
    Ok(FeedForward {
        gate: Some(half(intermediate)?),
        up: half(0)?,
        activation: Activation::GeluErf,
        down: reader.at("net.2").linear(intermediate, width)?,
    })
}
