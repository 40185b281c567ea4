//! Self-attention of encoders: the rows of each sequence attend to each other, without padding and without a
//! cache. Covers the variants of encoders: rotary embeddings, biases by distance, causal or local masks, and rows at the end
//! that no row attends to. Which layer has which variant is left to the families; generation with a cache to `causal`.

use candle_core::{D, Device, Tensor};

use super::cpu::{split_rows_at, threads, with_values};
use super::flash::{AttentionMask, FlashAttention, Rows, Sequence};
use super::rotary::RopeTable;
use super::score_bias::ScoreBias;
use crate::error::{Error, Result};

/// Settings of one layer's self-attention.
#[derive(Clone, Copy)]
pub(crate) struct SelfAttention<'a> {
    pub(crate) heads: usize,
    /// Factor on the product of a query and a key.
    pub(crate) scale: f32,
    /// Bias on the scores, by distance.
    pub(crate) bias: ScoreBias<'a>,
    /// Keys that each row attends to.
    pub(crate) mask: AttentionMask,
    /// Rotates the queries and keys of the pass.
    pub(crate) rope: Option<&'a RopeTable>,
}

/// Whole sequences, whose rows lie one after another.
#[derive(Clone, Copy)]
pub(crate) struct Whole<'a> {
    /// Number of rows of each.
    pub(crate) lengths: &'a [usize],
    /// Number of each one's last rows that no row attends to; none for 0 in each.
    pub(crate) unseen: &'a [usize],
}

impl<'a> Whole<'a> {
    /// Sequences of these lengths whose rows are all attended to.
    pub(crate) fn of(lengths: &'a [usize]) -> Self {
        Self { lengths, unseen: &[] }
    }

    /// Number of rows of each sequence that are attended to.
    fn seen(self) -> impl Iterator<Item = usize> {
        let unseen = self.unseen.iter().copied().chain(std::iter::repeat(0));
        self.lengths.iter().zip(unseen).map(|(length, unseen)| length.saturating_sub(unseen))
    }
}

