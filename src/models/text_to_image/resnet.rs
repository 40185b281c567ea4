//! The residual block of convolutions that the UNet and the autoencoder share, and the nearest-neighbour upsampling
//! between their levels. Images have their channels last: `(batch, height, width, channels)`.

use candle_core::Tensor;

use super::layers::ScopedReader;
use crate::error::Result;
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};

/// Norm, activation and convolution, twice, beside the way around them (He et al., arXiv 1603.05027).
pub(super) struct ResnetBlock {
    first_norm: GroupNorm,
    first: Convolution,
    /// What the time adds to each channel.
    time: Option<Linear>,
    second_norm: GroupNorm,
    second: Convolution,
    /// Where the way around has another number of channels.
    around: Option<Linear>,
}

/// What the blocks of one network have in common.
#[derive(Clone, Copy)]
pub(super) struct ResnetShape {
    pub(super) groups: usize,
    pub(super) epsilon: f64,
    /// Width of the time's embedding; 0 where there is none.
    pub(super) time: usize,
}

impl ResnetBlock {
    pub(super) fn load(
        reader: &ScopedReader<'_>,
        shape: ResnetShape,
        inside: usize,
        outside: usize,
    ) -> Result<Self> {
        let ResnetShape { groups, epsilon, time } = shape;
        let time = (time > 0).then(|| reader.at("time_emb_proj").linear(time, outside)).transpose()?;
        let around = (inside != outside).then(|| reader.at("conv_shortcut").pointwise(inside, outside));
        Ok(Self {
            first_norm: reader.at("norm1").group_norm(groups, inside, epsilon)?,
            first: reader.at("conv1").convolution(inside, outside, 1)?,
            time,
            second_norm: reader.at("norm2").group_norm(groups, outside, epsilon)?,
            second: reader.at("conv2").convolution(outside, outside, 1)?,
            around: around.transpose()?,
        })
    }

    /// `time` is the activated embedding, `(batch, width)`.
    pub(super) fn forward(&self, input: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut hidden = self.first.forward(&self.first_norm.forward(input, Activation::Silu)?)?;
        if let (Some(layer), Some(time)) = (&self.time, time) {
            let shift = layer.forward(time, Activation::Identity)?;
            let (batch, channels) = shift.dims2()?;
            hidden = hidden.broadcast_add(&shift.reshape((batch, 1, 1, channels))?)?;
        }
        let hidden = self.second.forward(&self.second_norm.forward(&hidden, Activation::Silu)?)?;
        match &self.around {
            Some(layer) => Ok((layer.forward(input, Activation::Identity)? + hidden)?),
            None => Ok((input + hidden)?),
        }
    }
}

/// Enlarges an image to this height and width by repeating the nearest pixels.
pub(super) fn enlarge(image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, rows, columns, _) = image.dims4()?;
    let index = |from: usize, to: usize| -> Result<Tensor> {
        let nearest: Vec<u32> = (0..to).map(|index| (index * from / to.max(1)) as u32).collect();
        Ok(Tensor::from_vec(nearest, to, image.device())?)
    };
    Ok(image.index_select(&index(rows, height)?, 1)?.index_select(&index(columns, width)?, 2)?)
}

/// The convolution after an enlargement.
pub(super) struct Upsampler(Convolution);

impl Upsampler {
    pub(super) fn load(reader: &ScopedReader<'_>, channels: usize) -> Result<Self> {
        Ok(Self(reader.at("conv").convolution(channels, channels, 1)?))
    }

    /// To this height and width.
    pub(super) fn forward(&self, image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        self.0.forward(&enlarge(image, height, width)?)
    }
}
