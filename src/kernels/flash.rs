//! Attention on the processor as FlashAttention computes it (Dao et al., 2022, arXiv 2205.14135): a block of
//! queries meets a block of keys at a time, and the softmax is updated from block to block. So scores stay in
//! the processor's cache, and a thread never has more than [`SCORES_PER_THREAD`] of them, however many rows
//! attend to each other and however many heads share their keys. The layout of rows, the mask and the biases
//! on scores come from the three attention kernels; on an accelerator they do without this one.

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::threads;
use super::matmul::{Matrix, Output, multiply};
use super::rows;

/// Queries of a block: with [`KEY_BLOCK`], enough for products at full speed.
const QUERY_BLOCK: usize = 256;
/// Keys of a block.
const KEY_BLOCK: usize = 512;
/// Maximum number of scores that a thread has in memory at a time: half a mebibyte.
pub(crate) const SCORES_PER_THREAD: usize = QUERY_BLOCK * KEY_BLOCK;
/// Fewest queries that are worth a thread of their own.
const MIN_QUERIES: usize = 16;

/// Keys that a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionMask {
    /// Its own row and all before it.
    Causal,
    /// Its own row and those before it, so many in all.
    SlidingWindow(usize),
    /// Its own row and those before it, so many in all, and all after it.
    WindowAndAfter(usize),
    /// Its own row and so many to either side.
    LocalWindow(usize),
    /// The whole sequence.
    Full,
}

impl AttentionMask {
    /// Keys that row number `row` attends to, of `all`. Neither end is before that of an earlier row. Where rows go on beyond
    /// the keys, one with a window may have none.
    pub(super) fn range(self, row: usize, all: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..(row + 1).min(all),
            Self::SlidingWindow(window) => {
                let end = (row + 1).min(all);
                (row + 1).saturating_sub(window).min(end)..end
            }
            Self::WindowAndAfter(window) => (row + 1).saturating_sub(window)..all,
            Self::LocalWindow(distance) => {
                let end = row.saturating_add(distance).saturating_add(1).min(all);
                row.saturating_sub(distance).min(end)..end
            }
            Self::Full => 0..all,
        }
    }
}

/// Whether the rows of a pass see those of their sequence that come after them in the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// As the mask says.
    Hidden,
    /// All of them.
    Seen,
}

impl AttentionMask {
    /// The same mask where rows see ahead.
    pub(crate) fn seeing(self, ahead: Ahead) -> Self {
        match (ahead, self) {
            (Ahead::Hidden, mask) => mask,
            (Ahead::Seen, Self::SlidingWindow(window) | Self::WindowAndAfter(window)) => {
                Self::WindowAndAfter(window)
            }
            (Ahead::Seen, Self::Causal | Self::Full) => Self::Full,
            (Ahead::Seen, Self::LocalWindow(distance)) => Self::LocalWindow(distance),
        }
    }
}

/// Buffers of a thread: [`SCORES_PER_THREAD`] scores at most, and a few numbers for each query.
#[derive(Default)]
pub(super) struct Scratch {
    scores: Vec<f32>,
    states: Vec<rows::Softmax>,
}

/// Queries of one head, and the keys and values that they attend to.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) queries: Matrix<'a>,
    pub(super) keys: Matrix<'a>,
    pub(super) values: Matrix<'a>,
    pub(super) scale: f32,
    /// Score of a further key whose value is 0: none, one for all queries, or one for each.
    pub(super) sinks: &'a [f32],
}

