//! `FluxTransformer2DModel`: blocks of two streams as in Stable Diffusion 3, then blocks in which both are one, with rotary
//! positions along the picture's rows and columns. The reference is diffusers.

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;

use super::super::layers::ScopedReader;
use super::super::mmdit::{
    Attentions, BlockShape, End, Guided, HeadNorm, Heads, JointBlock, Last, Modulation, Projections,
    RopeTable, TimeTextEmbedding, gated, modulated,
};
use super::super::pipeline::Watch;
use super::super::repository::{MAX_COUNT, MAX_WIDTH, Part, Repository, check_sizes, invalid};
use crate::error::Result;
use crate::kernels::{Activation, Linear, patchify};

/// Where its weights are.
pub(super) const PART: Part = Part { folder: "transformer/", file: Part::DIFFUSERS, uses: |_| true };

/// Latents along a side of a patch.
pub(super) const SIDE: usize = 2;
/// Base of the rotary angles.
const THETA: f64 = 10_000.0;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("patch_size", "1")];

/// `transformer/config.json`. What has a default in diffusers has it here.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct TransformerConfig {
    /// Numbers of a patch.
    pub(super) in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    pub(super) joint_attention_dim: usize,
    pub(super) pooled_projection_dim: usize,
    pub(super) guidance_embeds: bool,
    axes_dims_rope: [usize; 3],
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl TransformerConfig {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let file = "transformer/config.json";
        let (path, config): (_, Self) = repository.config(file, &["FluxTransformer2DModel"], ONLY)?;
        let sizes = [
            ("in_channels", config.in_channels, SIDE * SIDE * MAX_COUNT),
            ("num_layers", config.num_layers.max(1), MAX_COUNT),
            ("num_single_layers", config.num_single_layers.max(1), MAX_COUNT),
            ("attention_head_dim", config.attention_head_dim, MAX_COUNT),
            ("num_attention_heads", config.num_attention_heads, MAX_COUNT),
            ("joint_attention_dim", config.joint_attention_dim, MAX_WIDTH),
            ("pooled_projection_dim", config.pooled_projection_dim, MAX_WIDTH),
        ];
        check_sizes(&path, &sizes)?;
        let (axes, size) = (config.axes_dims_rope, config.attention_head_dim);
        let sum = axes.iter().try_fold(0usize, |sum, axis| sum.checked_add(*axis));
        if sum != Some(size) || axes.iter().any(|axis| axis % 2 == 1) {
            let reason = format!("axes_dims_rope is {axes:?}; even numbers with the sum {size} are needed");
            return Err(invalid(&path, reason));
        }
        if config.out_channels.is_some_and(|channels| channels != config.in_channels) {
            return Err(invalid(&path, "out_channels differs from in_channels"));
        }
        Ok(config)
    }

    fn heads(&self) -> Heads {
        Heads { count: self.num_attention_heads, size: self.attention_head_dim }
    }

    /// What a call for so many rows, of image and text together, needs besides the weights: a block of one stream has its
    /// rows, their norm, queries, keys and values, and the middle layer twice.
    pub(super) fn scratch(&self, rows: usize) -> Bytes {
        Bytes((self.heads().width().saturating_mul(15).saturating_mul(rows) as u64).saturating_mul(4))
    }

    pub(super) fn load(&self, reader: &ScopedReader<'_>) -> Result<Transformer> {
        let heads = self.heads();
        let width = heads.width();
        let shape = BlockShape { heads, norm: HeadNorm::Rms, attentions: Attentions::Joint, end: End::Both };
        let block = |index: usize| JointBlock::load(&reader.at(format!("transformer_blocks.{index}")), shape);
        let single =
            |index: usize| SingleBlock::load(&reader.at(format!("single_transformer_blocks.{index}")), heads);
        let guided = if self.guidance_embeds { Guided::ByModel } else { Guided::Outside };
        Ok(Transformer {
            patches: reader.at("x_embedder").linear(self.in_channels, width)?,
            text: reader.at("context_embedder").linear(self.joint_attention_dim, width)?,
            time_text: TimeTextEmbedding::load(reader, self.pooled_projection_dim, width, guided)?,
            axes: self.axes_dims_rope,
            blocks: (0..self.num_layers).map(block).collect::<Result<_>>()?,
            singles: (0..self.num_single_layers).map(single).collect::<Result<_>>()?,
            last: Last::load(reader, width, self.in_channels)?,
        })
    }
}

