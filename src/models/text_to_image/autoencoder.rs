//! `AutoencoderKL` (Rombach et al., arXiv 2112.10752): its configuration, and its decoder of latents into colours. The
//! encoder is left to `encoder`. The reference is diffusers.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;

use super::encoder::{Encoder, EncoderShape};
use super::layers::ScopedReader;
use super::mid_block::MidBlock;
use super::noise::Noise;
use super::pipeline::Watch;
use super::repository::{Component, MAX_LEVELS, MAX_WIDTH, Repository, invalid};
use super::resnet::{ResnetBlock, ResnetShape, Upsampler};
use crate::error::Result;
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};

/// The component of the pipeline.
pub(super) const COMPONENT: Component =
    Component { folder: "vae/", file: Component::DIFFUSERS, is_loaded: |_| true };

const EPSILON: f64 = 1e-6;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] =
    &[("act_fn", "\"silu\""), ("out_channels", "3"), ("latents_mean", "null"), ("latents_std", "null")];

/// `vae/config.json`, with the defaults of diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct AutoencoderConfig {
    block_out_channels: Vec<usize>,
    down_block_types: Option<Vec<String>>,
    up_block_types: Vec<String>,
    layers_per_block: usize,
    pub(super) latent_channels: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self {
            block_out_channels: vec![64],
            down_block_types: None,
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderConfig {
    pub(super) fn read(repository: &Repository<'_>) -> Result<Self> {
        let (path, config): (_, Self) = repository.config("vae/config.json", &["AutoencoderKL"], ONLY)?;
        config.check(&path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let levels = self.block_out_channels.len();
        if !(1..=MAX_LEVELS).contains(&levels) || self.up_block_types.len() != levels {
            let reason = format!(
                "it has {levels} block_out_channels; 1 to {MAX_LEVELS} are allowed, as many as up_block_types"
            );
            return Err(invalid(path, reason));
        }
        if self.down_block_types.as_ref().is_some_and(|types| types.len() != levels) {
            return Err(invalid(
                path,
                "it has not as many down_block_types as block_out_channels".to_owned(),
            ));
        }
        let down = self.down_block_types.iter().flatten().map(|name| (name, "DownEncoderBlock2D"));
        let up = self.up_block_types.iter().map(|name| (name, "UpDecoderBlock2D"));
        if let Some((other, known)) = down.chain(up).find(|(name, known)| name != known) {
            return Err(invalid(path, format!("the block type {other} is none of: {known}")));
        }
        let sides = self.block_out_channels.iter().chain([&self.latent_channels, &self.layers_per_block]);
        if let Some(side) = sides.into_iter().find(|side| !(1..=MAX_WIDTH).contains(*side)) {
            return Err(invalid(
                path,
                format!("a width or number of layers is {side}; 1 to {MAX_WIDTH} are allowed"),
            ));
        }
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.iter().any(|width| !width.is_multiple_of(groups)) {
            return Err(invalid(
                path,
                format!("the block_out_channels are no multiples of norm_num_groups {groups}"),
            ));
        }
        if !self.scaling_factor.is_normal() || !self.shift_factor.unwrap_or(0.0).is_finite() {
            return Err(invalid(path, "scaling_factor or shift_factor cannot be computed with".to_owned()));
        }
        Ok(())
    }

    /// Pixels along a side for each latent.
    pub(super) fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Memory that decoding to so many pixels needs besides the weights: the input, the norm and the output
    /// of the largest block, which is at some resolution and has the channels of the level below it.
    pub(super) fn scratch(&self, pixels: usize) -> Bytes {
        let widest = |level: usize, width: &usize| {
            let below = self.block_out_channels.get(level + 1).unwrap_or(width);
            (pixels >> (2 * level)).saturating_mul(*width.max(below))
        };
        let numbers =
            self.block_out_channels.iter().enumerate().map(|(level, width)| widest(level, width)).max();
        Bytes((numbers.unwrap_or_default() as u64).saturating_mul(3 * 4))
    }

    pub(super) fn load(&self, reader: &ScopedReader<'_>) -> Result<Autoencoder> {
        let decoder = reader.at("decoder");
        let shape = ResnetShape { groups: self.norm_num_groups, epsilon: EPSILON, time: 0 };
        let channels = self.latent_channels;
        let widths: Vec<usize> = self.block_out_channels.iter().rev().copied().collect();
        let deepest = widths.first().copied().unwrap_or_default();
        let mut up_blocks = Vec::new();
        let mut in_channels = deepest;
        for (index, &out_channels) in widths.iter().enumerate() {
            let reader = decoder.at(format!("up_blocks.{index}"));
            let resnets = (0..=self.layers_per_block).map(|layer| {
                let in_channels = if layer == 0 { in_channels } else { out_channels };
                ResnetBlock::load(&reader.at(format!("resnets.{layer}")), shape, in_channels, out_channels)
            });
            let resnets = resnets.collect::<Result<_>>()?;
            let upsampler =
                (index + 1 < widths.len()).then(|| Upsampler::load(&reader.at("upsamplers.0"), out_channels));
            up_blocks.push(UpBlock { resnets, upsampler: upsampler.transpose()? });
            in_channels = out_channels;
        }
        let encoder = EncoderShape {
            widths: &self.block_out_channels,
            layers_per_block: self.layers_per_block,
            latent_channels: channels,
            blocks: shape,
            has_attention: self.mid_block_add_attention,
            has_quant_conv: self.use_quant_conv,
        };
        // A repository may hold the decoder alone.
        let has_encoder = reader.contains("encoder.conv_in.weight");
        Ok(Autoencoder {
            encoder: has_encoder.then(|| Encoder::load(reader, &encoder)).transpose()?,
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor.unwrap_or(0.0),
            post_quant_conv: self
                .use_post_quant_conv
                .then(|| reader.at("post_quant_conv").pointwise(channels, channels))
                .transpose()?,
            conv_in: decoder.at("conv_in").convolution(channels, deepest, 1)?,
            mid_block: MidBlock::load(
                &decoder.at("mid_block"),
                shape,
                deepest,
                self.mid_block_add_attention,
            )?,
            up_blocks,
            conv_norm_out: decoder.at("conv_norm_out").group_norm(
                self.norm_num_groups,
                in_channels,
                EPSILON,
            )?,
            conv_out: decoder.at("conv_out").convolution(in_channels, 3, 1)?,
        })
    }
}

/// Loaded autoencoder.
pub(super) struct Autoencoder {
    encoder: Option<Encoder>,
    scaling_factor: f64,
    shift_factor: f64,
    post_quant_conv: Option<Linear>,
    conv_in: Convolution,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Upsampler>,
}

impl Autoencoder {
    /// True if the files have the encoder too.
    pub(super) fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Draws latents as a scheduler has them for colours `(1, 3, height, width)` from -1 to 1; nothing without an encoder.
    pub(super) fn encode(
        &self,
        colours: &Tensor,
        noise: &mut Noise,
        watch: &Watch<'_>,
    ) -> Result<Option<Tensor>> {
        let Some(encoder) = &self.encoder else { return Ok(None) };
        let latents = encoder.encode(colours, noise, watch)?;
        Ok(Some(((latents - self.shift_factor)? * self.scaling_factor)?))
    }

    /// Decodes latents as the scheduler left them, `(batch, channels, height, width)`, to colours `(batch, 3,
    /// height · scale, width · scale)`.
    pub(super) fn decode(&self, latents: &Tensor, watch: &Watch<'_>) -> Result<Tensor> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        let mut hidden = latents.permute((0, 2, 3, 1))?.contiguous()?;
        if let Some(layer) = &self.post_quant_conv {
            hidden = layer.forward(&hidden, Activation::Identity)?;
        }
        hidden = self.mid_block.forward(&self.conv_in.forward(&hidden)?, watch)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                watch.check()?;
                hidden = resnet.forward(&hidden, None)?;
            }
            if let Some(upsampler) = &block.upsampler {
                watch.check()?;
                let (_, height, width, _) = hidden.dims4()?;
                hidden = upsampler.forward(&hidden, 2 * height, 2 * width)?;
            }
        }
        watch.check()?;
        let colours = self.conv_out.forward(&self.conv_norm_out.forward(&hidden, Activation::Silu)?)?;
        Ok(colours.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
