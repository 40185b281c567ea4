//! The mergers of Qwen-VL: from patches of the vision tower to rows of the text.

use candle_core::Tensor;

use super::EPSILON;
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::transformer::{Bias, Norm, NormKind, Projection, SafeTensors, Tensors as _};

/// The rows that a merger's norm sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Normed {
    EachPatch,
    /// Those of patches put side by side.
    Merged,
}

/// The merger: patches side by side, and two layers to the text's width.
pub(super) struct Merger {
    normed: Normed,
    norm: Norm,
    first: Projection,
    second: Projection,
    /// Length of merged patches side by side.
    wide: usize,
}

impl Merger {
    /// Loads the merger of vectors of `width` numbers, `merged` of them side by side, to `out` numbers, by the names
    /// of its norm and its two layers.
    pub(super) fn load(
        [width, merged, out]: [usize; 3],
        tensors: &SafeTensors<'_>,
        [norm, first, second]: [&str; 3],
        kind: NormKind,
        normed: Normed,
    ) -> Result<Self> {
        let wide = width * merged;
        let normed_width = if normed == Normed::Merged { wide } else { width };
        Ok(Self {
            normed,
            norm: tensors.norm(norm, normed_width, kind, EPSILON)?,
            first: tensors.linear(first, wide, wide, Bias::Yes)?,
            second: tensors.linear(second, out, wide, Bias::Yes)?,
            wide,
        })
    }

    /// `(merged · rows, width)` to `(rows, out)`.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let merged = |rows: &Tensor| rows.reshape(((), self.wide));
        let rows = match self.normed {
            Normed::EachPatch => merged(&self.norm.forward(hidden)?)?,
            Normed::Merged => self.norm.forward(&merged(hidden)?)?,
        };
        self.second.forward(&self.first.forward(&rows, Activation::GeluErf)?, Activation::Identity)
    }
}
