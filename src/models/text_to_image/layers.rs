//! Layers that the components of a pipeline are built of, and the reader that loads them by their names in
//! the weights.

use std::fmt::Display;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{Activation, Convolution, GroupNorm, LayerNorm, Linear, scaled_dot_product_attention};
use crate::weights::WeightReader;

/// Reads tensors whose names begin with one prefix, like a `VarBuilder` of candle-nn.
#[derive(Clone)]
pub(super) struct ScopedReader<'a> {
    reader: &'a WeightReader<'a>,
    prefix: String,
}

impl<'a> ScopedReader<'a> {
    /// Reader without a prefix.
    pub(super) fn root(reader: &'a WeightReader<'a>) -> Self {
        Self { reader, prefix: String::new() }
    }

    /// Reader of the names below `name`.
    pub(super) fn at(&self, name: impl Display) -> Self {
        Self { reader: self.reader, prefix: format!("{}{name}.", self.prefix) }
    }

    /// Notes that a tensor, which may be there, is not needed.
    pub(super) fn leave(&self, name: &str) {
        self.reader.leave(&format!("{}{name}", self.prefix));
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.reader.contains(&format!("{}{name}", self.prefix))
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.reader.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// Linear layer of `weight (out, in)` and `bias (out)`.
    pub(super) fn linear(&self, in_dim: usize, out_dim: usize) -> Result<Linear> {
        Linear::new(&self.tensor("weight", &[out_dim, in_dim])?, Some(self.tensor("bias", &[out_dim])?))
    }

    /// Linear layer of `weight (out, in)` alone.
    pub(super) fn linear_without_bias(&self, in_dim: usize, out_dim: usize) -> Result<Linear> {
        Linear::new(&self.tensor("weight", &[out_dim, in_dim])?, None)
    }

    /// Convolution with a kernel of one pixel, `weight (out, in, 1, 1)`, as the linear layer that it is.
    pub(super) fn pointwise(&self, in_channels: usize, out_channels: usize) -> Result<Linear> {
        let weight = self
            .tensor("weight", &[out_channels, in_channels, 1, 1])?
            .reshape((out_channels, in_channels))?;
        Linear::new(&weight, Some(self.tensor("bias", &[out_channels])?))
    }

    /// Convolution with a kernel of 3 by 3 pixels and a padding of one.
    pub(super) fn convolution(
        &self,
        in_channels: usize,
        out_channels: usize,
        stride: usize,
    ) -> Result<Convolution> {
        let weight = self.tensor("weight", &[out_channels, in_channels, 3, 3])?;
        Convolution::new(&weight, self.tensor("bias", &[out_channels])?, stride, 1)
    }

    /// The same without padding, from as many channels to as many.
    pub(super) fn unpadded_convolution(&self, channels: usize, stride: usize) -> Result<Convolution> {
        let weight = self.tensor("weight", &[channels, channels, 3, 3])?;
        Convolution::new(&weight, self.tensor("bias", &[channels])?, stride, 0)
    }

    /// A padded one without a bias, from as many channels to as many.
    pub(super) fn convolution_without_bias(&self, channels: usize, stride: usize) -> Result<Convolution> {
        let weight = self.tensor("weight", &[channels, channels, 3, 3])?;
        let bias = Tensor::zeros(channels, weight.dtype(), weight.device())?;
        Convolution::new(&weight, bias, stride, 1)
    }

    pub(super) fn group_norm(&self, groups: usize, channels: usize, epsilon: f64) -> Result<GroupNorm> {
        let (weight, bias) = (self.tensor("weight", &[channels])?, self.tensor("bias", &[channels])?);
        GroupNorm::new(weight, bias, groups, epsilon)
    }

    pub(super) fn layer_norm(&self, width: usize, epsilon: f64) -> Result<LayerNorm> {
        let (weight, bias) = (self.tensor("weight", &[width])?, self.tensor("bias", &[width])?);
        Ok(LayerNorm { weight, bias, epsilon })
    }

    pub(super) fn rms_norm(&self, width: usize, epsilon: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.tensor("weight", &[width])?, epsilon })
    }
}

/// Multi-head attention with its projections.
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) out: Linear,
    pub(super) heads: usize,
    pub(super) scale: f64,
}

impl Attention {
    /// Attends from `rows`, `(batch, rows, width)`, to `context`, `(batch, others, context width)`, which is
    /// the same for self-attention. `bias`, `(heads, rows, others)`, is added to the scores. Gives `(batch,
    /// rows, width)`.
    pub(super) fn forward(&self, rows: &Tensor, context: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let query = self.query.forward(rows, Activation::Identity)?;
        let key = self.key.forward(context, Activation::Identity)?;
        let value = self.value.forward(context, Activation::Identity)?;
        let heads = scaled_dot_product_attention(&query, &key, &value, self.heads, self.scale, bias)?;
        self.out.forward(&heads, Activation::Identity)
    }
}

/// Feed-forward layer: `down(activation(up(x)))`, or `down(activation(gate(x)) · up(x))` where it has a gate
/// (Shazeer, arXiv 2002.05202).
pub(super) struct FeedForward {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) activation: Activation,
    pub(super) down: Linear,
}

impl FeedForward {
    /// `(…, width)` to the same shape.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let hidden = match &self.gate {
            Some(gate) => {
                let gate = gate.forward(rows, self.activation)?;
                (self.up.forward(rows, Activation::Identity)? * gate)?
            }
            None => self.up.forward(rows, self.activation)?,
        };
        self.down.forward(&hidden, Activation::Identity)
    }
}

/// Sinusoidal embedding of a number such as a timestep (Ho et al., arXiv 2006.11239), `(width)`. Computed in
/// 32 bits as the reference does, because the largest arguments are in the hundreds.
pub(super) struct SinusoidalEmbedding {
    pub(super) width: usize,
    /// Puts the cosines before the sines.
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f32,
}

impl SinusoidalEmbedding {
    pub(super) fn of(&self, number: f32) -> Vec<f32> {
        let half = self.width / 2;
        let angle = |index: usize| {
            let exponent = -(10_000f32.ln()) * index as f32 / (half as f32 - self.freq_shift);
            number * exponent.exp()
        };
        let sines = (0..half).map(|index| angle(index).sin());
        let cosines = (0..half).map(|index| angle(index).cos());
        let mut out: Vec<f32> = match self.flip_sin_to_cos {
            true => cosines.chain(sines).collect(),
            false => sines.chain(cosines).collect(),
        };
        out.resize(self.width, 0.0);
        out
    }
}

/// Embedding of a vector by two linear layers with SiLU between them, `TimestepEmbedding` of diffusers.
pub(super) struct TimestepEmbedding {
    first: Linear,
    second: Linear,
}

impl TimestepEmbedding {
    pub(super) fn load(reader: &ScopedReader<'_>, in_dim: usize, out_dim: usize) -> Result<Self> {
        let first = reader.at("linear_1").linear(in_dim, out_dim)?;
        Ok(Self { first, second: reader.at("linear_2").linear(out_dim, out_dim)? })
    }

    /// `(rows, in)` to `(rows, out)`.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(rows, Activation::Silu)?, Activation::Identity)
    }
}
