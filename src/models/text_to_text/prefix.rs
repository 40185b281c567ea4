//! Prefix cache of a text to text model: the keys and values of the first tokens of prompts, in blocks that all workers of
//! the model share. A text that begins as another one did gets copies of its blocks, and reads the rest.
//!
//! A block is as many tokens as are one task of attention, and only those are kept that were read as such a task. So what a
//! text is given is what it would have computed itself, to the last bit; what was written token by token, and the end of a
//! prompt, is read again in the next turn. Decoders have it whose blocks keep keys and values alone, windows included; those
//! with gated delta nets, whose state is that of the whole text, and models of candle-transformers do not, and read all.
//! Where the bytes are charged, and which blocks go first, is left to `model_actors::PrefixCache`.

use std::sync::Arc;
use std::time::Duration;

use model_actors::{Bytes, Cached, LoadContext, PartId, PrefixCache};

use crate::error::Result;
use crate::kernels::causal::ROW_BLOCK;
use crate::limits::GenerationLimits;
use crate::models::decoder::Decoder;
use crate::models::transformer::Cache;

/// Tokens of a block.
pub(super) const BLOCK: usize = ROW_BLOCK;

/// The blocks of a model, which all workers share.
pub(super) struct Prefixes {
    blocks: PrefixCache<Vec<f32>>,
    block_bytes: Bytes,
}

/// The part of a text that its blocks stand for.
#[derive(Clone, Default)]
pub(super) struct Prefix {
    /// Blocks that were found, and are to be copied before the first pass.
    found: Vec<Arc<Cached<Vec<f32>>>>,
    /// The last block of the text that is kept.
    last: Option<PartId>,
    /// Tokens up to its end.
    kept: usize,
    /// Tokens that were copied, or read in whole blocks.
    whole: usize,
    /// Tokens that were found.
    cached: usize,
    /// Nothing more of the text is kept.
    closed: bool,
    /// Numbers of the adapter that its keys and values depend on; none has 0.
    adapter: [u32; 2],
}

impl Prefixes {
    /// The blocks of a decoder, if they are wanted and it can have them.
    pub(super) fn of(decoder: &Decoder, limits: GenerationLimits, context: &LoadContext) -> Option<Self> {
        let count = (limits.prefix_cache_tokens / BLOCK) as u64;
        let numbers = decoder.numbers_per_token().filter(|_| count > 0)?;
        let block_bytes = Bytes(4 * (BLOCK * numbers) as u64);
        let Bytes(each) = PrefixCache::<Vec<f32>>::bytes_of_part(block_bytes, BLOCK + 3);
        Some(Self { blocks: context.prefix_cache(Bytes(each.saturating_mul(count))), block_bytes })
    }

    /// Finds the blocks that a prompt begins with, as the adapter of these numbers makes them. One token at least is left to be read.
    pub(super) fn find(&self, decoder: &Decoder, adapter: Option<[u32; 2]>, prompt: &[u32]) -> Prefix {
        let mut prefix = Prefix { adapter: adapter.unwrap_or_default(), ..Prefix::default() };
        let most = prompt.len().saturating_sub(1) / BLOCK;
        for block in prompt.chunks_exact(BLOCK).take(most) {
            let key = prefix.key(decoder, block, prompt.len());
            let Some((id, copy)) = self.blocks.get(prefix.last, &key) else { break };
            prefix.last = Some(id);
            prefix.found.push(copy);
        }
        prefix.cached = prefix.found.len() * BLOCK;
        (prefix.kept, prefix.whole) = (prefix.cached, prefix.cached);
        prefix
    }

    /// Keeps the blocks that a text has read whole, each of which took so long.
    pub(super) fn keep(
        &self,
        decoder: &Decoder,
        (prefix, cache): (&mut Prefix, &Cache),
        tokens: &[u32],
        took: Duration,
    ) {
        while !prefix.closed && prefix.kept < prefix.whole {
            let range = prefix.kept..prefix.kept + BLOCK;
            let inserted = tokens.get(range.clone()).and_then(|block| {
                let key = prefix.key(decoder, block, cache.reach());
                if let Some((there, _)) = self.blocks.get(prefix.last, &key) {
                    return Some(there);
                }
                let copy = decoder.copy(cache, range.clone())?;
                self.blocks.insert(prefix.last, &key, self.block_bytes, took, || copy)
            });
            prefix.last = inserted;
            prefix.kept = range.end;
            prefix.closed = inserted.is_none();
        }
    }
}

impl Prefix {
    /// Tokens of the prompt that were found.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Tokens that have yet to be copied.
    pub(super) fn uncopied(&self) -> usize {
        self.found.len() * BLOCK
    }

    /// Numbers by which a block is found: its tokens, after what else its keys and values depend on.
    fn key(&self, decoder: &Decoder, block: &[u32], reach: usize) -> Vec<u32> {
        let [adapter, version] = self.adapter;
        let depends_on = [adapter, version, decoder.lengthened(reach) as u32];
        depends_on.iter().chain(block).copied().collect()
    }

    /// Copies what was found into the text's cache.
    pub(super) fn copy(&mut self, decoder: &Decoder, cache: &mut Cache) -> Result<()> {
        let found = std::mem::take(&mut self.found);
        if found.is_empty() {
            return Ok(());
        }
        let copies: Vec<&[f32]> = found.iter().map(|copy| copy.as_slice()).collect();
        decoder.fill(cache, &copies, BLOCK)
    }

    /// Notes that the tokens from `begin` to `end` were read in one piece.
    pub(super) fn read(&mut self, begin: usize, end: usize) {
        if begin == self.whole {
            self.whole = end / BLOCK * BLOCK;
        }
    }

    /// Notes that the text is read anew, as one of another length.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }
}

/// Rows of the next piece of a text of which `begin` tokens are read and `unread` are not, `most` at most: whole blocks, or
/// all that is left.
pub(super) fn piece(begin: usize, unread: usize, most: usize) -> usize {
    match unread <= most {
        true => unread,
        false => (begin.saturating_add(most) / BLOCK * BLOCK).saturating_sub(begin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_blocks_or_with_the_text() {
        assert_eq!(piece(0, 300, 128), 128);
        assert_eq!(piece(128, 172, 100), 64);
        assert_eq!(piece(192, 108, 63), 0, "it waits for a step with more room");
        assert_eq!(piece(192, 108, 108), 108);
        assert_eq!(piece(70, 1, 5), 1);
    }

    #[test]
    fn tokens_that_were_read_one_by_one_are_no_block() {
        let mut prefix = Prefix::default();
        prefix.read(0, 128);
        prefix.read(128, 150);
        (150..300).for_each(|token| prefix.read(token, token + 1));
        assert_eq!(prefix.whole, 128);
        let mut prefix = Prefix { whole: 64, ..Prefix::default() };
        (64..300).for_each(|token| prefix.read(token, token + 1));
        assert_eq!(prefix.whole, 64);
    }
}
