//! The innermost block of an autoencoder, `UNetMidBlock2D` of diffusers, which its encoder and its decoder share: two
//! residual blocks and self-attention over the pixels between them.

use candle_core::Tensor;

use super::layers::{Attention, ScopedReader};
use super::pipeline::Watch;
use super::resnet::{ResnetBlock, ResnetShape};
use crate::error::Result;
use crate::kernels::{Activation, GroupNorm};

/// Two residual blocks, and attention between them where the model has it.
pub(super) struct MidBlock {
    first: ResnetBlock,
    attention: Option<PixelAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    pub(super) fn load(
        reader: &ScopedReader<'_>,
        shape: ResnetShape,
        width: usize,
        has_attention: bool,
    ) -> Result<Self> {
        let resnet = |name| ResnetBlock::load(&reader.at(name), shape, width, width);
        let attention = || PixelAttention::load(&reader.at("attentions.0"), width, shape);
        Ok(Self {
            first: resnet("resnets.0")?,
            attention: has_attention.then(attention).transpose()?,
            second: resnet("resnets.1")?,
        })
    }

    /// `(batch, height, width, channels)` to the same shape.
    pub(super) fn forward(&self, image: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        watch.check()?;
        let mut hidden = self.first.forward(image, None)?;
        if let Some(attention) = &self.attention {
            watch.check()?;
            hidden = attention.forward(&hidden)?;
        }
        self.second.forward(&hidden, None)
    }
}

/// Self-attention over the pixels of an image, in one head, with a residual connection.
struct PixelAttention {
    norm: GroupNorm,
    attention: Attention,
}

impl PixelAttention {
    fn load(reader: &ScopedReader<'_>, width: usize, shape: ResnetShape) -> Result<Self> {
        // The first repositories have the names that the layers had then.
        let names = match reader.contains("to_q.weight") {
            true => ["to_q", "to_k", "to_v", "to_out.0"],
            false => ["query", "key", "value", "proj_attn"],
        };
        let [query, key, value, out] = names.map(|name| reader.at(name).linear(width, width));
        let scale = 1.0 / (width as f64).sqrt();
        Ok(Self {
            norm: reader.at("group_norm").group_norm(shape.groups, width, shape.epsilon)?,
            attention: Attention { query: query?, key: key?, value: value?, out: out?, heads: 1, scale },
        })
    }

    /// `(batch, height, width, channels)` to the same shape.
    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = image.dims4()?;
        let rows = self.norm.forward(image, Activation::Identity)?;
        let rows = rows.reshape((batch, height * width, channels))?;
        let out = self.attention.forward(&rows, &rows, None)?;
        Ok((image + out.reshape(image.shape())?)?)
    }
}
