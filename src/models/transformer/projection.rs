//! A linear layer of a transformer, on whichever kernel suits the rows that come to it.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::packed::PackedLinear;
use crate::kernels::{Activation, Linear};

/// A linear layer, `activation(input · weightᵀ + bias)`.
pub(crate) enum Projection {
    /// For hundreds of rows at once: gemm.
    Gemm(Linear),
    /// For any number of rows, with the same bits for a row alone and among others: packed panels or
    /// quantised blocks.
    Packed(PackedLinear),
}

impl Projection {
    /// `(rows, in)` to `(rows, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Gemm(linear) => linear.forward(input, activation),
            Self::Packed(linear) => linear.forward(input, activation),
        }
    }
}
