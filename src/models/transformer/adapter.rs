//! Products that adapters add to the blocks of a stack whose weights they share, and the rows of a pass that each of them
//! changes. So sequences with different adapters, and with none, go through the shared layers together. Reading one is left to `load`.

use candle_core::Tensor;

use super::projection::{LowRank, Projection};
use crate::error::{Error, Result};
use crate::kernels::{Activation, add_parts};

/// The layers of a block that adapters can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdaptedLayer {
    /// Projections to queries, keys and values.
    Qkv,
    AttentionOutput,
    /// Projections into a feed-forward network.
    Up,
    Down,
}

/// An adapter of a stack of blocks.
pub(crate) struct Adapter {
    pub(super) blocks: Vec<BlockAdapter>,
}

/// An adapter of one block.
#[derive(Default)]
pub(crate) struct BlockAdapter {
    pub(super) qkv: Option<LowRank>,
    pub(super) attention_output: Option<LowRank>,
    pub(super) up: Option<LowRank>,
    pub(super) down: Option<LowRank>,
}

/// Consecutive rows of a pass through a block that one adapter changes.
pub(crate) struct AdaptedRows<'a> {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) adapter: &'a BlockAdapter,
}

/// The rows of a pass that adapters change.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowAdapters<'a>(pub(super) &'a [AdaptedRows<'a>]);

impl Adapter {
    pub(super) fn block(&self, index: usize) -> Result<&BlockAdapter> {
        self.blocks.get(index).ok_or_else(|| Error::compute("an adapter of another model"))
    }
}

impl BlockAdapter {
    fn of(&self, layer: AdaptedLayer) -> Option<&LowRank> {
        match layer {
            AdaptedLayer::Qkv => self.qkv.as_ref(),
            AdaptedLayer::AttentionOutput => self.attention_output.as_ref(),
            AdaptedLayer::Up => self.up.as_ref(),
            AdaptedLayer::Down => self.down.as_ref(),
        }
    }
}

impl RowAdapters<'_> {
    /// All rows through `projection`, which is this layer of the block, with what the adapters of some of them add.
    pub(super) fn forward(
        &self,
        layer: AdaptedLayer,
        projection: &Projection,
        input: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        let mut parts = Vec::new();
        for AdaptedRows { first, count, adapter } in self.0 {
            if let Some(products) = adapter.of(layer) {
                parts.extend(products.of(&input.narrow(0, *first, *count)?, *first)?);
            }
        }
        match parts.is_empty() {
            true => projection.forward(input, activation),
            false => {
                let sum = add_parts(&projection.forward(input, Activation::Identity)?, &parts)?;
                activation.forward(sum)
            }
        }
    }
}
