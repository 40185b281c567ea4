//! The part of a block in which a row sees other rows of its sequence: attention, or a gated delta net.

use candle_core::{Device, Tensor};

use super::attention::{Attention, Pass};
use super::delta_net::DeltaNet;
use super::layer_cache::LayerCache;
use super::projection::Projection;
use crate::error::Result;
use crate::kernels::causal::KvCache;
use crate::kernels::delta_net::DeltaNetState;

/// Attention, or what a block has in its place.
#[expect(clippy::large_enum_variant, reason = "nearly every block has attention, and a model has few blocks")]
pub(crate) enum Mixer {
    Attention(Attention),
    DeltaNet(Box<DeltaNet>),
}

impl Mixer {
    /// Normed rows, `(rows, width)`, to those that go into the output projection.
    pub(super) fn forward(&self, input: Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => {
                let qkv = attention.qkv(&input, pass.adapters)?;
                drop(input);
                attention.attend(qkv, pass)
            }
            Self::DeltaNet(net) => net.forward(&input, pass),
        }
    }

    pub(super) fn out_proj(&self) -> &Projection {
        match self {
            Self::Attention(attention) => &attention.out_proj,
            Self::DeltaNet(net) => &net.out_proj,
        }
    }

    /// An empty cache, with keys of `width` numbers if it has any.
    pub(super) fn cache(&self, width: usize, device: &Device) -> Result<LayerCache> {
        match self {
            Self::Attention(Attention { key_values_of: Some(block), .. }) => Ok(LayerCache::Of(*block)),
            Self::Attention(_) => KvCache::new(width, device).map(LayerCache::KeyValues),
            Self::DeltaNet(_) => Ok(LayerCache::DeltaNet(DeltaNetState::default())),
        }
    }

    /// An empty cache for a whole sequence of so many tokens: `used`, that of another block, where it can be.
    pub(super) fn cache_of(
        &self,
        used: Option<LayerCache>,
        tokens: usize,
        width: usize,
        device: &Device,
    ) -> Result<LayerCache> {
        match (self, used) {
            // What begins anew is emptied by the pass.
            (Self::Attention(_), Some(used @ LayerCache::KeyValues(_)))
            | (Self::DeltaNet(_), Some(used @ LayerCache::DeltaNet(_))) => Ok(used),
            (Self::Attention(_), _) => KvCache::of(tokens, width, device).map(LayerCache::KeyValues),
            (Self::DeltaNet(_), _) => self.cache(width, device),
        }
    }
}
