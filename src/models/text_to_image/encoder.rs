//! Encoder of `AutoencoderKL` (Rombach et al., arXiv 2112.10752): colours to a normal distribution of latents for each
//! place. The reference is diffusers.

use candle_core::Tensor;

use super::layers::ScopedReader;
use super::mid_block::MidBlock;
use super::noise::Noise;
use super::pipeline::Watch;
use super::resnet::{ResnetBlock, ResnetShape};
use crate::error::Result;
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};

/// Range of the logarithm of the variance, as the reference has it.
const LOG_VARIANCES: (f64, f64) = (-30.0, 20.0);

/// Shape of an encoder.
pub(super) struct EncoderShape<'a> {
    /// Channels of each level, that of the image first.
    pub(super) widths: &'a [usize],
    pub(super) layers_per_block: usize,
    pub(super) latent_channels: usize,
    pub(super) blocks: ResnetShape,
    pub(super) has_attention: bool,
    /// True for a last layer over the channels of the distribution.
    pub(super) has_quant_conv: bool,
}

/// Loaded encoder.
pub(super) struct Encoder {
    conv_in: Convolution,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
    quant_conv: Option<Linear>,
}

struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Convolution>,
}

impl Encoder {
    /// Reads the encoder of an autoencoder's weights.
    pub(super) fn load(root: &ScopedReader<'_>, shape: &EncoderShape<'_>) -> Result<Self> {
        let reader = root.at("encoder");
        let EncoderShape { widths, layers_per_block, latent_channels, blocks, .. } = *shape;
        let first = widths.first().copied().unwrap_or_default();
        let mut down_blocks = Vec::new();
        let mut in_channels = first;
        for (index, &out_channels) in widths.iter().enumerate() {
            let reader = reader.at(format!("down_blocks.{index}"));
            let resnets = (0..layers_per_block).map(|layer| {
                let in_channels = if layer == 0 { in_channels } else { out_channels };
                ResnetBlock::load(&reader.at(format!("resnets.{layer}")), blocks, in_channels, out_channels)
            });
            let resnets = resnets.collect::<Result<_>>()?;
            let downsampler = || reader.at("downsamplers.0.conv").unpadded_convolution(out_channels, 2);
            let downsampler = (index + 1 < widths.len()).then(downsampler).transpose()?;
            down_blocks.push(DownBlock { resnets, downsampler });
            in_channels = out_channels;
        }
        let moments = 2 * latent_channels;
        let quant_conv = || root.at("quant_conv").pointwise(moments, moments);
        Ok(Self {
            conv_in: reader.at("conv_in").convolution(3, first, 1)?,
            down_blocks,
            mid_block: MidBlock::load(&reader.at("mid_block"), blocks, in_channels, shape.has_attention)?,
            conv_norm_out: reader.at("conv_norm_out").group_norm(
                blocks.groups,
                in_channels,
                blocks.epsilon,
            )?,
            conv_out: reader.at("conv_out").convolution(in_channels, moments, 1)?,
            quant_conv: shape.has_quant_conv.then(quant_conv).transpose()?,
        })
    }

    /// Draws latents `(batch, channels, height / scale, width / scale)` for colours `(batch, 3, height, width)` from -1
    /// to 1.
    pub(super) fn encode(&self, colours: &Tensor, noise: &mut Noise, watch: &Watch<'_>) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(&colours.permute((0, 2, 3, 1))?.contiguous()?)?;
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                watch.check()?;
                hidden = resnet.forward(&hidden, None)?;
            }
            if let Some(downsampler) = &block.downsampler {
                watch.check()?;
                // One pixel at the far sides alone.
                let padded = hidden.pad_with_zeros(1, 0, 1)?.pad_with_zeros(2, 0, 1)?;
                hidden = downsampler.forward(&padded.contiguous()?)?;
            }
        }
        hidden = self.mid_block.forward(&hidden, watch)?;
        watch.check()?;
        let mut moments = self.conv_out.forward(&self.conv_norm_out.forward(&hidden, Activation::Silu)?)?;
        if let Some(layer) = &self.quant_conv {
            moments = layer.forward(&moments, Activation::Identity)?;
        }
        let moments = moments.permute((0, 3, 1, 2))?.contiguous()?;
        let channels = moments.dim(1)? / 2;
        let mean = moments.narrow(1, 0, channels)?;
        let (low, high) = LOG_VARIANCES;
        let deviation = (moments.narrow(1, channels, channels)?.clamp(low, high)? * 0.5)?.exp()?;
        let drawn = noise.next(mean.dims(), mean.device())?;
        Ok((mean + (deviation * drawn)?)?)
    }
}
