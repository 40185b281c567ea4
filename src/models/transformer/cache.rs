//! The key-value cache of one sequence, and the rows of a pass that extend it. A worker owns the caches of
//! the sequences that it serves; the blocks only borrow them for a pass.

use candle_core::Device;
#[cfg(test)]
use model_actors::Bytes;

use super::attention::CrossKeyValues;
use crate::error::{Error, Result};
use crate::kernels::causal::KvCache;
use crate::kernels::rotary::Position;

/// Keys and values of one sequence in every block, and of what it sees beside itself. Grows with the sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<KvCache>,
    /// Keys and values for the cross-attention of each block that has one; empty without any.
    cross: Vec<Option<CrossKeyValues>>,
    length: usize,
    /// Tokens that the sequence is known to get at least. LongRoPE chooses its frequencies by it.
    known: usize,
}

impl Cache {
    /// An empty cache for keys of `width` numbers, of a sequence that gets at least `known` tokens.
    pub(super) fn new(
        blocks: usize,
        width: usize,
        cross: Vec<Option<CrossKeyValues>>,
        known: usize,
        device: &Device,
    ) -> Result<Self> {
        let blocks = (0..blocks).map(|_| KvCache::new(width, device)).collect::<Result<_>>()?;
        Ok(Self { blocks, cross, length: 0, known })
    }

    /// Number of tokens in the cache.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Number of tokens that the sequence has, or is known to get.
    pub(crate) fn reach(&self) -> usize {
        self.length.max(self.known)
    }

    /// Bytes of the self-attention's keys and values now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.blocks.iter().map(KvCache::bytes).sum())
    }

    /// Empties the cache and keeps its memory: the sequence is read again, as one of at least `known` tokens.
    pub(crate) fn restart(&mut self, known: usize) {
        (self.length, self.known) = (0, known);
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }

    /// One block's keys and values: the sequence's own, and those of its cross-attention.
    pub(super) fn block(&mut self, index: usize) -> Result<(&mut KvCache, Option<&CrossKeyValues>)> {
        let own = self
            .blocks
            .get_mut(index)
            .ok_or_else(|| Error::compute("transformer: a cache of another model"))?;
        Ok((own, self.cross.get(index).and_then(Option::as_ref)))
    }
}

/// The rows of a pass that belong to one sequence: the next `length` tokens after those in the cache.
pub(crate) struct Segment<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) length: usize,
    /// Position of each row; by default they count on from the cache's length.
    pub(crate) positions: Option<Vec<Position>>,
}
