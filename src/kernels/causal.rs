//! Grouped-query attention with a KV cache (Ainslie et al., 2023, arXiv 2305.13245). Rows of several sequences lie one after
//! another; each sequence has a cache of its own, to which its rows add their keys and values. On the processor, sequences and
//! heads are spread over the caller's threads, and no sequence's result depends on another's; on an accelerator it is candle's
//! operations, one sequence after another. Projections are left to the families.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::cpu::{threads, with_values};
use super::flash::{AttentionMask, Head, Scratch};
use super::matmul::Matrix;
use super::rms_norm::RmsNorm;
use super::rotary::RopeTable;
use super::rows;
use super::score_bias::{RelativeBias, ScoreBias};
use crate::error::{Error, Result};

/// Tokens by which a cache grows, so that it takes no more memory than [`KvCache::bytes_for`] counts. Growing
/// copies the cache: at 8,192 tokens a row has been read and written 32 times, where each new row has
/// attention read all.
pub(crate) const KV_CACHE_STEP: usize = 128;
/// Rows of a prompt that are one task. A row's last bit depends on how many others its task has, so pieces of a prompt that
/// begin at multiples of it, and end there or with the prompt, give the same rows however long they are.
pub(crate) const ROW_BLOCK: usize = 64;

/// Attention of one layer.
#[derive(Debug, Clone)]
pub(crate) struct CausalAttention {
    pub(crate) heads: usize,
    /// Number of key-value heads: a divisor of `heads`.
    pub(crate) kv_heads: usize,
    /// Numbers of a head.
    pub(crate) size: usize,
    pub(crate) scale: f32,
    /// Soft cap on the scores, as `cap · tanh(score / cap)` (Gemma 2).
    pub(crate) soft_cap: Option<f32>,
    /// Keys that each row attends to.
    pub(crate) mask: AttentionMask,
    /// Norms of the queries and keys of each head (QK norm).
    pub(crate) head_norms: Option<(RmsNorm, RmsNorm)>,
    /// Norm of each head's values (Gemma 3n).
    pub(crate) value_norm: Option<RmsNorm>,
    pub(crate) key_values: KeyValues,
    /// For each head the score of a further key, whose value is 0 and which takes its share of the attention (GPT-OSS);
    /// empty for none.
    pub(crate) sinks: Vec<f32>,
    /// Learned biases on scores by distance (T5).
    pub(crate) relative_bias: Option<Arc<RelativeBias>>,
}

/// The keys and values that a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyValues {
    /// Its own, which its rows add to the caches.
    Own,
    /// Those of an earlier layer, whose caches have the rows of this pass already. Its rows are queries alone.
    Shared,
}

/// Keys and values of one layer and one sequence.
#[derive(Debug)]
pub(crate) enum KvCache {
    /// `(tokens, kv_heads · size)` each, in host memory.
    Host { keys: Vec<f32>, values: Vec<f32> },
    /// `(capacity, kv_heads · size)` each, on an accelerator.
    Device { keys: Tensor, values: Tensor, tokens: usize },
}

impl KvCache {
    /// Creates an empty cache of `width` numbers a token.
    pub(crate) fn new(width: usize, device: &Device) -> Result<Self> {
        Self::of(if device.is_cpu() { 0 } else { KV_CACHE_STEP }, width, device)
    }

