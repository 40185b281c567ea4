//! A stack of loaded blocks with its rotary embeddings, and the two kinds of passes through it: whole
//! sequences of which nothing is kept, and sequences that grow in caches. With LongRoPE, all of a sequence is
//! embedded by other frequencies once it outgrows the context of the pretraining, so that its tokens have to
//! go through the blocks once more. The owner of the sequence does that, in pieces as short as those of its
//! prompt; the stack tells when, and refuses to go on without.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::adapter::{AdaptedRows, Adapter, RowAdapters};
use super::attention::{CrossRun, Pass, Sequences};
use super::block::Block;
use super::cache::{Cache, Segment};
use super::config::Workload;
use super::layer_cache::LayerCache;
use super::mixer::Mixer;
use super::rope::{Rope, Rows};
use super::streams::Streams;
use crate::error::{Error, Result};
use crate::kernels::Ahead;
use crate::kernels::causal::LayerSegment;
use crate::kernels::rotary::RopeTable;
use crate::kernels::self_attention::Whole;

/// A loaded stack of blocks. It keeps nothing between passes, so that all workers share one.
pub(crate) struct Transformer {
    pub(super) blocks: Vec<Block>,
    /// Several residual streams, in models that have them.
    pub(super) streams: Option<Streams>,
    pub(super) ropes: Vec<Rope>,
    pub(super) width: usize,
    /// Numbers of a row of keys, or of values.
    pub(super) kv_width: usize,
    pub(super) workload: Workload,
    pub(super) device: Device,
}

impl Transformer {
    /// Number of blocks.
    pub(crate) fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// One block.
    pub(crate) fn block(&self, index: usize) -> Result<&Block> {
        self.blocks.get(index).ok_or_else(|| misfit("there is no such block"))
    }

    /// An empty cache of a sequence that gets at least `known` tokens: those of its prompt, of which only a
    /// part may be in the first pass.
    pub(crate) fn cache(&self, known: usize) -> Result<Cache> {
        Ok(Cache::new(self.layer_caches()?, Vec::new(), known))
    }

    /// The same for a sequence that sees `rows` beside itself, `(rows, width of the cross-attention)`.
    pub(crate) fn cache_beside(&self, known: usize, rows: &Tensor) -> Result<Cache> {
        let cross = self.blocks.iter().map(|block| block.cross_key_values(rows));
        Ok(Cache::new(self.layer_caches()?, cross.collect::<Result<_>>()?, known))
    }

    fn layer_caches(&self) -> Result<Vec<LayerCache>> {
        self.blocks.iter().map(|block| block.mixer.cache(self.kv_width, &self.device)).collect()
    }

    /// Numbers that the cache of a sequence keeps for each token, if all of it is keys and values in host memory, so that
    /// the first tokens of a sequence can be copied into the cache of another one that begins alike.
    pub(crate) fn numbers_per_token(&self) -> Option<usize> {
        let keeps_own = |mixer: &Mixer| match mixer {
            Mixer::Attention(attention) => Some(usize::from(attention.key_values_of.is_none())),
            Mixer::DeltaNet(_) => None,
        };
        let blocks: usize = self.blocks.iter().map(|block| keeps_own(&block.mixer)).sum::<Option<usize>>()?;
        (self.device.is_cpu() && blocks > 0).then(|| blocks * 2 * self.kv_width)
    }

    /// Copies what a cache keeps of some tokens. Nothing where [`Self::numbers_per_token`] is.
    pub(crate) fn copy(&self, cache: &Cache, tokens: Range<usize>) -> Option<Vec<f32>> {
        cache.copy(tokens, self.kv_width)
    }

    /// Fills an empty cache with copies of the first tokens, so many in each.
    pub(crate) fn fill(&self, cache: &mut Cache, copies: &[&[f32]], tokens: usize) -> Result<()> {
        cache.fill(copies, tokens, self.kv_width)
    }

    /// Number of rotary embeddings that rotate a sequence of so many tokens by other frequencies than a shorter one. Keys of
    /// sequences for which it differs are not the same.
    pub(crate) fn lengthened(&self, tokens: usize) -> usize {
        self.ropes.iter().filter_map(Rope::limit).filter(|limit| tokens > *limit).count()
    }