impl Head<'_> {
    /// Writes `softmax(scale · queries · keysᵀ) · values` into rows of `out`, `stride` numbers apart. `span`
    /// gives the keys that a query attends to, of which neither end is before that of an earlier query.
    /// `modify_scores` is called with a query, the first key of a block, and the query's scores with the keys
    /// from there on.
    pub(super) fn forward(
        &self,
        scratch: &mut Scratch,
        (out, stride): (&mut [f32], usize),
        span: impl Fn(usize) -> Range<usize>,
        modify_scores: impl Fn(usize, usize, &mut [f32]),
    ) {
        for first in (0..self.queries.rows).step_by(QUERY_BLOCK) {
            let queries = self.queries.some_rows(first..self.queries.rows.min(first + QUERY_BLOCK));
            let sinks = match self.sinks {
                [] | [_] => self.sinks,
                each => each.get(first..).unwrap_or_default(),
            };
            Self { queries, sinks, ..*self }.forward_block(
                scratch,
                (&mut out[first * stride..], stride),
                |query| span(first + query),
                |query, key, scores| modify_scores(first + query, key, scores),
            );
        }
    }

    /// Like [`Self::forward`], for one block of queries.
    fn forward_block(
        &self,
        scratch: &mut Scratch,
        (out, stride): (&mut [f32], usize),
        span: impl Fn(usize) -> Range<usize>,
        modify_scores: impl Fn(usize, usize, &mut [f32]),
    ) {
        let (count, size) = (self.queries.rows, self.values.columns);
        let Some(last) = count.checked_sub(1) else { return };
        // A few queries, as those of one token, take more keys at a time.
        let step = (SCORES_PER_THREAD / count).max(KEY_BLOCK);
        scratch.states.clear();
        let begin = |query: usize| match self.sinks {
            [] => rows::Softmax::default(),
            [all] => rows::Softmax::of(*all),
            each => each.get(query).copied().map_or_else(rows::Softmax::default, rows::Softmax::of),
        };
        scratch.states.extend((0..count).map(begin));
        let mut kind = Output::Replace;
        let (first, end) = (span(0).start, span(last).end);
        for begin in (first..end).step_by(step) {
            let keys = begin..end.min(begin + step);
            let needed = count * keys.len();
            // Exactly: a vector that grows by itself takes twice what it had.
            scratch.scores.reserve_exact(needed.saturating_sub(scratch.scores.len()));
            scratch.scores.resize(needed, 0.0);
            let scores = scratch.scores.as_mut_slice();
            let right = self.keys.some_rows(keys.clone()).transposed();
            multiply((scores, keys.len()), Output::Replace, self.queries, right, self.scale, 1);
            let lines = scores.chunks_exact_mut(keys.len()).zip(&mut scratch.states);
            for (query, (scores, state)) in lines.enumerate() {
                modify_scores(query, begin, scores);
                let seen = span(query);
                let seen = seen.start.clamp(begin, keys.end) - begin..seen.end.clamp(begin, keys.end) - begin;
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                let factor = state.take(&mut scores[seen]);
                if kind == Output::Add && factor != 1.0 {
                    out[query * stride..][..size].iter_mut().for_each(|value| *value *= factor);
                }
            }
            let weights = Matrix::rows(scores, count, keys.len(), keys.len());
            multiply((out, stride), kind, weights, self.values.some_rows(keys), 1.0, 1);
            kind = Output::Add;
        }
        for (query, state) in scratch.states.iter().enumerate() {
            let factor = state.factor();
            out[query * stride..][..size].iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Rows that begin `stride` numbers apart, each with the numbers of its first head.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) count: usize,
    pub(super) stride: usize,
}

/// Queries of a sequence, and the keys and values that they attend to.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) queries: Rows<'a>,
    pub(super) keys: Rows<'a>,
    pub(super) values: Rows<'a>,
}

/// Settings of the attention over all sequences of a pass.
#[derive(Clone, Copy)]
pub(super) struct FlashAttention {
    pub(super) heads: usize,
    pub(super) size: usize,
    pub(super) scale: f32,
    pub(super) mask: AttentionMask,
}

