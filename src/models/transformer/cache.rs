//! The cache of one sequence, and the rows of a pass that extend it. A worker owns the caches of the sequences
//! that it serves; the blocks only borrow them for a pass.

use std::ops::Range;

#[cfg(test)]
use model_actors::Bytes;

use super::adapter::Adapter;
use super::attention::CrossKeyValues;
use super::layer_cache::LayerCache;
use crate::error::{Error, Result};
use crate::kernels::rotary::Position;

/// State that every block keeps of one sequence, and keys and values of what it sees beside itself. Grows with the sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<LayerCache>,
    /// Keys and values for the cross-attention of each block that has one; empty without any.
    cross: Vec<Option<CrossKeyValues>>,
    length: usize,
    /// Tokens that the sequence is known to get at least. LongRoPE chooses its frequencies by it.
    known: usize,
}

impl Cache {
    /// The cache with these empty ones of the blocks, of a sequence that gets at least `known` tokens.
    pub(super) fn new(blocks: Vec<LayerCache>, cross: Vec<Option<CrossKeyValues>>, known: usize) -> Self {
        Self { blocks, cross, length: 0, known }
    }

    /// Number of tokens in the cache.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Number of tokens that the sequence has, or is known to get.
    pub(crate) fn reach(&self) -> usize {
        self.length.max(self.known)
    }

    /// Bytes of what the blocks keep now, but for keys and values of cross-attention.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.blocks.iter().map(LayerCache::bytes).sum())
    }

    /// Empties the cache and keeps its memory: the sequence is read again, as one of at least `known` tokens.
    pub(crate) fn restart(&mut self, known: usize) {
        (self.length, self.known) = (0, known);
    }

    /// A copy of its own, for a sequence that goes on in another way. What it sees beside itself is shared.
    pub(crate) fn fork(&self) -> Result<Self> {
        let blocks = self.blocks.iter().map(LayerCache::fork).collect::<Result<_>>()?;
        Ok(Self { blocks, cross: self.cross.clone(), length: self.length, known: self.known })
    }

    /// Copies keys and values of some of its tokens, those of each block after those of the one before. Nothing if a block
    /// keeps anything else.
    pub(super) fn copy(&self, tokens: Range<usize>, width: usize) -> Option<Vec<f32>> {
        let keeps = |block: &&LayerCache| matches!(block, LayerCache::KeyValues(_));
        let blocks = self.blocks.iter().filter(keeps).count();
        let mut copy = Vec::with_capacity(2 * blocks * tokens.len() * width);
        for block in &self.blocks {
            match block {
                LayerCache::KeyValues(cache) => {
                    copy.extend(cache.rows(tokens.clone(), width)?.into_iter().flatten())
                }
                LayerCache::Of(_) => {}
                LayerCache::DeltaNet(_) => return None,
            }
        }
        Some(copy)
    }

    /// Fills an empty cache with copies of the first tokens, so many in each.
    pub(super) fn fill(&mut self, copies: &[&[f32]], tokens: usize, width: usize) -> Result<()> {
        let misfit = || Error::compute("transformer: copied keys and values are those of another model");
        let size = tokens * width;
        let mut begin = 0;
        for block in &mut self.blocks {
            match block {
                LayerCache::KeyValues(cache) => {
                    let [keys, values, end] = [begin, begin + size, begin + 2 * size];
                    if self.length > 0 || copies.iter().any(|copy| copy.len() < end) {
                        return Err(misfit());
                    }
                    let rows = copies.iter().map(|copy| [&copy[keys..values], &copy[values..end]]);
                    cache.fill(rows, size * copies.len(), width)?;
                    begin = end;
                }
                LayerCache::Of(_) => {}
                LayerCache::DeltaNet(_) => return Err(misfit()),
            }
        }
        self.length = tokens * copies.len();
        Ok(())
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }

    /// State that one block keeps: of the sequence, and of its cross-attention.
    pub(super) fn block(&mut self, index: usize) -> Result<(&mut LayerCache, Option<&CrossKeyValues>)> {
        let place = match self.blocks.get(index) {
            Some(LayerCache::Of(block)) => *block,
            _ => index,
        };
        let own = self
            .blocks
            .get_mut(place)
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
    /// The adapter that changes the blocks for the sequence.
    pub(crate) adapter: Option<&'a Adapter>,
}
