//! What a decoder remembers of one sequence.

use candle_core::Device;
#[cfg(test)]
use model_actors::Bytes;

use super::misfit;
use crate::error::Result;
use crate::kernels::causal::KvCache;

/// The keys and values of one sequence in every layer. It grows with the sequence, and is owned by a worker.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<KvCache>,
    length: usize,
    /// Tokens that the sequence is known to get at least. Phi-3's rotary embedding is chosen by it.
    known: usize,
}

impl Cache {
    /// Of a sequence that gets at least `known` tokens.
    pub(super) fn new(layers: usize, width: usize, known: usize, device: &Device) -> Result<Self> {
        let layers = (0..layers).map(|_| KvCache::new(width, device)).collect::<Result<_>>()?;
        Ok(Self { layers, length: 0, known })
    }

    /// Tokens that it holds.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Tokens that the sequence has, or is known to get.
    pub(super) fn reach(&self) -> usize {
        self.length.max(self.known)
    }

    /// Bytes that it takes now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.layers.iter().map(KvCache::bytes).sum())
    }

    /// Forgets what it holds, keeping the memory: the sequence is read again, as one of at least `known` tokens.
    pub(crate) fn restart(&mut self, known: usize) {
        (self.length, self.known) = (0, known);
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }

    pub(super) fn layer(&mut self, index: usize) -> Result<&mut KvCache> {
        self.layers.get_mut(index).ok_or_else(|| misfit("a cache of another model"))
    }
}
