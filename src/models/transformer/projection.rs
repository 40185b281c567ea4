//! A linear layer of a transformer, on whichever kernel suits the rows that come to it, and what an adapter adds to one.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::packed::PackedLinear;
use crate::kernels::{Activation, Linear, add};

/// A linear layer, `activation(input · weightᵀ + bias)`.
pub(crate) enum Projection {
    /// For hundreds of rows at once: gemm.
    Gemm(Linear),
    /// For any number of rows, with the same bits for a row alone and among others: packed panels or
    /// quantised blocks.
    Packed(PackedLinear),
    /// One that is shared with others, which have adapters of their own.
    Adapted(AdaptedProjection),
}

/// A shared layer and what an adapter adds to it.
pub(crate) struct AdaptedProjection {
    pub(crate) base: Arc<Projection>,
    pub(crate) adapter: Option<LowRank>,
}

/// A product of two matrices whose rows between them are short (LoRA; Hu et al., 2022).
pub(crate) struct LowRank {
    down: Linear,
    up: Linear,
}

impl LowRank {
    /// Of matrices as files have them, `(rank, in)` and `(out, rank)`.
    pub(crate) fn new(down: &Tensor, up: &Tensor) -> Result<Self> {
        Ok(Self { down: Linear::new(down, None)?, up: Linear::new(up, None)? })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.up.forward(&self.down.forward(input, Activation::Identity)?, Activation::Identity)
    }
}

impl Projection {
    /// `(rows, in)` to `(rows, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Gemm(linear) => linear.forward(input, activation),
            Self::Packed(linear) => linear.forward(input, activation),
            Self::Adapted(AdaptedProjection { base, adapter: None }) => base.forward(input, activation),
            Self::Adapted(AdaptedProjection { base, adapter: Some(adapter) }) => {
                let sum = add(&base.forward(input, Activation::Identity)?, &adapter.forward(input)?)?;
                activation.forward(sum)
            }
        }
    }
}