impl SelfAttention<'_> {
    /// Computes the attention of `qkv`, `(rows, 3 · width)`, each row a query, key and value. Gives `(rows, width)`, before
    /// the output projection; zeros for a row that attends to none.
    pub(crate) fn forward(&self, qkv: &Tensor, sequences: Whole<'_>) -> Result<Tensor> {
        let lengths = sequences.lengths;
        let (count, triple) = qkv.dims2()?;
        let width = triple / 3;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let fits = self.heads > 0
            && triple.is_multiple_of(3)
            && width.is_multiple_of(self.heads)
            && self.bias.fits(self.heads, width / self.heads, longest);
        if lengths.iter().sum::<usize>() != count || !fits {
            let reason = "attention: lengths and heads do not fit the rows";
            return Err(Error::compute(reason));
        }
        match qkv.device().is_cpu() {
            true => self.on_cpu(qkv, sequences, width),
            false => self.on_any(qkv, sequences, width),
        }
    }

    fn on_cpu(&self, qkv: &Tensor, whole: Whole<'_>, width: usize) -> Result<Tensor> {
        let mut out = vec![0.0; qkv.dim(0)? * width];
        let size = width / self.heads;
        let attention = FlashAttention { heads: self.heads, size, scale: self.scale, mask: self.mask };
        with_values(qkv, |qkv| {
            // Queries and keys lie in the rows of `qkv`, or, rotated, in rows of their own.
            let rotated = self.rope.map(|rope| rotated(qkv, rope, width, size));
            let (query_key, stride) =
                rotated.as_ref().map_or((qkv, 3 * width), |rotated| (rotated, 2 * width));
            let mut first = 0;
            let sequences = whole.lengths.iter().zip(whole.seen()).map(|(&count, seen)| {
                let rows = |values, stride, column, count| {
                    let values: &[f32] = values;
                    Rows { values: values.get(first * stride + column..).unwrap_or_default(), count, stride }
                };
                let (queries, keys) =
                    (rows(query_key, stride, 0, count), rows(query_key, stride, width, seen));
                let values = rows(qkv, 3 * width, 2 * width, seen);
                first += count;
                Sequence { queries, keys, values }
            });
            let sequences: Vec<Sequence<'_>> =
                sequences.filter(|sequence| sequence.queries.count > 0).collect();
            attention.forward(&sequences, &mut out, |sequence, head, query, first, scores| {
                self.bias.add(sequence, head, query, first, scores);
            });
        })?;
        Ok(Tensor::from_vec(out, (qkv.dim(0)?, width), &Device::Cpu)?)
    }

    /// Computes the same with candle's operations: padded to the longest sequence, masked, and the padding
    /// dropped again.
    fn on_any(&self, qkv: &Tensor, whole: Whole<'_>, width: usize) -> Result<Tensor> {
        let (device, heads, size) = (qkv.device(), self.heads, width / self.heads);
        let layout = Padding::of(whole);
        let (texts, longest) = (whole.lengths.len(), layout.longest);
        let rows = qkv.reshape((qkv.dim(0)?, 3 * heads, size))?;
        let query_key = rows.narrow(1, 0, 2 * heads)?;
        let query_key = match self.rope {
            Some(rope) => rope.rotate(&query_key)?,
            None => query_key,
        };
        let rows = Tensor::cat(&[&query_key, &rows.narrow(1, 2 * heads, heads)?], 1)?;
        let padded = rows.index_select(&Tensor::new(layout.source, device)?, 0)?;
        let padded =
            padded.reshape((texts, longest, 3, heads, size))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (query, key, value) = (padded.get(0)?, padded.get(1)?, padded.get(2)?);
        let mask = Tensor::from_vec(layout.mask, (texts, 1, 1, longest), device)?;
        let scores = (query.matmul(&key.t()?)? * f64::from(self.scale))?.broadcast_add(&mask)?;
        let scores = match self.score_bias(longest) {
            Some((bias, heads)) => {
                scores.broadcast_add(&Tensor::from_vec(bias, (1, heads, longest, longest), device)?)?
            }
            None => scores,
        };
        let scores = match self.bias {
            ScoreBias::Vectors(vectors) => (scores + vectors.scores(&query, &key)?)?,
            _ => scores,
        };
        let out = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let rows = out.transpose(1, 2)?.contiguous()?.reshape((texts * longest, width))?;
        let rows = rows.index_select(&Tensor::new(layout.tokens, device)?, 0)?;
        match self.sees_any(whole) {
            Some(sees) => Ok(rows.broadcast_mul(&Tensor::from_vec(sees, (qkv.dim(0)?, 1), device)?)?),
            None => Ok(rows),
        }
    }

    /// For each row 1, or 0 if it attends to none. Nothing where each has some.
    fn sees_any(&self, whole: Whole<'_>) -> Option<Vec<f32>> {
        let sequences = whole.lengths.iter().zip(whole.seen());
        let rows = sequences.flat_map(|(length, seen)| (0..*length).map(move |row| (row, seen)));
        let sees: Vec<f32> =
            rows.map(|(row, seen)| f32::from(u8::from(!self.mask.range(row, seen).is_empty()))).collect();
        sees.contains(&0.0).then_some(sees)
    }

    /// Bias on the scores, `(heads or 1, longest, longest)`: that by distance, and the least number where the
    /// mask hides a key.
    fn score_bias(&self, longest: usize) -> Option<(Vec<f32>, usize)> {
        let heads = match (self.bias.heads(), self.mask) {
            (0, AttentionMask::Full) => return None,
            (heads, _) => heads.max(1),
        };
        let mut bias = Vec::with_capacity(heads * longest * longest);
        for head in 0..heads {
            for row in 0..longest {
                let seen = self.mask.range(row, longest);
                bias.extend((0..longest).map(|column| match seen.contains(&column) {
                    true => self.bias.of(head, row, column),
                    // Infinity would make a row of padding not a number; its result is dropped.
                    false => f32::MIN,
                }));
            }
        }
        Some((bias, heads))
    }
}

/// Queries and keys, `(rows, 2 · width)`, rotated by their positions.
fn rotated(qkv: &[f32], rope: &RopeTable, width: usize, size: usize) -> Vec<f32> {
    let mut rotated = vec![0.0; qkv.len() / 3 * 2];
    split_rows_at(&mut rotated, 2 * width, threads(), |first, rows| {
        let qkv = qkv[first * 3 * width..].chunks_exact(3 * width);
        for (place, (row, qkv)) in (first..).zip(rows.chunks_exact_mut(2 * width).zip(qkv)) {
            row.copy_from_slice(&qkv[..2 * width]);
            rope.rotate_row(place, row, size);
        }
    });
    rotated
}

/// Layout of sequences that are padded to one length, for devices without a fused loop.
struct Padding {
    /// Length of the longest sequence.
    longest: usize,
    /// Row that fills each padded place; any row will do where the mask hides it.
    source: Vec<u32>,
    /// Bias of each padded place: 0, or minus infinity for padding and for rows that none attends to.
    mask: Vec<f32>,
    /// Padded place of each row.
    tokens: Vec<u32>,
}

impl Padding {
    fn of(whole: Whole<'_>) -> Self {
        let longest = whole.lengths.iter().copied().max().unwrap_or(0);
        let mut padding = Self { longest, source: Vec::new(), mask: Vec::new(), tokens: Vec::new() };
        let mut first = 0;
        for (text, (&length, seen)) in whole.lengths.iter().zip(whole.seen()).enumerate() {
            for place in 0..longest {
                let real = place < length;
                padding.source.push((first + if real { place } else { 0 }) as u32);
                padding.mask.push(if place < seen { 0.0 } else { f32::NEG_INFINITY });
                if real {
                    padding.tokens.push((text * longest + place) as u32);
                }
            }
            first += length;
        }
        padding
    }
}