    /// Creates an empty cache with room for exactly so many tokens of `width` numbers.
    pub(crate) fn of(tokens: usize, width: usize, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            let room = || Vec::with_capacity(tokens.saturating_mul(width));
            return Ok(Self::Host { keys: room(), values: room() });
        }
        let empty = Tensor::zeros((tokens, width), candle_core::DType::F32, device)?;
        Ok(Self::Device { keys: empty.clone(), values: empty.copy()?, tokens: 0 })
    }

    /// Bytes that the cache takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Host { keys, values } => 4 * (keys.capacity() + values.capacity()) as u64,
            Self::Device { keys, values, .. } => 4 * (keys.elem_count() + values.elem_count()) as u64,
        }
    }

    /// A copy of its own, with the same room.
    pub(crate) fn fork(&self) -> Result<Self> {
        let copy = |store: &Vec<f32>| {
            let mut copy = Vec::with_capacity(store.capacity());
            copy.extend_from_slice(store);
            copy
        };
        Ok(match self {
            Self::Host { keys, values } => Self::Host { keys: copy(keys), values: copy(values) },
            Self::Device { keys, values, tokens } => {
                Self::Device { keys: keys.copy()?, values: values.copy()?, tokens: *tokens }
            }
        })
    }

    /// Keys and values of some of its tokens, each with `width` numbers. Nothing if they are not there, or on an accelerator.
    pub(crate) fn rows(&self, tokens: Range<usize>, width: usize) -> Option<[&[f32]; 2]> {
        let Self::Host { keys, values } = self else { return None };
        let range = tokens.start.checked_mul(width)?..tokens.end.checked_mul(width)?;
        Some([keys.get(range.clone())?, values.get(range)?])
    }

    /// Fills an empty cache with keys and values, in order, so many numbers of each in all.
    pub(crate) fn fill<'a>(
        &mut self,
        rows: impl Iterator<Item = [&'a [f32]; 2]>,
        numbers: usize,
        width: usize,
    ) -> Result<()> {
        let Self::Host { keys, values } = self else { return Err(misfit("the keys are on another device")) };
        for store in [&mut *keys, &mut *values] {
            store.clear();
            grow(store, numbers, KV_CACHE_STEP * width);
        }
        for [more_keys, more_values] in rows {
            keys.extend_from_slice(more_keys);
            values.extend_from_slice(more_values);
        }
        Ok(())
    }

    /// Bytes that a cache of so many tokens takes.
    pub(crate) fn bytes_for(tokens: usize, width: usize) -> u64 {
        let tokens = tokens.div_ceil(KV_CACHE_STEP).saturating_mul(KV_CACHE_STEP) as u64;
        tokens.saturating_mul(8).saturating_mul(width as u64)
    }
}

/// Bytes that a growing cache of so many tokens takes besides, as its keys, or its values, are there twice
/// for a moment. One layer of one sequence grows at a time.
pub(crate) fn growing_bytes(tokens: usize, width: usize) -> u64 {
    (tokens as u64).saturating_mul(4).saturating_mul(width as u64)
}

/// Rows of one sequence in a pass, and what one layer keeps of it: the next `length` tokens after the `past` ones that it
/// has seen already. Keys and values beyond those are dropped.
pub(crate) struct LayerSegment<'a, C = KvCache> {
    pub(crate) cache: &'a mut C,
    pub(crate) past: usize,
    pub(crate) length: usize,
}

impl CausalAttention {
    /// Width of a row of keys, or of values.
    fn kv_width(&self) -> usize {
        self.kv_heads * self.size
    }

    /// Numbers of a row of keys and values that a layer has of its own.
    fn own_width(&self) -> usize {
        match self.key_values {
            KeyValues::Own => 2 * self.kv_width(),
            KeyValues::Shared => 0,
        }
    }

