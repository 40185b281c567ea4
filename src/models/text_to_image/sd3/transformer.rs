//! `SD3Transformer2DModel`, the multimodal diffusion transformer (Esser et al., arXiv 2403.03206), with the second
//! attention of the medium Stable Diffusion 3.5. The reference is diffusers.

use candle_core::{IndexOp as _, Tensor};
use model_actors::Bytes;
use serde::Deserialize;

use super::super::layers::ScopedReader;
use super::super::mmdit::{
    Attentions, BlockShape, End, Guided, HeadNorm, Heads, JointBlock, Last, TimeTextEmbedding,
};
use super::super::pipeline::Watch;
use super::super::repository::{MAX_COUNT, MAX_SAMPLE, MAX_WIDTH, Part, Repository, check_sizes, invalid};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, patchify};

/// Where its weights are.
pub(super) const PART: Part = Part { folder: "transformer/", file: Part::DIFFUSERS, uses: |_| true };

/// Most latents along a side of a patch.
const MAX_PATCH: usize = 64;

/// `transformer/config.json`. What has a default in diffusers has it here.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct TransformerConfig {
    pub(super) sample_size: usize,
    pub(super) patch_size: usize,
    pub(super) in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    pub(super) joint_attention_dim: usize,
    caption_projection_dim: usize,
    pub(super) pooled_projection_dim: usize,
    pub(super) pos_embed_max_size: usize,
    dual_attention_layers: Vec<usize>,
    qk_norm: Option<String>,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            out_channels: Some(16),
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            pos_embed_max_size: 96,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

impl TransformerConfig {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "transformer/config.json";
        let (path, config): (_, Self) = repository.config(file, &["SD3Transformer2DModel"], &[])?;
        let sizes = [
            ("sample_size", config.sample_size, MAX_SAMPLE),
            ("patch_size", config.patch_size, MAX_PATCH),
            ("in_channels", config.in_channels, MAX_COUNT),
            ("num_layers", config.num_layers, MAX_COUNT),
            ("attention_head_dim", config.attention_head_dim, MAX_COUNT),
            ("num_attention_heads", config.num_attention_heads, MAX_COUNT),
            ("joint_attention_dim", config.joint_attention_dim, MAX_WIDTH),
            ("pooled_projection_dim", config.pooled_projection_dim, MAX_WIDTH),
            ("pos_embed_max_size", config.pos_embed_max_size, MAX_SAMPLE),
        ];
        check_sizes(&path, &sizes)?;
        let (width, takes) = (config.heads().width(), config.caption_projection_dim);
        if width != takes {
            let reason = format!("caption_projection_dim is {takes}; the heads are {width} wide together");
            return Err(invalid(&path, reason));
        }
        if config.out_channels.is_some_and(|channels| channels != config.in_channels) {
            return Err(invalid(&path, "out_channels differs from in_channels"));
        }
        match config.qk_norm.as_deref() {
            None | Some("rms_norm") => Ok(config),
            Some(other) => Err(Error::UnsupportedSetting {
                file: path,
                what: "qk_norm".into(),
                found: other.to_owned(),
                supported: "rms_norm, null".into(),
            }),
        }
    }

    fn heads(&self) -> Heads {
        Heads { count: self.num_attention_heads, size: self.attention_head_dim }
    }

    /// What a call for so many rows, of image and text together, needs besides the weights: both streams, queries, keys
    /// and values, or the middle layer.
    pub(super) fn scratch(&self, rows: usize) -> Bytes {
        Bytes((self.heads().width().saturating_mul(10).saturating_mul(rows) as u64).saturating_mul(4))
    }

    pub(super) fn load(&self, reader: &ScopedReader<'_>) -> Result<Transformer> {
        let (heads, side) = (self.heads(), self.patch_size);
        let (width, inside) = (heads.width(), self.in_channels * side * side);
        let patches = reader.at("pos_embed.proj");
        let weight = patches.tensor("weight", &[width, self.in_channels, side, side])?;
        let bias = patches.tensor("bias", &[width])?;
        let grid = self.pos_embed_max_size;
        let positions = reader.tensor("pos_embed.pos_embed", &[1, grid * grid, width])?;
        let block = |index: usize| {
            let shape = BlockShape {
                heads,
                norm: if self.qk_norm.is_some() { HeadNorm::Rms } else { HeadNorm::None },
                attentions: match self.dual_attention_layers.contains(&index) {
                    true => Attentions::Dual,
                    false => Attentions::Joint,
                },
                end: if index + 1 == self.num_layers { End::ImageOnly } else { End::Both },
            };
            JointBlock::load(&reader.at(format!("transformer_blocks.{index}")), shape)
        };
        Ok(Transformer {
            side,
            channels: self.in_channels,
            patches: Linear::new(&weight.reshape((width, inside))?, Some(bias))?,
            positions: positions.reshape((grid, grid, width))?,
            time_text: TimeTextEmbedding::load(reader, self.pooled_projection_dim, width, Guided::Outside)?,
            text: reader.at("context_embedder").linear(self.joint_attention_dim, width)?,
            blocks: (0..self.num_layers).map(block).collect::<Result<_>>()?,
            last: Last::load(reader, width, inside)?,
        })
    }
}

/// The loaded transformer.
pub(super) struct Transformer {
    side: usize,
    channels: usize,
    patches: Linear,
    /// For the largest picture, `(rows, columns, width)`; smaller ones lie in its middle.
    positions: Tensor,
    time_text: TimeTextEmbedding,
    text: Linear,
    blocks: Vec<JointBlock>,
    last: Last,
}

impl Transformer {
    /// The way from picture to noise for latents `(channels, height, width)` at a time, with tokens' vectors `(tokens,
    /// width)` and the text's `(1, width)`.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        time: f64,
        hidden: &Tensor,
        pooled: &Tensor,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (_, height, width) = latents.dims3()?;
        let (rows, columns) = (height / self.side, width / self.side);
        let patches = self.patches.forward(&patchify(latents, self.side)?, Activation::Identity)?;
        let mut image = (patches + self.positions(rows, columns)?)?;
        let mut text = self.text.forward(&hidden.contiguous()?, Activation::Identity)?;
        let modulation = self.time_text.of(time, 0.0, pooled)?;
        for block in &self.blocks {
            watch.check()?;
            (image, text) = block.forward(&image, &text, &modulation, None)?;
        }
        let (side, channels) = (self.side, self.channels);
        let patches =
            self.last.forward(&image, &modulation)?.reshape((rows, columns, side, side, channels))?;
        Ok(patches.permute((4, 0, 2, 1, 3))?.reshape((channels, height, width))?)
    }

    fn positions(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let (grid, _, width) = self.positions.dims3()?;
        if rows > grid || columns > grid {
            let reason =
                format!("a picture of {columns} by {rows} patches; the model knows at most {grid} a side");
            return Err(Error::InvalidInput(reason));
        }
        let middle = self
            .positions
            .i(((grid - rows) / 2..(grid + rows) / 2, (grid - columns) / 2..(grid + columns) / 2))?;
        Ok(middle.reshape((rows * columns, width))?)
    }
}