/// The loaded transformer.
pub(super) struct Transformer {
    patches: Linear,
    text: Linear,
    time_text: TimeTextEmbedding,
    /// How many of a head's numbers tell the text's place, the row and the column.
    axes: [usize; 3],
    blocks: Vec<JointBlock>,
    singles: Vec<SingleBlock>,
    last: Last,
}

impl Transformer {
    /// The way from picture to noise for latents `(channels, height, width)` at a time, with a guidance, tokens' vectors
    /// `(tokens, width)` and the text's `(1, width)`.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        (time, guidance): (f64, f64),
        hidden: &Tensor,
        pooled: &Tensor,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (channels, height, width) = latents.dims3()?;
        let (rows, columns, tokens) = (height / SIDE, width / SIDE, hidden.dim(0)?);
        let mut image = self.patches.forward(&patchify(latents, SIDE)?, Activation::Identity)?;
        let mut text = self.text.forward(&hidden.contiguous()?, Activation::Identity)?;
        let modulation = self.time_text.of(time, guidance, pooled)?;
        let rope = self.rope(tokens, rows, columns, latents.device())?;
        for block in &self.blocks {
            watch.check()?;
            (image, text) = block.forward(&image, &text, &modulation, Some(&rope))?;
        }
        let mut both = Tensor::cat(&[text, image], 0)?;
        for block in &self.singles {
            watch.check()?;
            both = block.forward(&both, &modulation, &rope)?;
        }
        let image = both.narrow(0, tokens, rows * columns)?.contiguous()?;
        let patches = self.last.forward(&image, &modulation)?;
        let patches = patches.reshape((rows, columns, channels, SIDE, SIDE))?;
        Ok(patches.permute((2, 0, 3, 1, 4))?.reshape((channels, height, width))?)
    }

    /// The text is at place 0 of all axes, a patch at its row and column.
    fn rope(&self, tokens: usize, rows: usize, columns: usize, device: &Device) -> Result<RopeTable> {
        let text = (0..tokens).map(|_| [0, 0, 0]);
        let image = (0..rows * columns).map(|patch| [0, patch / columns, patch % columns]);
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in text.chain(image) {
            for (size, at) in self.axes.iter().zip(position) {
                for pair in 0..size / 2 {
                    let angle = at as f64 / THETA.powf(2.0 * pair as f64 / *size as f64);
                    cosines.push(angle.cos() as f32);
                    sines.push(angle.sin() as f32);
                }
            }
        }
        let shape = (tokens + rows * columns, self.axes.iter().sum::<usize>() / 2);
        let tensor = |values| Tensor::from_vec(values, shape, device);
        Ok(RopeTable { cosines: tensor(cosines)?, sines: tensor(sines)? })
    }
}

/// A block in which image and text are one stream, and attention and middle layer run side by side (Dehghani et al.,
/// arXiv 2302.05442).
struct SingleBlock {
    modulation: Modulation,
    projections: Projections,
    wide: Linear,
    out: Linear,
}

impl SingleBlock {
    fn load(reader: &ScopedReader<'_>, heads: Heads) -> Result<Self> {
        let width = heads.width();
        Ok(Self {
            modulation: Modulation::load(&reader.at("norm"), width, 3)?,
            projections: Projections::load_alone(&reader.at("attn"), heads)?,
            wide: reader.at("proj_mlp").linear(width, 4 * width)?,
            out: reader.at("proj_out").linear(5 * width, width)?,
        })
    }

    fn forward(&self, rows: &Tensor, modulation: &Tensor, rope: &RopeTable) -> Result<Tensor> {
        let [shift, scale, gate] = self.modulation.parts(modulation)?;
        let normal = modulated(rows, &shift, &scale)?;
        let attended = self.projections.attend(self.projections.forward(&normal)?, Some(rope))?;
        let wide = self.wide.forward(&normal, Activation::GeluTanh)?;
        let both = Tensor::cat(&[attended, wide], 1)?;
        gated(rows, &gate, &self.out.forward(&both, Activation::Identity)?)
    }
}
