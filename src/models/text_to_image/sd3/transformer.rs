//! `SD3Transformer2DModel`, the multimodal diffusion transformer of Stable Diffusion 3 (Esser et al., arXiv
//! 2403.03206), with the self-attention that Stable Diffusion 3.5 medium adds. The reference is diffusers.

use candle_core::{IndexOp as _, Tensor};
use model_actors::Bytes;
use serde::Deserialize;

use super::super::layers::ScopedReader;
use super::super::mmdit::{
    Attentions, BlockShape, GuidanceEmbedding, Heads, JointBlock, OutputLayer, QkNorm, TextStream,
    TimeTextEmbedding,
};
use super::super::pipeline::Watch;
use super::super::repository::{
    Component, MAX_COUNT, MAX_SAMPLE, MAX_WIDTH, Repository, check_sizes, invalid,
};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear, patchify};

/// The component of the pipeline.
pub(super) const COMPONENT: Component =
    Component { folder: "transformer/", file: Component::DIFFUSERS, is_loaded: |_| true };

/// Maximum number of latents along a side of a patch.
const MAX_PATCH: usize = 64;

/// `transformer/config.json`, with the defaults of diffusers.
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

    /// Memory that a call for so many rows, of image and text together, needs besides the weights: both
    /// streams, queries, keys and values, or the feed-forward layer.
    pub(super) fn scratch(&self, rows: usize) -> Bytes {
        Bytes((self.heads().width().saturating_mul(10).saturating_mul(rows) as u64).saturating_mul(4))
    }

    pub(super) fn load(&self, reader: &ScopedReader<'_>) -> Result<Transformer> {
        let (heads, side) = (self.heads(), self.patch_size);
        let (width, in_dim) = (heads.width(), self.in_channels * side * side);
        let patches = reader.at("pos_embed.proj");
        let weight = patches.tensor("weight", &[width, self.in_channels, side, side])?;
        let bias = patches.tensor("bias", &[width])?;
        let grid = self.pos_embed_max_size;
        let positions = reader.tensor("pos_embed.pos_embed", &[1, grid * grid, width])?;
        let block = |index: usize| {
            let shape = BlockShape {
                heads,
                norm: if self.qk_norm.is_some() { QkNorm::Rms } else { QkNorm::None },
                attentions: match self.dual_attention_layers.contains(&index) {
                    true => Attentions::Dual,
                    false => Attentions::Joint,
                },
                text: match index + 1 == self.num_layers {
                    true => TextStream::Ends,
                    false => TextStream::GoesOn,
                },
            };
            JointBlock::load(&reader.at(format!("transformer_blocks.{index}")), shape)
        };
        Ok(Transformer {
            patch_size: side,
            channels: self.in_channels,
            patch_embed: Linear::new(&weight.reshape((width, in_dim))?, Some(bias))?,
            pos_embed: positions.reshape((grid, grid, width))?,
            time_text_embed: TimeTextEmbedding::load(
                reader,
                self.pooled_projection_dim,
                width,
                GuidanceEmbedding::Absent,
            )?,
            context_embedder: reader.at("context_embedder").linear(self.joint_attention_dim, width)?,
            blocks: (0..self.num_layers).map(block).collect::<Result<_>>()?,
            output: OutputLayer::load(reader, width, in_dim)?,
        })
    }
}

/// Loaded transformer.
pub(super) struct Transformer {
    patch_size: usize,
    channels: usize,
    patch_embed: Linear,
    /// Position embeddings of the largest image, `(rows, columns, width)`; a smaller image takes the centre.
    pos_embed: Tensor,
    time_text_embed: TimeTextEmbedding,
    context_embedder: Linear,
    blocks: Vec<JointBlock>,
    output: OutputLayer,
}

impl Transformer {
    /// Predicts the velocity from latents `(channels, height, width)` at a timestep, with prompt embeddings
    /// `(tokens, width)` and a pooled one `(1, width)`. Gives the latents' shape.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        timestep: f64,
        prompt_embeddings: &Tensor,
        pooled: &Tensor,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (_, height, width) = latents.dims3()?;
        let (rows, columns) = (height / self.patch_size, width / self.patch_size);
        let patches = self.patch_embed.forward(&patchify(latents, self.patch_size)?, Activation::Identity)?;
        let mut image = (patches + self.positions(rows, columns)?)?;
        let mut text =
            self.context_embedder.forward(&prompt_embeddings.contiguous()?, Activation::Identity)?;
        let embedding = self.time_text_embed.of(timestep, 0.0, pooled)?;
        for block in &self.blocks {
            watch.check()?;
            (image, text) = block.forward(&image, &text, &embedding, None)?;
        }
        let (side, channels) = (self.patch_size, self.channels);
        let patches =
            self.output.forward(&image, &embedding)?.reshape((rows, columns, side, side, channels))?;
        Ok(patches.permute((4, 0, 2, 1, 3))?.reshape((channels, height, width))?)
    }

    /// Position embeddings of an image of so many patches, `(rows · columns, width)`.
    fn positions(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let (grid, _, width) = self.pos_embed.dims3()?;
        if rows > grid || columns > grid {
            let reason =
                format!("a picture of {columns} by {rows} patches; the model knows at most {grid} a side");
            return Err(Error::InvalidInput(reason));
        }
        let centre = self
            .pos_embed
            .i(((grid - rows) / 2..(grid + rows) / 2, (grid - columns) / 2..(grid + columns) / 2))?;
        Ok(centre.reshape((rows * columns, width))?)
    }
}