    /// Appends to the caches and attends to them. Each row of `qkv`, `(rows, (heads + 2 · kv_heads) · size)`,
    /// is a token's queries, keys and values, or its queries alone where those of another layer are shared; `rope` has a row for each, and `segments` cover them in order.
    /// Gives `(rows, heads · size)`, before the output projection.
    pub(crate) fn forward(
        &self,
        qkv: &Tensor,
        rope: &RopeTable,
        segments: &mut [LayerSegment<'_>],
    ) -> Result<Tensor> {
        let (count, width) = qkv.dims2()?;
        let fits = self.kv_heads > 0
            && self.size > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && width == self.heads * self.size + self.own_width()
            && [0, self.heads].contains(&self.sinks.len())
            && segments.iter().map(|segment| segment.length).sum::<usize>() == count;
        if !fits {
            return Err(misfit("heads and lengths do not fit the rows"));
        }
        if qkv.device().is_cpu() {
            self.on_cpu(qkv, rope, segments)
        } else {
            self.on_any(qkv, rope, segments)
        }
    }

    fn on_cpu(&self, qkv: &Tensor, rope: &RopeTable, segments: &mut [LayerSegment<'_>]) -> Result<Tensor> {
        let (count, width) = qkv.dims2()?;
        let mut qkv = with_values(qkv, <[f32]>::to_vec)?;
        let (queries, own_keys) = (self.heads * self.size, self.own_width() / 2);
        for (index, row) in qkv.chunks_exact_mut(width).enumerate() {
            let (query, rest) = row.split_at_mut(queries);
            let (key, value) = rest.split_at_mut(own_keys);
            if let Some(value_norm) = &self.value_norm {
                value_norm.on_values(value)?;
            }
            if let Some((query_norm, key_norm)) = &self.head_norms {
                query_norm.on_values(query)?;
                key_norm.on_values(key)?;
            }
            rope.rotate_row(index, query, self.size);
            rope.scale_queries(index, query);
            rope.rotate_row(index, key, self.size);
        }
        let mut rest = qkv.as_slice();
        let mut sequences = Vec::with_capacity(segments.len());
        for segment in segments {
            let (rows, others) = rest.split_at(segment.length * width);
            rest = others;
            sequences.push(self.append(segment, rows, width)?);
        }
        let mut out = vec![0.0; count * queries];
        self.attention(&sequences, &mut out);
        Ok(Tensor::from_vec(out, (count, queries), &Device::Cpu)?)
    }

    /// Appends the rows' keys and values to the sequence's cache.
    fn append<'a>(
        &self,
        segment: &'a mut LayerSegment<'_>,
        rows: &'a [f32],
        width: usize,
    ) -> Result<Sequence<'a>> {
        let (kv_width, past) = (self.kv_width(), segment.past);
        let KvCache::Host { keys, values } = &mut *segment.cache else {
            return Err(misfit("the keys are on another device"));
        };
        if keys.len() < past * kv_width || values.len() < past * kv_width {
            return Err(misfit("tokens are missing from a sequence's cache"));
        }
        if self.key_values == KeyValues::Shared {
            let all = (past + segment.length) * kv_width;
            return match keys.len() == all && values.len() == all {
                true => Ok(Sequence { rows, width, keys, values, past, length: segment.length }),
                false => Err(misfit("a layer whose keys are shared has not read the rows")),
            };
        }
        let begin = self.heads * self.size;
        for (store, begin) in [(&mut *keys, begin), (&mut *values, begin + kv_width)] {
            store.truncate(past * kv_width);
            grow(store, segment.length * kv_width, KV_CACHE_STEP * kv_width);
            for row in rows.chunks_exact(width) {
                store.extend_from_slice(&row[begin..begin + kv_width]);
            }
        }
        Ok(Sequence { rows, width, keys, values, past, length: segment.length })
    }

