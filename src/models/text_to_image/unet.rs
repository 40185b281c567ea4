//! `UNet2DConditionModel`, which predicts the noise in latents (Ronneberger et al., arXiv 1505.04597; Rombach
//! et al., arXiv 2112.10752): down blocks of residual blocks and transformers, a mid block, and up blocks
//! with skip connections from the down blocks. The reference is diffusers.

mod config;
mod transformer;

use candle_core::{Device, Tensor};

use super::layers::{ScopedReader, SinusoidalEmbedding, TimestepEmbedding};
use super::pipeline::Watch;
use super::repository::Component;
use super::resnet::{ResnetBlock, ResnetShape, Upsampler};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};
use config::LevelConfig;
pub(super) use config::UnetConfig;
use transformer::ImageTransformer;

/// The component of the pipeline.
pub(super) const COMPONENT: Component =
    Component { folder: "unet/", file: Component::DIFFUSERS, is_loaded: |_| true };

/// Loaded network.
pub(super) struct Unet {
    sinusoid: SinusoidalEmbedding,
    time_embedding: TimestepEmbedding,
    /// Projection of the embedded guidance to the width of the embedded timestep, of a model that is distilled with
    /// guidance (Meng et al., arXiv 2210.03142).
    guidance_projection: Option<GuidanceProjection>,
    /// Embedding of the added conditions of SDXL: pooled prompt and sizes.
    add_embedding: Option<TimestepEmbedding>,
    conv_in: Convolution,
    down_blocks: Vec<Level>,
    mid_block: (ResnetBlock, ImageTransformer, ResnetBlock),
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
}

/// Blocks of one resolution, on the way down or up.
struct Level {
    blocks: Vec<Block>,
    resize: Resize,
}

struct GuidanceProjection {
    width: usize,
    projection: Linear,
}

struct Block {
    resnet: ResnetBlock,
    transformer: Option<ImageTransformer>,
}

/// Change of resolution after a level.
enum Resize {
    None,
    Down(Convolution),
    Up(Upsampler),
}

/// Inputs of every block beside the image.
struct Context<'a> {
    /// Embedding of the timestep after its activation, `(batch, width)`.
    time: Tensor,
    /// `(batch, tokens, width)`.
    prompt_embeddings: &'a Tensor,
    watch: &'a Watch<'a>,
}

impl Unet {
    pub(super) fn load(config: &UnetConfig, reader: &ScopedReader<'_>) -> Result<Self> {
        let levels = config.levels();
        let (Some(top), Some(deepest)) = (levels.first(), levels.last()) else {
            return Err(Error::compute("a UNet has at least one level"));
        };
        let (start, embedded) = (top.width, config.time_width());
        let shape = ResnetShape { groups: config.norm_num_groups, epsilon: config.norm_eps, time: embedded };
        let mid = reader.at("mid_block");
        let resnet = |name: &str| ResnetBlock::load(&mid.at(name), shape, deepest.width, deepest.width);
        let added = config
            .added_width()
            .map(|width| TimestepEmbedding::load(&reader.at("add_embedding"), width, embedded));
        let time_embedding = reader.at("time_embedding");
        let guidance = config.guidance_width().map(|width| -> Result<_> {
            let projection = time_embedding.at("cond_proj").linear_without_bias(width, start)?;
            Ok(GuidanceProjection { width, projection })
        });
        Ok(Self {
            sinusoid: config.sinusoid(start),
            time_embedding: TimestepEmbedding::load(&time_embedding, start, embedded)?,
            guidance_projection: guidance.transpose()?,
            add_embedding: added.transpose()?,
            conv_in: reader.at("conv_in").convolution(config.in_channels, start, 1)?,
            down_blocks: load_down(&levels, config, shape, reader)?,
            mid_block: (
                resnet("resnets.0")?,
                ImageTransformer::load(&mid.at("attentions.0"), config, deepest)?,
                resnet("resnets.1")?,
            ),
            up_blocks: load_up(&levels, config, shape, reader)?,
            conv_norm_out: reader.at("conv_norm_out").group_norm(
                config.norm_num_groups,
                start,
                config.norm_eps,
            )?,
            conv_out: reader.at("conv_out").convolution(start, config.out_channels, 1)?,
        })
    }

