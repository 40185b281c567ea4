//! State that one block keeps of a sequence between passes: keys and values, which grow with it, or the state of a gated delta
//! net, which does not. A sequence's own `Cache` has one for each block.

use crate::error::{Error, Result};
use crate::kernels::causal::KvCache;
use crate::kernels::delta_net::DeltaNetState;

/// Cache of one block and one sequence.
#[derive(Debug)]
pub(crate) enum LayerCache {
    KeyValues(KvCache),
    DeltaNet(DeltaNetState),
    /// None of its own: the block sees the keys and values of this one.
    Of(usize),
}

impl LayerCache {
    /// Bytes that it takes now.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::KeyValues(cache) => cache.bytes(),
            Self::DeltaNet(state) => state.bytes(),
            Self::Of(_) => 0,
        }
    }

    /// A copy of its own.
    pub(super) fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::KeyValues(cache) => Self::KeyValues(cache.fork()?),
            Self::DeltaNet(state) => Self::DeltaNet(state.clone()),
            Self::Of(block) => Self::Of(*block),
        })
    }

    pub(super) fn key_values(&mut self) -> Result<&mut KvCache> {
        match self {
            Self::KeyValues(cache) => Ok(cache),
            Self::DeltaNet(_) | Self::Of(_) => Err(misfit()),
        }
    }

    pub(super) fn delta_net(&mut self) -> Result<&mut DeltaNetState> {
        match self {
            Self::DeltaNet(state) => Ok(state),
            Self::KeyValues(_) | Self::Of(_) => Err(misfit()),
        }
    }
}

fn misfit() -> Error {
    Error::compute("transformer: a cache of another model")
}