    fn attention(&self, sequences: &[Sequence<'_>], out: &mut [f32]) {
        let mut tasks = Vec::new();
        let mut first_row = 0;
        for sequence in sequences {
            for begin in (0..sequence.length).step_by(ROW_BLOCK) {
                let end = sequence.length.min(begin + ROW_BLOCK);
                tasks.extend((0..self.kv_heads).map(|head| Task { sequence, head, begin, end, first_row }));
            }
            first_row += sequence.length;
        }
        let done: Vec<Vec<f32>> = match threads() {
            1 => {
                let mut scratch = Scratch::default();
                tasks.iter().map(|task| self.group_attention(&mut scratch, task)).collect()
            }
            _ => tasks
                .par_iter()
                .map_init(Scratch::default, |scratch, task| self.group_attention(scratch, task))
                .collect(),
        };
        let (row_width, group) = (self.heads * self.size, self.heads / self.kv_heads * self.size);
        for (task, values) in tasks.iter().zip(&done) {
            for (row, values) in (task.first_row + task.begin..).zip(values.chunks_exact(group)) {
                let begin = row * row_width + task.head * group;
                out[begin..begin + group].copy_from_slice(values);
            }
        }
    }

    /// Attention of the heads that share one key-value head, for some rows: `(rows, heads in the group ·
    /// size)`.
    fn group_attention(&self, scratch: &mut Scratch, task: &Task<'_>) -> Vec<f32> {
        let (sequence, size, kv_width) = (task.sequence, self.size, self.kv_width());
        let (count, group) = (task.end - task.begin, self.heads / self.kv_heads);
        let all = sequence.past + sequence.length;
        let kv_head = |values| {
            let values: &[f32] = values;
            Matrix::rows(&values[task.head * size..], all, size, kv_width)
        };
        let (keys, values) = (kv_head(sequence.keys), kv_head(sequence.values));
        let mut out = vec![0.0; count * group * size];
        let queries = &sequence.rows[task.begin * sequence.width + task.head * group * size..];
        // One row: its heads are the rows of the product. More: one head after another.
        let (products, high, stride, out_stride) = match count {
            1 => (1, group, size, size),
            _ => (group, count, sequence.width, group * size),
        };
        // One for each row of a product: those of its heads, or that of the one head.
        let sinks = self.sinks.get(task.head * group..(task.head + 1) * group).unwrap_or_default();
        let place = |row| sequence.past + task.begin + if count == 1 { 0 } else { row };
        for product in 0..products {
            let queries = Matrix::rows(&queries[product * size..], high, size, stride);
            let sinks = match count {
                1 => sinks,
                _ => sinks.get(product..=product).unwrap_or_default(),
            };
            Head { queries, keys, values, scale: self.scale, sinks }.forward(
                scratch,
                (&mut out[product * size..], out_stride),
                |row| self.mask.range(place(row), all),
                |row, first, scores| {
                    self.soft_cap(scores);
                    let head = task.head * group + if count == 1 { row } else { product };
                    self.add_bias(head, place(row), first, scores);
                },
            );
        }
        out
    }

    fn add_bias(&self, head: usize, query: usize, first: usize, scores: &mut [f32]) {
        if let Some(bias) = &self.relative_bias {
            ScoreBias::Relative(bias).add_by_place(head, query, first, scores);
        }
    }

    fn soft_cap(&self, scores: &mut [f32]) {
        if let Some(cap) = self.soft_cap {
            scores.iter_mut().for_each(|score| *score /= cap);
            rows::tanh(scores);
            scores.iter_mut().for_each(|score| *score *= cap);
        }
    }

    /// Computes the same with candle's operations.
    fn on_any(&self, qkv: &Tensor, rope: &RopeTable, segments: &mut [LayerSegment<'_>]) -> Result<Tensor> {
        let (count, _) = qkv.dims2()?;
        let (queries, kv_width) = (self.heads * self.size, self.kv_width());
        let part = |begin, heads: usize, norm: Option<&RmsNorm>| -> Result<Tensor> {
            let part = qkv.narrow(1, begin, heads * self.size)?.contiguous()?;
            let part = part.reshape((count * heads, self.size))?;
            let part = norm.map_or_else(|| Ok(part.clone()), |norm| norm.forward(&part))?;
            rope.rotate(&part.reshape((count, heads, self.size))?)
        };
        let norms = self.head_norms.as_ref();
        let query = rope.scale(&part(0, self.heads, norms.map(|norms| &norms.0))?)?;
        let own = match self.key_values {
            KeyValues::Own => {
                let key = part(queries, self.kv_heads, norms.map(|norms| &norms.1))?;
                let value = qkv.narrow(1, queries + kv_width, kv_width)?.contiguous()?;
                let value = match &self.value_norm {
                    Some(norm) => norm.forward(&value)?,
                    None => value,
                };
                Some((key.reshape((count, kv_width))?, value))
            }
            KeyValues::Shared => None,
        };
        let mut begin = 0;
        let mut out = Vec::with_capacity(segments.len());
        for segment in segments {
            let rows = |tensor: &Tensor| tensor.narrow(0, begin, segment.length)?.contiguous();
            let query = rows(&query)?;
            let (keys, values) = match &own {
                Some((key, value)) => append_on_device(segment, &rows(key)?, &rows(value)?)?,
                None => shared_on_device(segment)?,
            };
            begin += segment.length;
            out.push(self.sequence_on_any(segment, &query, keys, values)?);
        }
        Ok(Tensor::cat(&out, 0)?)
    }

    fn sequence_on_any(
        &self,
        segment: &LayerSegment<'_>,
        query: &Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Result<Tensor> {
        let (length, all) = (segment.length, segment.past + segment.length);
        let group = self.heads / self.kv_heads;
        let heads =
            |tensor: Tensor| tensor.reshape((all, self.kv_heads, self.size))?.transpose(0, 1)?.contiguous();
        let (keys, values) = (heads(keys)?, heads(values)?);
        let query = query.transpose(0, 1)?.contiguous()?;
        let query = query.reshape((self.kv_heads, group * length, self.size))?;
        let mut scores = (query.matmul(&keys.t()?)? * f64::from(self.scale))?;
        if let Some(cap) = self.soft_cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mut mask = vec![f32::NEG_INFINITY; length * all];
        for (row, mask) in mask.chunks_exact_mut(all).enumerate() {
            mask[self.mask.range(segment.past + row, all)].fill(0.0);
        }
        let mask = Tensor::from_vec(mask, (1, length, all), query.device())?;
        let mut scores = scores.reshape((self.heads, length, all))?.broadcast_add(&mask)?;
        if self.relative_bias.is_some() {
            let mut bias = vec![0.0; self.heads * length * all];
            for (index, line) in bias.chunks_exact_mut(all).enumerate() {
                self.add_bias(index / length, segment.past + index % length, 0, line);
            }
            scores = (scores + Tensor::from_vec(bias, (self.heads, length, all), query.device())?)?;
        }
        let weights = match self.sinks.is_empty() {
            true => candle_nn::ops::softmax(&scores, D::Minus1)?,
            false => {
                let sinks = Tensor::from_slice(&self.sinks, (self.heads, 1, 1), query.device())?;
                let sinks = sinks.broadcast_as((self.heads, length, 1))?;
                let scores = Tensor::cat(&[&scores, &sinks.contiguous()?], D::Minus1)?;
                candle_nn::ops::softmax(&scores, D::Minus1)?.narrow(D::Minus1, 0, all)?.contiguous()?
            }
        };
        let out = weights.reshape((self.kv_heads, group * length, all))?.matmul(&values)?;
        let out = out.reshape((self.heads, length, self.size))?.transpose(0, 1)?.contiguous()?;
        Ok(out.reshape((length, self.heads * self.size))?)
    }
}

/// Appends to a cache on an accelerator. Gives all its keys and values.
fn append_on_device(
    segment: &mut LayerSegment<'_>,
    key: &Tensor,
    value: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let all = segment.past + segment.length;
    let KvCache::Device { keys, values, tokens } = &mut *segment.cache else {
        return Err(misfit("the keys are in host memory"));
    };
    if *tokens < segment.past {
        return Err(misfit("tokens are missing from a sequence's cache"));
    }
    let (capacity, width) = keys.dims2()?;
    if capacity < all {
        let more = all.next_multiple_of(KV_CACHE_STEP) - capacity;
        let empty = Tensor::zeros((more, width), keys.dtype(), keys.device())?;
        *keys = Tensor::cat(&[&*keys, &empty], 0)?;
        *values = Tensor::cat(&[&*values, &empty], 0)?;
    }
    keys.slice_set(key, 0, segment.past)?;
    values.slice_set(value, 0, segment.past)?;
    *tokens = all;
    Ok((keys.narrow(0, 0, all)?, values.narrow(0, 0, all)?))
}

/// All keys and values of a cache that an earlier layer has appended this pass's rows to.
fn shared_on_device(segment: &LayerSegment<'_>) -> Result<(Tensor, Tensor)> {
    let all = segment.past + segment.length;
    match &*segment.cache {
        KvCache::Device { keys, values, tokens } if *tokens == all => {
            Ok((keys.narrow(0, 0, all)?, values.narrow(0, 0, all)?))
        }
        _ => Err(misfit("a layer whose keys are shared has not read the rows")),
    }
}

/// Reserves capacity for `more` numbers, in whole steps.
fn grow(store: &mut Vec<f32>, more: usize, step: usize) {
    let needed = store.len() + more;
    if needed > store.capacity() {
        let room = needed.next_multiple_of(step.max(1));
        store.reserve_exact(room - store.len());
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("attention: {reason}"))
}

/// Sequence with its rows of this pass and its cache.
struct Sequence<'a> {
    rows: &'a [f32],
    width: usize,
    keys: &'a [f32],
    values: &'a [f32],
    past: usize,
    length: usize,
}

/// Rows `begin` to `end` of a sequence, whose first is row `first_row` of the pass, for one key-value head.
struct Task<'a> {
    sequence: &'a Sequence<'a>,
    head: usize,
    begin: usize,
    end: usize,
    first_row: usize,
}
