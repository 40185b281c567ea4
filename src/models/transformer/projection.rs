//! A linear layer of a transformer, on whichever kernel suits the rows that come to it, and what an adapter adds to one.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::kernels::packed::PackedLinear;
use crate::kernels::{Activation, Linear, Placed, add_parts};

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

/// Products that are added to the outputs of a linear layer, each of two matrices whose rows between them are short (LoRA;
/// Hu et al., 2022). A row's are the same to the last bit whatever the other rows are.
pub(crate) struct LowRank {
    /// Matrices down, one's outputs after the other's.
    down: PackedLinear,
    ups: Vec<Up>,
}

/// A matrix up, of some of the layer's outputs.
struct Up {
    matrix: PackedLinear,
    /// Length of its rows.
    rank: usize,
    /// The first of its outputs.
    column: usize,
}

/// Two matrices as files have them, `(rank, in)` and `(out, rank)`, the latter scaled, and the first of their outputs.
pub(crate) struct LowRankPart {
    pub(crate) down: Tensor,
    pub(crate) up: Tensor,
    pub(crate) column: usize,
}

impl LowRank {
    /// Products of these parts. Nothing if there are none.
    pub(crate) fn new(parts: Vec<LowRankPart>, in_dim: usize, device: &Device) -> Result<Option<Self>> {
        let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (mut down, mut ups) = (Vec::new(), Vec::with_capacity(parts.len()));
        for part in parts {
            let rank = part.up.dim(1)?;
            down.extend(numbers(&part.down)?);
            let matrix = PackedLinear::new(numbers(&part.up)?, rank, None, device)?;
            ups.push(Up { matrix, rank, column: part.column });
        }
        match ups.is_empty() {
            true => Ok(None),
            false => Ok(Some(Self { down: PackedLinear::of_few_rows(&down, in_dim, device)?, ups })),
        }
    }

    /// The products of rows, `(rows, in)`, of which the first is this one of the layer's.
    pub(crate) fn of(&self, input: &Tensor, row: usize) -> Result<Vec<Placed>> {
        let between = self.down.forward(input, Activation::Identity)?;
        let mut first = 0;
        let product = |up: &Up| {
            let own = between.narrow(1, first, up.rank)?.contiguous()?;
            first += up.rank;
            Ok(Placed { values: up.matrix.forward(&own, Activation::Identity)?, row, column: up.column })
        };
        self.ups.iter().map(product).collect()
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
                let sum = add_parts(&base.forward(input, Activation::Identity)?, &adapter.of(input, 0)?)?;
                activation.forward(sum)
            }
        }
    }
}