impl FlashAttention {
    /// Computes the queries of all sequences, one sequence after another, into rows of `heads · size`
    /// numbers, spread over the threads. `modify_scores` is called with a sequence, a head, a query's number in the
    /// sequence, the first key of a block, and the query's scores with the keys from there on.
    pub(super) fn forward(
        &self,
        sequences: &[Sequence<'_>],
        out: &mut [f32],
        modify_scores: impl Fn(&Sequence<'_>, usize, usize, usize, &mut [f32]) + Sync,
    ) {
        let width = self.heads * self.size;
        let all: usize = sequences.iter().map(|sequence| sequence.queries.count).sum();
        let rows = all.div_ceil(threads()).clamp(MIN_QUERIES, QUERY_BLOCK);
        let mut parts = Vec::new();
        let mut rest = out;
        for sequence in sequences {
            let (own, others) = rest.split_at_mut(sequence.queries.count * width);
            let pieces = own.chunks_mut((rows * width).max(1)).enumerate();
            parts.extend(pieces.map(|(index, out)| Part { sequence, first: index * rows, out }));
            rest = others;
        }
        let run = |scratch: &mut Scratch, part: Part<'_>| self.part(scratch, part, &modify_scores);
        match threads() {
            1 => {
                let mut scratch = Scratch::default();
                parts.into_iter().for_each(|part| run(&mut scratch, part));
            }
            _ => parts.into_par_iter().for_each_init(Scratch::default, run),
        }
    }

    fn part<'a>(
        &self,
        scratch: &mut Scratch,
        part: Part<'a>,
        modify_scores: impl Fn(&Sequence<'_>, usize, usize, usize, &mut [f32]),
    ) {
        let Part { sequence: sequence @ &Sequence { queries, keys, values }, first, out } = part;
        let (size, width) = (self.size, self.heads * self.size);
        let count = out.len() / width;
        for head in 0..self.heads {
            let of =
                |rows: Rows<'a>| Matrix::rows(&rows.values[head * size..], rows.count, size, rows.stride);
            let part = Head {
                queries: of(queries).some_rows(first..first + count),
                keys: of(keys),
                values: of(values),
                scale: self.scale,
                sinks: &[],
            };
            part.forward(
                scratch,
                (&mut out[head * size..], width),
                |query| self.mask.range(first + query, keys.count),
                |query, key, scores| modify_scores(sequence, head, first + query, key, scores),
            );
        }
    }
}

/// Consecutive queries of a sequence, from `first` on, and the rows for their results.
struct Part<'a> {
    sequence: &'a Sequence<'a>,
    first: usize,
    out: &'a mut [f32],
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the same with all scores at once, in 64 bits.
    fn plainly(head: Head<'_>, mask: AttentionMask, query: usize) -> Vec<f32> {
        let row = |matrix: Matrix<'_>, row: usize| {
            let begin = row * matrix.row_stride;
            matrix.values[begin..begin + matrix.columns].to_vec()
        };
        let own = row(head.queries, query);
        let score = |key| {
            let key = row(head.keys, key);
            own.iter().zip(&key).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
                * f64::from(head.scale)
        };
        let weights: Vec<f64> = mask.range(query, head.keys.rows).map(|key| f64::exp(score(key))).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; head.values.columns];
        for (key, weight) in mask.range(query, head.keys.rows).zip(&weights) {
            let values = row(head.values, key);
            out.iter_mut().zip(values).for_each(|(out, x)| *out += (weight / sum) as f32 * x);
        }
        out
    }

    #[test]
    fn there_are_never_more_scores_however_many_queries_share_the_keys() {
        // As of one token whose 70,000 heads share one head of keys; then fewer, which take more keys at a time.
        let mut scratch = Scratch::default();
        for (queries, keys) in [(70_000, 600), (300, 700), (3, 100_000)] {
            let values: Vec<f32> = (0..queries.max(keys)).map(|index| (index % 13) as f32 / 13.0).collect();
            let [queries, keys] = [queries, keys].map(|rows| Matrix::rows(&values, rows, 1, 1));
            let head = Head { queries, keys, values: keys, scale: 0.5, sinks: &[] };
            let mut out = vec![f32::NAN; queries.rows];
            let all = keys.rows;
            head.forward(&mut scratch, (&mut out, 1), |_| 0..all, |_, _, _| {});
            assert!(scratch.scores.capacity() <= SCORES_PER_THREAD, "{} scores", scratch.scores.capacity());
            for query in [0, queries.rows / 2, queries.rows - 1] {
                let plain = plainly(head, AttentionMask::Full, query)[0];
                assert!((plain - out[query]).abs() < 1e-4, "{query}: {plain} {}", out[query]);
            }
        }
    }

    #[test]
    fn blocks_of_keys_add_up_to_one_softmax_whatever_is_seen() {
        // More than two blocks of keys; scores that grow, so that later blocks outdo what came before.
        let (count, size) = (2 * KEY_BLOCK + 77, 8);
        let number = |index: usize| ((index * 7919 % 1000) as f32 / 500.0 - 1.0) * (1.0 + index as f32 / 4e4);
        let values: Vec<f32> = (0..count * 3 * size).map(number).collect();
        let part = |part: usize| Matrix::rows(&values[part * size..], count, size, 3 * size);
        let head = Head { queries: part(0), keys: part(1), values: part(2), scale: 0.8, sinks: &[] };
        for mask in [
            AttentionMask::Full,
            AttentionMask::Causal,
            AttentionMask::SlidingWindow(600),
            AttentionMask::WindowAndAfter(600),
            AttentionMask::LocalWindow(3),
            AttentionMask::LocalWindow(usize::MAX),
        ] {
            let mut out = vec![f32::NAN; count * size];
            head.forward(
                &mut Scratch::default(),
                (&mut out, size),
                |row| mask.range(row, count),
                |_, _, _| {},
            );
            for query in (0..count).step_by(50).chain([count - 1]) {
                let plain = plainly(head, mask, query);
                let pairs = plain.iter().zip(&out[query * size..]);
                let difference = pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(difference < 1e-5, "{mask:?} {query}: {difference}");
            }
        }
    }
}
