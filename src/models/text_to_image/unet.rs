//! `UNet2DConditionModel`, which predicts the noise in latents (Ronneberger et al., arXiv 1505.04597; Rombach et al.,
//! arXiv 2112.10752): levels of residual blocks and transformers on the way down, one in the middle, and the same on
//! the way up, each fed with what the way down had there. The reference is diffusers.

mod config;
mod transformer;

use candle_core::Tensor;

use super::layers::{ScopedReader, SinusoidalEmbedding, TimestepEmbedding};
use super::pipeline::Watch;
use super::repository::Part;
use super::resnet::{ResnetBlock, ResnetShape, Upsampler};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Convolution, GroupNorm};
use config::LevelConfig;
pub(super) use config::UnetConfig;
use transformer::ImageTransformer;

/// Where its weights are.
pub(super) const PART: Part = Part { folder: "unet/", file: Part::DIFFUSERS, uses: |_| true };

/// The loaded network.
pub(super) struct Unet {
    sinusoid: SinusoidalEmbedding,
    time: TimestepEmbedding,
    /// For what the model is told beside the tokens.
    added: Option<TimestepEmbedding>,
    first: Convolution,
    down: Vec<Level>,
    middle: (ResnetBlock, ImageTransformer, ResnetBlock),
    up: Vec<Level>,
    norm: GroupNorm,
    last: Convolution,
}

/// Blocks of one resolution.
struct Level {
    blocks: Vec<Block>,
    resize: Resize,
}

struct Block {
    resnet: ResnetBlock,
    transformer: Option<ImageTransformer>,
}

/// How a level hands over to the next.
enum Resize {
    None,
    Down(Convolution),
    Up(Upsampler),
}

/// What goes through the whole network beside the image.
struct Context<'a> {
    /// The activated embedding of the time, `(batch, width)`.
    time: Tensor,
    /// `(batch, tokens, width)`.
    hidden: &'a Tensor,
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
        Ok(Self {
            sinusoid: config.sinusoid(start),
            time: TimestepEmbedding::load(&reader.at("time_embedding"), start, embedded)?,
            added: added.transpose()?,
            first: reader.at("conv_in").convolution(config.in_channels, start, 1)?,
            down: load_down(&levels, config, shape, reader)?,
            middle: (
                resnet("resnets.0")?,
                ImageTransformer::load(&mid.at("attentions.0"), config, deepest)?,
                resnet("resnets.1")?,
            ),
            up: load_up(&levels, config, shape, reader)?,
            norm: reader.at("conv_norm_out").group_norm(config.norm_num_groups, start, config.norm_eps)?,
            last: reader.at("conv_out").convolution(start, config.out_channels, 1)?,
        })
    }

    /// The prediction for latents `(batch, channels, height, width)` at a time, with tokens' vectors `(batch, tokens,
    /// width)` and, where the model wants them, added vectors `(batch, width)`.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        time: f64,
        hidden: &Tensor,
        added: Option<&Tensor>,
        watch: &Watch<'_>,
    ) -> Result<Tensor> {
        let batch = latents.dim(0)?;
        let sines =
            Tensor::from_vec(self.sinusoid.of(time as f32), (1, self.sinusoid.width), latents.device())?;
        let mut time = self.time.forward(&sines)?.repeat((batch, 1))?;
        if let (Some(layer), Some(added)) = (&self.added, added) {
            time = (time + layer.forward(added)?)?;
        }
        let context = Context { time: time.silu()?, hidden, watch };
        let mut image = self.first.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?;
        let mut kept = vec![image.clone()];
        for level in &self.down {
            image = level.down(image, &context, &mut kept)?;
        }
        let (first, transformer, second) = &self.middle;
        image = first.forward(&image, Some(&context.time))?;
        image = second.forward(&transformer.forward(&image, &context)?, Some(&context.time))?;
        for level in &self.up {
            image = level.up(image, &context, &mut kept)?;
        }
        let out = self.last.forward(&self.norm.forward(&image, Activation::Silu)?)?;
        Ok(out.permute((0, 3, 1, 2))?.contiguous()?)
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
            let inside = if layer == 0 { before } else { level.width };
            blocks.push(Block::load(&reader, layer, shape, inside, level, config, level.down_attends)?);
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

/// From the deepest level up. Each block also takes what the way down had: its level's own blocks, and before them the
/// handover from the level above.
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
            let kept = if layer == level.layers { above.width } else { level.width };
            let inside = from_below + kept;
            blocks.push(Block::load(&reader, layer, shape, inside, level, config, level.up_attends)?);
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
        inside: usize,
        level: &LevelConfig,
        config: &UnetConfig,
        attends: bool,
    ) -> Result<Self> {
        let transformer = || ImageTransformer::load(&reader.at(format!("attentions.{layer}")), config, level);
        Ok(Self {
            resnet: ResnetBlock::load(&reader.at(format!("resnets.{layer}")), shape, inside, level.width)?,
            transformer: attends.then(transformer).transpose()?,
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
    /// On the way down; what comes out of each block, and of the handover, is kept for the way up.
    fn down(&self, mut image: Tensor, context: &Context<'_>, kept: &mut Vec<Tensor>) -> Result<Tensor> {
        for block in &self.blocks {
            image = block.forward(&image, context)?;
            kept.push(image.clone());
        }
        if let Resize::Down(convolution) = &self.resize {
            image = convolution.forward(&image)?;
            kept.push(image.clone());
        }
        Ok(image)
    }

    /// On the way up; takes what was kept, the last first.
    fn up(&self, mut image: Tensor, context: &Context<'_>, kept: &mut Vec<Tensor>) -> Result<Tensor> {
        for block in &self.blocks {
            if let Some(kept) = kept.pop() {
                image = Tensor::cat(&[&image, &kept], 3)?;
            }
            image = block.forward(&image, context)?;
        }
        if let (Resize::Up(upsampler), Some(next)) = (&self.resize, kept.last()) {
            // As large as what is kept above, which is not twice as large where a side was odd.
            image = upsampler.forward(&image, next.dim(1)?, next.dim(2)?)?;
        }
        Ok(image)
    }
}
