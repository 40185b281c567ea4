//! The reading of adapters: for each layer of each block that has one, the products that are added to it.

use candle_core::{Device, Tensor};

use super::super::adapter::{Adapter, BlockAdapter};
use super::super::config::{FeedForwardConfig, LayerConfig, MixerConfig, TransformerConfig};
use super::super::names::Names;
use super::super::projection::{LowRank, LowRankPart};
use super::super::tensors::{Linears, RowOrder};
use super::layers::BlockLayers;
use crate::error::{Error, Result};

/// The matrices of an adapter by the names of the layers that they belong to.
pub(crate) trait LowRankMatrices {
    /// Matrices that are added to a linear layer, `(rank, in)` and `(out, rank)`, the latter scaled; nothing for a layer
    /// without.
    fn matrices(&self, layer: &str, out_dim: usize, in_dim: usize) -> Result<Option<(Tensor, Tensor)>>;
}

/// Reads what an adapter adds to layers that are one.
pub(crate) fn low_rank(
    layers: &Linears<'_>,
    adapter: &dyn LowRankMatrices,
    device: &Device,
) -> Result<Option<LowRank>> {
    let (mut parts, mut column) = (Vec::new(), 0);
    for (name, out_dim) in layers.parts {
        if let Some((down, up)) = adapter.matrices(name, *out_dim, layers.in_dim)? {
            parts.push(LowRankPart { down, up, column });
        }
        column += out_dim;
    }
    if !parts.is_empty() && (layers.order != RowOrder::AsStored || layers.scale.is_some()) {
        return Err(Error::compute("adapters of layers that are not as the file has them"));
    }
    LowRank::new(parts, layers.in_dim, device)
}

/// Reads an adapter of a stack of blocks. Layers that no adapter can change here are not asked for: experts, gated delta nets
/// and what is beside the blocks' attention and networks.
pub(crate) fn load_adapter(
    config: &TransformerConfig,
    names: &Names,
    adapter: &dyn LowRankMatrices,
    device: &Device,
) -> Result<Adapter> {
    let blocks = config.layers.iter().enumerate().map(|(index, layer)| {
        let layers = BlockLayers { config, names, path: format!("{}{index}.", names.blocks) };
        block(&layers, layer, adapter, device)
    });
    Ok(Adapter { blocks: blocks.collect::<Result<_>>()? })
}

fn block(
    layers: &BlockLayers<'_>,
    layer: &LayerConfig,
    adapter: &dyn LowRankMatrices,
    device: &Device,
) -> Result<BlockAdapter> {
    let read = |layers: &Linears<'_>| low_rank(layers, adapter, device);
    let names = layers.names;
    let (qkv, attention_output) = match layer.mixer {
        MixerConfig::Attention => (layers.qkv(layer, read)?, layers.attention_output(read)?),
        MixerConfig::DeltaNet(_) => (None, None),
    };
    let (up, down) = match layer.feed_forward {
        FeedForwardConfig::Dense { intermediate } => {
            (layers.up(intermediate, read)?, layers.down(names.feed_forward, intermediate, read)?)
        }
        FeedForwardConfig::Gated { intermediate } => (
            layers.gate_up(names.feed_forward, names.up, intermediate, read)?,
            layers.down(names.feed_forward, intermediate, read)?,
        ),
        FeedForwardConfig::Experts { .. } => (None, None),
    };
    Ok(BlockAdapter { qkv, attention_output, up, down })
}