    /// Passes whole sequences of these lengths, `(rows, width)`, through some blocks, and keeps nothing.
    /// `seen` is given the input under the number of the first block, and the output of each block under the
    /// number of blocks so far, which is how transformers counts `hidden_states`; it can end the pass by an
    /// error.
    pub(crate) fn encode(
        &self,
        hidden: Tensor,
        lengths: &[usize],
        blocks: Range<usize>,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        self.encode_whole(hidden, Whole::of(lengths), blocks, seen)
    }

    /// The same for sequences that may end with rows which no row attends to.
    pub(crate) fn encode_whole(
        &self,
        hidden: Tensor,
        sequences: Whole<'_>,
        blocks: Range<usize>,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let lengths = sequences.lengths;
        let hides = sequences.unseen.iter().any(|count| *count > 0);
        if hides && (self.streams.is_some() || self.workload == Workload::GrowingSequences) {
            return Err(misfit("rows that no row attends to, in sequences that grow"));
        }
        if self.streams.is_some() {
            return self.encode_in_caches(hidden, lengths, seen);
        }
        let whole = |length: &usize| Rows { past: 0, length: *length, reach: *length, positions: None };
        let rope_tables = self.rope_tables(&hidden, &lengths.iter().map(whole).collect::<Vec<_>>())?;
        self.encode_with(hidden, sequences, &rope_tables, blocks, seen)
    }

    /// The same for all blocks of a model whose blocks see the keys and values of others.
    fn encode_in_caches(
        &self,
        hidden: Tensor,
        lengths: &[usize],
        mut seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let caches = lengths.iter().map(|length| self.cache(*length));
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        let segments = caches.iter_mut().zip(lengths);
        let segments = segments.map(|(cache, length)| Segment {
            cache,
            length: *length,
            positions: None,
            adapter: None,
        });
        seen(0, &hidden)?;
        self.forward(hidden, &mut segments.collect::<Vec<_>>(), Ahead::Hidden, |block, hidden| {
            seen(block + 1, &hidden)?;
            Ok(hidden)
        })
    }

    /// The same for rows with coordinates of two axes, by which the blocks' rotary embeddings rotate them.
    pub(crate) fn encode_at(
        &self,
        hidden: Tensor,
        lengths: &[usize],
        coordinates: &[[f32; 2]],
        blocks: Range<usize>,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        if hidden.dims2()? != (coordinates.len(), self.width) {
            return Err(misfit("the rows have not a coordinate each"));
        }
        let rope_tables: Vec<_> = self.ropes.iter().map(|rope| rope.table_by(coordinates)).collect();
        self.encode_with(hidden, Whole::of(lengths), &rope_tables, blocks, seen)
    }

    fn encode_with(
        &self,
        mut hidden: Tensor,
        whole: Whole<'_>,
        rope_tables: &[RopeTable],
        blocks: Range<usize>,
        mut seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let lengths = whole.lengths;
        let mut caches: Vec<LayerCache> = Vec::new();
        seen(blocks.start, &hidden)?;
        for index in blocks {
            let block = self.block(index)?;
            if self.workload == Workload::GrowingSequences {
                let mut used = std::mem::take(&mut caches).into_iter();
                let caches_of =
                    |length: &usize| block.mixer.cache_of(used.next(), *length, self.kv_width, &self.device);
                caches = lengths.iter().map(caches_of).collect::<Result<_>>()?;
            }
            let layer_segments = caches.iter_mut().zip(lengths);
            let mut layer_segments: Vec<LayerSegment<'_, LayerCache>> = layer_segments
                .map(|(cache, length)| LayerSegment { cache, past: 0, length: *length })
                .collect();
            let sequences = match self.workload {
                Workload::WholeSequences => Sequences::Whole(whole),
                Workload::GrowingSequences => Sequences::Cached(&mut layer_segments),
            };
            let adapters = RowAdapters::default();
            let mut pass =
                Pass { rope_tables, sequences, cross: &[], ahead: Ahead::Hidden, input: None, adapters };
            hidden = block.forward(hidden, &mut pass)?;
            seen(index + 1, &hidden)?;
        }
        Ok(hidden)
    }

