//! Convolution over images whose channels are last, `(batch, height, width, channels)`. On the processor the
//! patches of some pixels at a time are gathered (im2col), which in this layout copies whole runs, and
//! multiplied with the weights; on an accelerator it is candle's own operation.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::cpu::{threads, with_values};
use super::matmul::{Matrix, Output, multiply};
use crate::error::{Error, Result};

/// Numbers of the patches that are gathered at a time.
const GATHERED: usize = 1 << 19;
/// Fewest pixels whose patches are gathered at a time, so that a product is worth its start.
const FEWEST: usize = 64;

/// Convolution with a square kernel and zero padding.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    /// On the processor `(side · side · in, out)`, elsewhere `(out, in, side, side)`.
    weight: Tensor,
    bias: Tensor,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    side: usize,
    stride: usize,
    padding: usize,
    in_channels: usize,
    out_channels: usize,
}

impl Convolution {
    /// Builds the layer from a weight as files have it, `(out, in, side, side)`, none of them 0, and a bias,
    /// `(out)`. A `stride` of 0 counts as 1.
    pub(crate) fn new(weight: &Tensor, bias: Tensor, stride: usize, padding: usize) -> Result<Self> {
        let (out_channels, in_channels, side, _) = weight.dims4()?;
        if weight.elem_count() == 0 || bias.dims() != [out_channels] {
            return Err(mismatch());
        }
        let shape = Shape { side, stride: stride.max(1), padding, in_channels, out_channels };
        let weight = if weight.device().is_cpu() {
            weight.permute((2, 3, 1, 0))?.contiguous()?.reshape((side * side * in_channels, out_channels))?
        } else {
            weight.clone()
        };
        Ok(Self { weight, bias, shape })
    }

    /// Convolves `(batch, height, width, in)` to `(batch, height / stride, width / stride, out)`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if input.device().is_cpu() { self.on_cpu(input) } else { self.on_any(input) }
    }

    fn on_any(&self, input: &Tensor) -> Result<Tensor> {
        let Shape { stride, padding, out_channels, .. } = self.shape;
        let input = input.permute((0, 3, 1, 2))?.contiguous()?;
        let out = input.conv2d(&self.weight, padding, stride, 1, 1)?;
        let out = out.broadcast_add(&self.bias.reshape((1, out_channels, 1, 1))?)?;
        Ok(out.permute((0, 2, 3, 1))?.contiguous()?)
    }

    fn on_cpu(&self, input: &Tensor) -> Result<Tensor> {
        let (batch, height, width, in_channels) = input.dims4()?;
        let shape = self.shape;
        let (Some(down), Some(across)) = (shape.places(height), shape.places(width)) else {
            return Err(mismatch());
        };
        if in_channels != shape.in_channels {
            return Err(mismatch());
        }
        let out_channels = shape.out_channels;
        let pixels = batch * down * across;
        let mut out = with_values(&self.bias, |bias| bias.repeat(pixels))?;
        let patch = shape.side * shape.side * in_channels;
        let at_a_time = (GATHERED / patch.max(1)).max(FEWEST).min(pixels.div_ceil(threads()).max(1));
        with_values(input, |input| {
            with_values(&self.weight, |weight| {
                let image = Image { values: input, height, width, down, across };
                let run = |(piece, out): (usize, &mut [f32])| {
                    let count = out.len() / out_channels;
                    let mut patches = vec![0.0; count * patch];
                    shape.gather(image, piece * at_a_time, &mut patches);
                    let left = Matrix::rows(&patches, count, patch, patch);
                    let right = Matrix::rows(weight, patch, out_channels, out_channels);
                    multiply((out, out_channels), Output::Add, left, right, 1.0, 1);
                };
                match threads() {
                    1 => out.chunks_mut(at_a_time * out_channels).enumerate().for_each(run),
                    _ => out.par_chunks_mut(at_a_time * out_channels).enumerate().for_each(run),
                }
            })
        })??;
        Ok(Tensor::from_vec(out, (batch, down, across, out_channels), &Device::Cpu)?)
    }
}

/// Images one after another, and the output size of each.
#[derive(Clone, Copy)]
struct Image<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
    down: usize,
    across: usize,
}

impl Shape {
    /// Output pixels along a side.
    fn places(self, side: usize) -> Option<usize> {
        Some((side + 2 * self.padding).checked_sub(self.side)? / self.stride + 1)
    }

    /// Copies the patches of the output pixels from `first` on, into zeros (im2col).
    fn gather(self, image: Image<'_>, first: usize, patches: &mut [f32]) {
        let Self { side, stride, padding, in_channels, .. } = self;
        for (pixel, patch) in patches.chunks_exact_mut(side * side * in_channels).enumerate() {
            let pixel = first + pixel;
            let (row, column) = (pixel / image.across, pixel % image.across);
            let (picture, row) = (row / image.down, row % image.down);
            // Columns of the image under the window, and where they begin in it.
            let left = (column * stride).saturating_sub(padding);
            let skipped = padding.saturating_sub(column * stride);
            let right = (column * stride + side).saturating_sub(padding).min(image.width);
            let count = right.saturating_sub(left);
            for (window, line) in patch.chunks_exact_mut(side * in_channels).enumerate() {
                let Some(source) = (row * stride + window).checked_sub(padding) else { continue };
                if source >= image.height || count == 0 {
                    continue;
                }
                let from = ((picture * image.height + source) * image.width + left) * in_channels;
                let to = skipped * in_channels;
                line[to..to + count * in_channels]
                    .copy_from_slice(&image.values[from..from + count * in_channels]);
            }
        }
    }
}

fn mismatch() -> Error {
    Error::compute("an image does not fit its convolution")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_own_whatever_the_shape_and_the_threads() {
        let check = || {
            for (height, width, side, stride, padding) in [
                (9, 7, 3, 1, 1),
                (8, 8, 3, 2, 1),
                (7, 5, 3, 2, 1),
                (5, 5, 1, 1, 0),
                (1, 1, 3, 1, 1),
                (8, 8, 2, 2, 0),
            ] {
                let image = random(0.0, 1.0, (3, height, width, 5));
                let weight = random(0.0, 1.0, (6, 5, side, side));
                let bias = random(0.0, 1.0, 6);
                let ours = Convolution::new(&weight, bias.clone(), stride, padding).unwrap();
                let theirs = Convolution { weight, ..ours.clone() }.on_any(&image).unwrap();
                let ours = ours.forward(&image).unwrap();
                assert_eq!(ours.dims(), theirs.dims());
                let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-4);
            }
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
    }

    #[test]
    fn an_image_that_does_not_fit_is_refused() {
        let weight = Tensor::zeros((6, 5, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let bias = Tensor::zeros(6, candle_core::DType::F32, &Device::Cpu).unwrap();
        let convolution = Convolution::new(&weight, bias, 1, 0).unwrap();
        for shape in [(1, 2, 2, 5), (1, 4, 4, 4)] {
            let image = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            assert!(convolution.forward(&image).is_err());
        }
    }
}
