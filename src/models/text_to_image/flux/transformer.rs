//! `FluxTransformer2DModel`: blocks of two streams as in Stable Diffusion 3, then blocks of one stream, with
//! rotary embeddings along the rows and columns of the image. The reference is diffusers.

use candle_core::{Device, Tensor};
use model_actors::Bytes;
use serde::Deserialize;

use super::super::layers::ScopedReader;
use super::super::mmdit::{
    Attentions, BlockShape, GuidanceEmbedding, Heads, InterleavedRope, JointBlock, Modulation, OutputLayer,
    QkNorm, QkvProjections, TextStream, TimeTextEmbedding, gated_residual, modulated_norm,
};
use super::super::pipeline::Watch;
use super::super::repository::{Component, MAX_COUNT, MAX_WIDTH, Repository, check_sizes, invalid};
use crate::error::Result;
use crate::kernels::{Activation, Linear, patchify};

/// The component of the pipeline.
pub(super) const COMPONENT: Component =
    Component { folder: "transformer/", file: Component::DIFFUSERS, is_loaded: |_| true };

/// Latents along a side of a patch.
pub(super) const SIDE: usize = 2;
/// Base of the rotary angles.
const THETA: f64 = 10_000.0;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("patch_size", "1")];

/// `transformer/config.json`, with the defaults of diffusers.
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

    /// Memory that a call for so many rows, of image and text together, needs besides the weights: a block of
    /// one stream has its rows, their norm, queries, keys and values, and the feed-forward layer twice.
    pub(super) fn scratch(&self, rows: usize) -> Bytes {
        Bytes((self.heads().width().saturating_mul(15).saturating_mul(rows) as u64).saturating_mul(4))
    }

    pub(super) fn load(&self, reader: &ScopedReader<'_>) -> Result<Transformer> {
        let heads = self.heads();
        let width = heads.width();
        let shape =
            BlockShape { heads, norm: QkNorm::Rms, attentions: Attentions::Joint, text: TextStream::GoesOn };
        let block = |index: usize| JointBlock::load(&reader.at(format!("transformer_blocks.{index}")), shape);
        let single =
            |index: usize| SingleBlock::load(&reader.at(format!("single_transformer_blocks.{index}")), heads);
        let guidance = match self.guidance_embeds {
            true => GuidanceEmbedding::Present,
            false => GuidanceEmbedding::Absent,
        };
        Ok(Transformer {
            patch_embed: reader.at("x_embedder").linear(self.in_channels, width)?,
            context_embedder: reader.at("context_embedder").linear(self.joint_attention_dim, width)?,
            time_text_embed: TimeTextEmbedding::load(reader, self.pooled_projection_dim, width, guidance)?,
            axes_dims: self.axes_dims_rope,
            blocks: (0..self.num_layers).map(block).collect::<Result<_>>()?,
            single_blocks: (0..self.num_single_layers).map(single).collect::<Result<_>>()?,
            output: OutputLayer::load(reader, width, self.in_channels)?,
        })
    }
}

/// Loaded transformer.
pub(super) struct Transformer {
    patch_embed: Linear,
    context_embedder: Linear,
    time_text_embed: TimeTextEmbedding,
    /// Numbers of a head that encode the text position, the row and the column (`axes_dims_rope`).
    axes_dims: [usize; 3],
    blocks: Vec<JointBlock>,
    single_blocks: Vec<SingleBlock>,
    output: OutputLayer,
}

impl Transformer {
    /// Predicts the velocity from latents `(channels, height, width)` at a timestep and a scale of guidance,
    /// with prompt embeddings `(tokens, width)` and a pooled one `(1, width)`. Gives the latents' shape.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        (timestep, guidance): (f64, f64),
        prompt_embeddings: &Tensor,
        pooled: &Tensor,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let (channels, height, width) = latents.dims3()?;
        let (rows, columns, tokens) = (height / SIDE, width / SIDE, prompt_embeddings.dim(0)?);
        let mut image = self.patch_embed.forward(&patchify(latents, SIDE)?, Activation::Identity)?;
        let mut text =
            self.context_embedder.forward(&prompt_embeddings.contiguous()?, Activation::Identity)?;
        let embedding = self.time_text_embed.of(timestep, guidance, pooled)?;
        let rope = self.rope(tokens, rows, columns, latents.device())?;
        for block in &self.blocks {
            watch.check()?;
            (image, text) = block.forward(&image, &text, &embedding, Some(&rope))?;
        }
        let mut both = Tensor::cat(&[text, image], 0)?;
        for block in &self.single_blocks {
            watch.check()?;
            both = block.forward(&both, &embedding, &rope)?;
        }
        let image = both.narrow(0, tokens, rows * columns)?.contiguous()?;
        let patches = self.output.forward(&image, &embedding)?;
        let patches = patches.reshape((rows, columns, channels, SIDE, SIDE))?;
        Ok(patches.permute((2, 0, 3, 1, 4))?.reshape((channels, height, width))?)
    }

    /// Rotary embedding of all rows: text tokens are at position 0 of all axes, a patch is at its row and
    /// column.
    fn rope(&self, tokens: usize, rows: usize, columns: usize, device: &Device) -> Result<InterleavedRope> {
        let text = (0..tokens).map(|_| [0, 0, 0]);
        let image = (0..rows * columns).map(|patch| [0, patch / columns, patch % columns]);
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in text.chain(image) {
            for (size, at) in self.axes_dims.iter().zip(position) {
                for pair in 0..size / 2 {
                    let angle = at as f64 / THETA.powf(2.0 * pair as f64 / *size as f64);
                    cosines.push(angle.cos() as f32);
                    sines.push(angle.sin() as f32);
                }
            }
        }
        let shape = (tokens + rows * columns, self.axes_dims.iter().sum::<usize>() / 2);
        let tensor = |values| Tensor::from_vec(values, shape, device);
        Ok(InterleavedRope { cosines: tensor(cosines)?, sines: tensor(sines)? })
    }
}

/// Block in which image and text are one stream, and attention and feed-forward layer are parallel (Dehghani
/// et al., arXiv 2302.05442); `FluxSingleTransformerBlock` of diffusers.
struct SingleBlock {
    modulation: Modulation,
    qkv_proj: QkvProjections,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    fn load(reader: &ScopedReader<'_>, heads: Heads) -> Result<Self> {
        let width = heads.width();
        Ok(Self {
            modulation: Modulation::load(&reader.at("norm"), width, 3)?,
            qkv_proj: QkvProjections::load_single_stream(&reader.at("attn"), heads)?,
            proj_mlp: reader.at("proj_mlp").linear(width, 4 * width)?,
            proj_out: reader.at("proj_out").linear(5 * width, width)?,
        })
    }

    fn forward(&self, rows: &Tensor, embedding: &Tensor, rope: &InterleavedRope) -> Result<Tensor> {
        let [shift, scale, gate] = self.modulation.parts(embedding)?;
        let normal = modulated_norm(rows, &shift, &scale)?;
        let attention = self.qkv_proj.attention(self.qkv_proj.forward(&normal)?, Some(rope))?;
        let mlp = self.proj_mlp.forward(&normal, Activation::GeluTanh)?;
        let both = Tensor::cat(&[attention, mlp], 1)?;
        gated_residual(rows, &gate, &self.proj_out.forward(&both, Activation::Identity)?)
    }
}