    /// Passes the next rows of several sequences, `(rows, width)`, through all blocks: prompts and single
    /// tokens mixed. The segments cover the rows in order; each row is added to its sequence's cache. After
    /// an error the caches are as they were, but for those of models with gated delta nets: their sequences have to be
    /// read again, and until then every pass is an error. A row's result does not depend on the other sequences. Where rows
    /// see `ahead`, it does so in all blocks. `after` is given each block's number and output, and what it returns
    /// goes on.
    pub(crate) fn forward(
        &self,
        mut hidden: Tensor,
        segments: &mut [Segment<'_>],
        ahead: Ahead,
        mut after: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rope_tables = self.rope_tables(&hidden, &self.rows(segments)?)?;
        let adapted = adapted_rows(segments);
        let mut inputs = None;
        if let Some(streams) = &self.streams {
            let (begun, all) = streams.begin(&hidden)?;
            (hidden, inputs) = (begun, Some((streams, all)));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let (mut layer_segments, mut cross) = (Vec::with_capacity(segments.len()), Vec::new());
            for segment in segments.iter_mut() {
                let (past, length) = (segment.cache.length(), segment.length);
                let (cache, beside) = segment.cache.block(index)?;
                layer_segments.push(LayerSegment { cache, past, length });
                cross.extend(beside.map(|key_values| CrossRun { key_values, length }));
            }
            let sequences = Sequences::Cached(&mut layer_segments);
            let input = inputs.as_ref().map(|(streams, all)| streams.input(all, index)).transpose()?;
            let rows = adapted.iter().map(|(first, count, adapter)| {
                let (first, count) = (*first, *count);
                adapter.block(index).map(|adapter| AdaptedRows { first, count, adapter })
            });
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let adapters = RowAdapters(&rows);
            let mut pass =
                Pass { rope_tables: &rope_tables, sequences, cross: &cross, ahead, input, adapters };
            hidden = after(index, block.forward(hidden, &mut pass)?)?;
        }
        segments.iter_mut().for_each(|segment| segment.cache.advance(segment.length));
        match &self.streams {
            Some(streams) => streams.end(&hidden),
            None => Ok(hidden),
        }
    }

    /// True if a sequence's cache is of no use once the sequence has so many tokens: [`Cache::restart`] it
    /// then, and read the sequence again.
    pub(crate) fn outgrows(&self, cache: &Cache, tokens: usize) -> bool {
        let mut limits = self.ropes.iter().filter_map(Rope::limit);
        cache.length() > 0 && limits.any(|limit| cache.reach() <= limit && tokens > limit)
    }

    /// The rows of each segment, checked.
    fn rows<'a>(&self, segments: &'a [Segment<'_>]) -> Result<Vec<Rows<'a>>> {
        let rows = |segment: &'a Segment<'_>| {
            let (past, length) = (segment.cache.length(), segment.length);
            let positions = segment.positions.as_deref();
            if positions.is_some_and(|positions| positions.len() != length) {
                return Err(misfit("a segment has not a position for each row"));
            }
            if self.outgrows(segment.cache, past.saturating_add(length)) {
                return Err(misfit("a sequence has outgrown its rotary embedding and was not read again"));
            }
            Ok(Rows { past, length, reach: segment.cache.reach(), positions })
        };
        segments.iter().map(rows).collect()
    }

    /// A table of each rotary embedding, for the rows of a pass.
    fn rope_tables(&self, hidden: &Tensor, sequences: &[Rows<'_>]) -> Result<Vec<RopeTable>> {
        let covered = sequences.iter().fold(0usize, |sum, rows| sum.saturating_add(rows.length));
        let table = self.streams.as_ref().map_or(0, |streams| self.blocks.len() * streams.input_size());
        if hidden.dims2()? != (covered, self.width + table) {
            return Err(misfit("the sequences do not cover the rows"));
        }
        Ok(self.ropes.iter().map(|rope| rope.table(sequences)).collect())
    }
}

/// The first row, and the number, of rows that lie together and have one adapter.
fn adapted_rows<'a>(segments: &[Segment<'a>]) -> Vec<(usize, usize, &'a Adapter)> {
    let (mut runs, mut first): (Vec<(usize, usize, &Adapter)>, _) = (Vec::new(), 0);
    for Segment { adapter, length, .. } in segments {
        match (adapter, runs.last_mut()) {
            (Some(adapter), Some((begin, count, last)))
                if std::ptr::eq(*adapter, *last) && *begin + *count == first =>
            {
                *count += length;
            }
            (Some(adapter), _) => runs.push((first, *length, adapter)),
            (None, _) => {}
        }
        first += length;
    }
    runs
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("transformer: {reason}"))
}
