//! Residual block of convolutions, `ResnetBlock2D` of diffusers, which the UNet and the autoencoder share,
//! and the upsampling between their levels. Images have their channels last: `(batch, height, width,
//! channels)`.

use candle_core::Tensor;

use super::layers::ScopedReader;
use crate::error::Result;
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};

/// Norm, activation and convolution, twice, with a residual connection (He et al., arXiv 1603.05027).
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Convolution,
    /// Projects the timestep embedding to a shift of each channel.
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Convolution,
    /// Changes the number of channels of the residual connection.
    conv_shortcut: Option<Linear>,
}

/// Settings that the blocks of one network share.
#[derive(Clone, Copy)]
pub(super) struct ResnetShape {
    pub(super) groups: usize,
    pub(super) epsilon: f64,
    /// Width of the timestep embedding; 0 without one.
    pub(super) time: usize,
}

impl ResnetBlock {
    pub(super) fn load(
        reader: &ScopedReader<'_>,
        shape: ResnetShape,
        in_channels: usize,
        out_channels: usize,
    ) -> Result<Self> {
        let ResnetShape { groups, epsilon, time } = shape;
        let time = (time > 0).then(|| reader.at("time_emb_proj").linear(time, out_channels)).transpose()?;
        let shortcut = (in_channels != out_channels)
            .then(|| reader.at("conv_shortcut").pointwise(in_channels, out_channels));
        Ok(Self {
            norm1: reader.at("norm1").group_norm(groups, in_channels, epsilon)?,
            conv1: reader.at("conv1").convolution(in_channels, out_channels, 1)?,
            time_emb_proj: time,
            norm2: reader.at("norm2").group_norm(groups, out_channels, epsilon)?,
            conv2: reader.at("conv2").convolution(out_channels, out_channels, 1)?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    /// `time` is the timestep embedding after its activation, `(batch, width)`. Gives `(batch, height, width,
    /// out_channels)`.
    pub(super) fn forward(&self, input: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut hidden = self.conv1.forward(&self.norm1.forward(input, Activation::Silu)?)?;
        if let (Some(layer), Some(time)) = (&self.time_emb_proj, time) {
            let shift = layer.forward(time, Activation::Identity)?;
            let (batch, channels) = shift.dims2()?;
            hidden = hidden.broadcast_add(&shift.reshape((batch, 1, 1, channels))?)?;
        }
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden, Activation::Silu)?)?;
        match &self.conv_shortcut {
            Some(layer) => Ok((layer.forward(input, Activation::Identity)? + hidden)?),
            None => Ok((input + hidden)?),
        }
    }
}

/// Resizes an image to a height and width by nearest-neighbour interpolation.
pub(super) fn upsample_nearest(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, rows, columns, _) = image.dims4()?;
    let index = |from: usize, to: usize| -> Result<Tensor> {
        let nearest: Vec<u32> = (0..to).map(|index| (index * from / to.max(1)) as u32).collect();
        Ok(Tensor::from_vec(nearest, to, image.device())?)
    };
    Ok(image.index_select(&index(rows, height)?, 1)?.index_select(&index(columns, width)?, 2)?)
}

/// Nearest-neighbour upsampling and a convolution, `Upsample2D` of diffusers.
pub(super) struct Upsampler(Convolution);

impl Upsampler {
    pub(super) fn load(reader: &ScopedReader<'_>, channels: usize) -> Result<Self> {
        Ok(Self(reader.at("conv").convolution(channels, channels, 1)?))
    }

    /// Upsamples to this height and width.
    pub(super) fn forward(&self, image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        self.0.forward(&upsample_nearest(image, height, width)?)
    }
}