#[cfg(test)]
mod tests {
    use super::super::distance_vectors::{DistanceRows, DistanceVectors};
    use super::super::rotary::{RopeTable, RotaryEmbedding};
    use super::super::score_bias::RelativeBias;
    use super::*;
    use crate::kernels::random;

    fn difference(left: &Tensor, right: &Tensor) -> f32 {
        let difference = (left - right).unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar().unwrap()
    }

    fn rope(lengths: &[usize]) -> RopeTable {
        let frequencies = RotaryEmbedding::new(vec![1.0, 0.5, 0.1, 0.02]);
        let mut rope = RopeTable::new(4);
        for length in lengths {
            rope.extend(&frequencies, (0..*length as u32).map(|place| [place; 3]));
        }
        rope
    }

    #[test]
    fn both_ways_agree_for_every_form_whatever_the_threads() {
        let lengths = [3, 1, 7, 0, 4, 300];
        let qkv = random(0.0, 1.0, (315, 96));
        let rope = rope(&lengths);
        let alibi_slopes = [0.5, 0.25, 0.125, 0.0625];
        let table: Vec<f32> = (0..32 * 4).map(|number| (number % 7) as f32 * 0.3 - 1.0).collect();
        let relative = RelativeBias::new(&table, 4, 128);
        let vectors: Vec<f32> = (0..599 * 8).map(|number| (number % 11) as f32 * 0.1 - 0.5).collect();
        let vectors = |rows| DistanceVectors::new(vectors.clone(), 8, rows);
        let of_queries = vectors(DistanceRows::Queries);
        let of_both = vectors(DistanceRows::QueriesAndKeys);
        let near = [0, 2, 40, usize::MAX].map(AttentionMask::LocalWindow);
        for mask in [AttentionMask::Full, AttentionMask::Causal, AttentionMask::SlidingWindow(9)]
            .into_iter()
            .chain(near)
        {
            for (bias, rope) in [
                (ScoreBias::None, None),
                (ScoreBias::Slopes(&alibi_slopes), None),
                (ScoreBias::Relative(&relative), None),
                (ScoreBias::Vectors(&of_queries), None),
                (ScoreBias::Vectors(&of_both), None),
                (ScoreBias::None, Some(&rope)),
            ] {
                let form = SelfAttention { heads: 4, scale: 0.5, bias, mask, rope };
                for unseen in [&[][..], &[1, 0, 5, 0, 2, 290]] {
                    let whole = Whole { lengths: &lengths, unseen };
                    let slow = form.on_any(&qkv, whole, 32).unwrap();
                    let check = || assert!(difference(&form.forward(&qkv, whole).unwrap(), &slow) < 1e-5);
                    check();
                    rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
                }
            }
        }
    }

    #[test]
    fn a_window_hides_what_is_farther_away() {
        let mut rows = vec![0.0f32; 5 * 3];
        rows.chunks_exact_mut(3).enumerate().for_each(|(place, row)| row[2] = place as f32);
        let qkv = Tensor::from_vec(rows, (5, 3), &Device::Cpu).unwrap();
        let form = SelfAttention {
            heads: 1,
            scale: 1.0,
            bias: ScoreBias::None,
            mask: AttentionMask::LocalWindow(1),
            rope: None,
        };
        let seen: Vec<f32> =
            form.forward(&qkv, Whole::of(&[5])).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let means = [0.5, 1.0, 2.0, 3.0, 3.5];
        assert!(seen.iter().zip(means).all(|(seen, mean)| (seen - mean).abs() < 1e-6), "{seen:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let qkv = Tensor::zeros((4, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        let form =
            |heads, bias| SelfAttention { heads, scale: 0.5, bias, mask: AttentionMask::Full, rope: None };
        assert!(form(2, ScoreBias::None).forward(&qkv, Whole::of(&[3])).is_err());
        assert!(form(3, ScoreBias::None).forward(&qkv, Whole::of(&[4])).is_err());
        assert!(form(0, ScoreBias::None).forward(&qkv, Whole::of(&[4])).is_err());
        assert!(form(2, ScoreBias::Slopes(&[0.5])).forward(&qkv, Whole::of(&[4])).is_err());
        // Of heads of two numbers, and of at most three rows.
        let vectors = DistanceVectors::new(vec![0.0; 5 * 2], 2, DistanceRows::Queries);
        let vectors = |heads| form(heads, ScoreBias::Vectors(&vectors));
        assert!(
            vectors(2).forward(&qkv, Whole::of(&[4])).is_err()
                && vectors(4).forward(&qkv, Whole::of(&[3, 1])).is_err()
        );
        assert!(vectors(2).forward(&qkv, Whole::of(&[3, 1])).is_ok());
    }
}
