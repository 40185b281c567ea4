//! The norms of a transformer, and where a block has them around its sublayers.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{LayerNorm, add};

/// A norm of each row.
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    /// Layer norm (Ba et al., 2016).
    Layer(LayerNorm),
    /// Root-mean-square norm (Zhang and Sennrich, 2019).
    Rms(RmsNorm),
}

impl Norm {
    /// `(rows, width)` to `(rows, width)`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.of(input),
            Self::Rms(norm) => norm.forward(input),
        }
    }

    /// The norm of `left + right`.
    pub(crate) fn of_sum(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.of_sum(left, right),
            Self::Rms(norm) => norm.forward(&add(left, right)?),
        }
    }
}

/// The norms around a sublayer `f` and its residual connection: `sum(x + output(f(input(x))))`, each of them
/// optional.
#[derive(Default)]
pub(super) struct SublayerNorms {
    pub(super) input: Option<Norm>,
    pub(super) output: Option<Norm>,
    pub(super) sum: Option<Norm>,
}

impl SublayerNorms {
    /// The sublayer's input.
    pub(super) fn before(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.input {
            Some(norm) => norm.forward(hidden),
            None => Ok(hidden.clone()),
        }
    }

    /// Adds the sublayer's output to the residual stream.
    pub(super) fn add(&self, output: Tensor, hidden: Tensor) -> Result<Tensor> {
        let output = match &self.output {
            Some(norm) => norm.forward(&output)?,
            None => output,
        };
        match &self.sum {
            Some(norm) => norm.of_sum(&output, &hidden),
            None => add(&hidden, &output),
        }
    }
}
