//! Rotary position embedding (Su et al., 2021, arXiv 2104.09864) in the layout of GPT-NeoX and Llama in
//! transformers: pairs of a head's numbers, one from its first half and one from its second, are rotated by
//! an angle that grows with the position. The cosines and sines are computed once for a pass and shared by
//! its layers. Which frequencies a model has is left to its configuration; the layout of neighbouring pairs
//! is in `interleaved_rotary`.

use candle_core::{Device, Tensor};

use super::cpu::{split_rows_at, threads, with_values};
use crate::error::Result;

/// Rotary embedding of one model: which angle each pair of a head's numbers is rotated by.
#[derive(Debug, Clone)]
pub(crate) struct RotaryEmbedding {
    /// Radians from one position to the next, for each pair (`inv_freq` in transformers). A head's numbers
    /// beyond two for each pair stay as they are.
    pub(crate) inverse_frequencies: Vec<f32>,
    /// Index of the position's coordinate, 0 to 2, that rotates each pair (M-RoPE); empty: the first for all.
    pub(crate) axes: Vec<u8>,
    /// Factor on cosines and sines, as YaRN and LongRoPE have it; 1 for the plain embedding.
    pub(crate) attention_factor: f32,
    /// Growth of the queries with their position.
    pub(crate) query_growth: Option<QueryGrowth>,
}

/// A factor on queries that grows where texts become longer than those of the pretraining (Llama 4, Ministral 3):
/// `1 + beta · ln(1 + floor(position / original))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QueryGrowth {
    pub(crate) beta: f32,
    /// Context of the pretraining, in tokens; above 0.
    pub(crate) original: u32,
}

impl QueryGrowth {
    fn at(self, position: Position) -> f32 {
        let periods = position[0].checked_div(self.original).unwrap_or(0);
        1.0 + self.beta * (1.0 + periods as f32).ln()
    }
}

impl RotaryEmbedding {
    /// Over the first coordinate alone, with an attention factor of 1.
    pub(crate) fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self { inverse_frequencies, axes: Vec::new(), attention_factor: 1.0, query_growth: None }
    }
}

/// Position of a token: time, height and width in models that see images, and three times the same for a
/// text's.
pub(crate) type Position = [u32; 3];

/// Cosines and sines of the rows of a pass, each `(rows, pairs)`.
pub(crate) struct RopeTable {
    pairs: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// A factor for each row's queries; empty for none.
    query_factors: Vec<f32>,
}

impl RopeTable {
    /// A table without rows; one without pairs leaves heads as they are.
    pub(crate) fn new(pairs: usize) -> Self {
        Self { pairs, cosines: Vec::new(), sines: Vec::new(), query_factors: Vec::new() }
    }

    /// Appends rows at these positions.
    pub(crate) fn extend(&mut self, embedding: &RotaryEmbedding, positions: impl Iterator<Item = Position>) {
        for position in positions {
            self.query_factors.extend(embedding.query_growth.map(|growth| growth.at(position)));
            for (pair, frequency) in embedding.inverse_frequencies.iter().enumerate().take(self.pairs) {
                let axis = embedding.axes.get(pair).copied().unwrap_or(0);
                // 32-bit angles, as the reference implementations have them.
                let angle = position.get(axis as usize).copied().unwrap_or(0) as f32 * frequency;
                let (sine, cosine) = f64::from(angle).sin_cos();
                self.cosines.push(cosine as f32 * embedding.attention_factor);
                self.sines.push(sine as f32 * embedding.attention_factor);
            }
        }
    }

    /// Appends rows at these coordinates, by which the first two axes rotate.
    pub(crate) fn extend_at(
        &mut self,
        embedding: &RotaryEmbedding,
        coordinates: impl Iterator<Item = [f32; 2]>,
    ) {
        for coordinates in coordinates {
            for (pair, frequency) in embedding.inverse_frequencies.iter().enumerate().take(self.pairs) {
                let axis = embedding.axes.get(pair).copied().unwrap_or(0);
                let angle = coordinates.get(axis as usize).copied().unwrap_or(0.0) * frequency;
                let (sine, cosine) = f64::from(angle).sin_cos();
                self.cosines.push(cosine as f32 * embedding.attention_factor);
                self.sines.push(sine as f32 * embedding.attention_factor);
            }
        }
    }

    /// Rotates in place the heads, `size` numbers each, that lie one after another in row number `row_index`
    /// of the pass.
    pub(super) fn rotate_row(&self, row_index: usize, row: &mut [f32], size: usize) {
        let range = row_index * self.pairs..(row_index + 1) * self.pairs;
        let (Some(cosines), Some(sines)) = (self.cosines.get(range.clone()), self.sines.get(range)) else {
            return;
        };
        for head in row.chunks_exact_mut(size) {
            let (first, rest) = head.split_at_mut(self.pairs.min(size / 2));
            let angles = cosines.iter().zip(sines);
            for ((x, y), (cosine, sine)) in first.iter_mut().zip(rest).zip(angles) {
                (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
            }
        }
    }

    /// Scales the queries of row number `row_index` of the pass.
    pub(super) fn scale_queries(&self, row_index: usize, queries: &mut [f32]) {
        if let Some(factor) = self.query_factors.get(row_index) {
            queries.iter_mut().for_each(|query| *query *= *factor);
        }
    }

    /// Scales the queries `(rows, heads, size)` on any device.
    pub(super) fn scale(&self, queries: &Tensor) -> Result<Tensor> {
        if self.query_factors.is_empty() {
            return Ok(queries.clone());
        }
        let factors = Tensor::from_slice(&self.query_factors, (queries.dim(0)?, 1, 1), queries.device())?;
        Ok(queries.broadcast_mul(&factors)?)
    }

    /// Rotates the heads, `size` numbers each, of `(rows, width)`. Gives the same shape.
    pub(crate) fn rotate_rows(&self, rows: &Tensor, size: usize) -> Result<Tensor> {
        let (count, width) = rows.dims2()?;
        if !rows.device().is_cpu() {
            let rotated = self.rotate(&rows.reshape((count, width / size.max(1), size))?)?;
            return Ok(rotated.reshape((count, width))?);
        }
        let mut rotated = with_values(rows, <[f32]>::to_vec)?;
        split_rows_at(&mut rotated, width, threads(), |first, rows| {
            let rows = rows.chunks_exact_mut(width.max(1));
            (first..).zip(rows).for_each(|(place, row)| self.rotate_row(place, row, size));
        });
        Ok(Tensor::from_vec(rotated, (count, width), &Device::Cpu)?)
    }

    /// Rotates `(rows, heads, size)` on any device, by candle's operations.
    pub(super) fn rotate(&self, heads: &Tensor) -> Result<Tensor> {
        let (rows, _, size) = heads.dims3()?;
        if self.pairs == 0 {
            return Ok(heads.clone());
        }
        let table = |values: &[f32]| -> Result<Tensor> {
            let table = Tensor::from_slice(values, (rows, 1, self.pairs), &Device::Cpu)?;
            Ok(table.to_device(heads.device())?)
        };
        let (cosines, sines) = (table(&self.cosines)?, table(&self.sines)?);
        let (first, second) = (heads.narrow(2, 0, self.pairs)?, heads.narrow(2, self.pairs, self.pairs)?);
        let left = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
        let right = (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?;
        let rotated = 2 * self.pairs;
        if rotated == size {
            return Ok(Tensor::cat(&[left, right], 2)?);
        }
        Ok(Tensor::cat(&[left, right, heads.narrow(2, rotated, size - rotated)?], 2)?)
    }
}
