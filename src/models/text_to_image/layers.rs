//! The layers that the parts of a pipeline are built of, by their names in the weights.

use std::fmt::Display;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{Activation, Convolution, GroupNorm, Linear};
use crate::weights::WeightReader;

/// A place in the weights: the beginning of the names that follow.
#[derive(Clone)]
pub(super) struct Place<'a> {
    reader: &'a WeightReader<'a>,
    prefix: String,
}

impl<'a> Place<'a> {
    /// Where names have nothing before them.
    pub(super) fn root(reader: &'a WeightReader<'a>) -> Self {
        Self { reader, prefix: String::new() }
    }

    /// The place `name` within this one.
    pub(super) fn at(&self, name: impl Display) -> Self {
        Self { reader: self.reader, prefix: format!("{}{name}.", self.prefix) }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.reader.contains(&format!("{}{name}", self.prefix))
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.reader.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// `weight (out, in)` and `bias (out)`.
    pub(super) fn linear(&self, inside: usize, outside: usize) -> Result<Linear> {
        Linear::new(&self.tensor("weight", &[outside, inside])?, Some(self.tensor("bias", &[outside])?))
    }

    /// `weight (out, in)` alone.
    pub(super) fn linear_without_bias(&self, inside: usize, outside: usize) -> Result<Linear> {
        Linear::new(&self.tensor("weight", &[outside, inside])?, None)
    }

    /// A convolution of one pixel each, `weight (out, in, 1, 1)`, which is a linear layer.
    pub(super) fn pointwise(&self, inside: usize, outside: usize) -> Result<Linear> {
        let weight = self.tensor("weight", &[outside, inside, 1, 1])?.reshape((outside, inside))?;
        Linear::new(&weight, Some(self.tensor("bias", &[outside])?))
    }

    /// A convolution of three by three pixels, with one pixel of zeros around the image.
    pub(super) fn convolution(&self, inside: usize, outside: usize, stride: usize) -> Result<Convolution> {
        let weight = self.tensor("weight", &[outside, inside, 3, 3])?;
        Convolution::new(&weight, self.tensor("bias", &[outside])?, stride, 1)
    }

    pub(super) fn group_norm(&self, groups: usize, channels: usize, epsilon: f64) -> Result<GroupNorm> {
        let (weight, bias) = (self.tensor("weight", &[channels])?, self.tensor("bias", &[channels])?);
        GroupNorm::new(weight, bias, groups, epsilon)
    }

    pub(super) fn layer_norm(&self, width: usize, epsilon: f64) -> Result<Norm> {
        let (weight, bias) = (self.tensor("weight", &[width])?, self.tensor("bias", &[width])?);
        Ok(Norm { weight, bias, epsilon: epsilon as f32 })
    }
}

/// A layer norm of the last dimension.
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Norm {
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::layer_norm(input, &self.weight, &self.bias, self.epsilon)?)
    }
}

/// A linear layer on the last dimension of a tensor of any shape.
pub(super) fn linear(layer: &Linear, input: &Tensor, activation: Activation) -> Result<Tensor> {
    let mut shape = input.dims().to_vec();
    let width = shape.pop().unwrap_or_default();
    let rows: usize = shape.iter().product();
    let out = layer.forward(&input.reshape((rows, width))?, activation)?;
    shape.push(out.dim(1)?);
    Ok(out.reshape(shape)?)
}

/// The sines and cosines of a time (Ho et al., arXiv 2006.11239), `(width)`, computed in 32 bits as the reference does,
/// because the largest arguments are in the hundreds.
pub(super) struct Sinusoid {
    pub(super) width: usize,
    /// Cosines before sines.
    pub(super) flip: bool,
    pub(super) shift: f32,
}

impl Sinusoid {
    pub(super) fn of(&self, time: f32) -> Vec<f32> {
        let half = self.width / 2;
        let angle = |index: usize| {
            let exponent = -(10_000f32.ln()) * index as f32 / (half as f32 - self.shift);
            time * exponent.exp()
        };
        let sines = (0..half).map(|index| angle(index).sin());
        let cosines = (0..half).map(|index| angle(index).cos());
        let mut out: Vec<f32> =
            if self.flip { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
        out.resize(self.width, 0.0);
        out
    }
}