    /// Predicts from latents `(batch, channels, height, width)` at a timestep, with prompt embeddings
    /// `(batch, tokens, width)` and, for SDXL, added conditions `(batch, width)`. `guidance` is its scale, which counts
    /// in a model that takes it as an input. Gives the latents' shape.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        time: f64,
        guidance: f64,
        prompt_embeddings: &Tensor,
        added: Option<&Tensor>,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let batch = latents.dim(0)?;
        let sines =
            Tensor::from_vec(self.sinusoid.of(time as f32), (1, self.sinusoid.width), latents.device())?;
        let sines = match &self.guidance_projection {
            Some(layer) => (sines + layer.forward(guidance, latents.device())?)?,
            None => sines,
        };
        let mut time = self.time_embedding.forward(&sines)?.repeat((batch, 1))?;
        if let (Some(layer), Some(added)) = (&self.add_embedding, added) {
            time = (time + layer.forward(added)?)?;
        }
        let context = Context { time: time.silu()?, prompt_embeddings, watch };
        let mut image = self.conv_in.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?;
        let mut skips = vec![image.clone()];
        for level in &self.down_blocks {
            image = level.down(image, &context, &mut skips)?;
        }
        let (first, transformer, second) = &self.mid_block;
        image = first.forward(&image, Some(&context.time))?;
        image = second.forward(&transformer.forward(&image, &context)?, Some(&context.time))?;
        for level in &self.up_blocks {
            image = level.up(image, &context, &mut skips)?;
        }
        let out = self.conv_out.forward(&self.conv_norm_out.forward(&image, Activation::Silu)?)?;
        Ok(out.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

impl GuidanceProjection {
    /// `(1, width of the embedded timestep)`. The scale is 0 for no guidance here, 1 elsewhere.
    fn forward(&self, guidance: f64, device: &Device) -> Result<Tensor> {
        let half = self.width / 2;
        let step = 10_000f32.ln() / (half as f32 - 1.0);
        let angle = |index: usize| (guidance as f32 - 1.0) * 1000.0 * (index as f32 * -step).exp();
        let mut embedded: Vec<f32> = (0..half).map(|index| angle(index).sin()).collect();
        embedded.extend((0..half).map(|index| angle(index).cos()));
        embedded.resize(self.width, 0.0);
        let embedded = Tensor::from_vec(embedded, (1, self.width), device)?;
        self.projection.forward(&embedded, Activation::Identity)
    }
}

fn load_down(
    levels: &[LevelConfig],
    config: &UnetConfig,
    shape: ResnetShape,
    reader: &ScopedReader<'_>,
) -> Result<Vec<Level>> {
    let mut before = levels.first().map_or(0, |level| level.width);
    let mut loaded = Vec::new();
    for (index, level) in levels.iter().enumerate() {
        let reader = reader.at(format!("down_blocks.{index}"));
        let mut blocks = Vec::new();
        for layer in 0..level.layers {
            let in_channels = if layer == 0 { before } else { level.width };
            blocks.push(Block::load(
                &reader,
                layer,
                shape,
                in_channels,
                level,
                config,
                level.down_cross_attention,
            )?);
        }
        let resize = if index + 1 < levels.len() {
            Resize::Down(reader.at("downsamplers.0.conv").convolution(level.width, level.width, 2)?)
        } else {
            Resize::None
        };
        loaded.push(Level { blocks, resize });
        before = level.width;
    }
    Ok(loaded)
}

/// Loads the up blocks from the deepest level up. Each of their blocks also takes a skip connection: from its
/// level's own blocks on the way down, and in the last one from the downsampler of the level above.
fn load_up(
    levels: &[LevelConfig],
    config: &UnetConfig,
    shape: ResnetShape,
    reader: &ScopedReader<'_>,
) -> Result<Vec<Level>> {
    let mut before = levels.last().map_or(0, |level| level.width);
    let mut loaded = Vec::new();
    for (index, level) in levels.iter().rev().enumerate() {
        let reader = reader.at(format!("up_blocks.{index}"));
        let above = levels.iter().rev().nth(index + 1).unwrap_or(level);
        let mut blocks = Vec::new();
        for layer in 0..=level.layers {
            let from_below = if layer == 0 { before } else { level.width };
            let skip = if layer == level.layers { above.width } else { level.width };
            let in_channels = from_below + skip;
            blocks.push(Block::load(
                &reader,
                layer,
                shape,
                in_channels,
                level,
                config,
                level.up_cross_attention,
            )?);
        }
        let resize = if index + 1 < levels.len() {
            Resize::Up(Upsampler::load(&reader.at("upsamplers.0"), level.width)?)
        } else {
            Resize::None
        };
        loaded.push(Level { blocks, resize });
        before = level.width;
    }
    Ok(loaded)
}

impl Block {
    fn load(
        reader: &ScopedReader<'_>,
        layer: usize,
        shape: ResnetShape,
        in_channels: usize,
        level: &LevelConfig,
        config: &UnetConfig,
        cross_attention: bool,
    ) -> Result<Self> {
        let transformer = || ImageTransformer::load(&reader.at(format!("attentions.{layer}")), config, level);
        Ok(Self {
            resnet: ResnetBlock::load(
                &reader.at(format!("resnets.{layer}")),
                shape,
                in_channels,
                level.width,
            )?,
            transformer: cross_attention.then(transformer).transpose()?,
        })
    }

    fn forward(&self, image: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        context.watch.check()?;
        let image = self.resnet.forward(image, Some(&context.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&image, context),
            None => Ok(image),
        }
    }
}

impl Level {
    /// Runs the level on the way down and pushes the output of each block, and of the downsampler, onto
    /// `skips`.
    fn down(&self, mut image: Tensor, context: &Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        for block in &self.blocks {
            image = block.forward(&image, context)?;
            skips.push(image.clone());
        }
        if let Resize::Down(convolution) = &self.resize {
            image = convolution.forward(&image)?;
            skips.push(image.clone());
        }
        Ok(image)
    }

    /// Runs the level on the way up and pops a skip connection for each block.
    fn up(&self, mut image: Tensor, context: &Context<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        for block in &self.blocks {
            if let Some(skip) = skips.pop() {
                image = Tensor::cat(&[&image, &skip], 3)?;
            }
            image = block.forward(&image, context)?;
        }
        if let (Resize::Up(upsampler), Some(next)) = (&self.resize, skips.last()) {
            // As large as the next skip connection, which is not twice as large where a side was odd.
            image = upsampler.forward(&image, next.dim(1)?, next.dim(2)?)?;
        }
        Ok(image)
    }
}
