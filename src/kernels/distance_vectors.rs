//! Learned vectors of the relative position of query and key, with which queries have scores beside those with keys (Shaw
//! et al., 2018, arXiv 1803.02155), or queries and keys both (Huang et al., 2020, arXiv 2009.13658, method 4). Their
//! place among the other biases is `score_bias`.

use candle_core::{Device, Tensor};

use super::flash::{Rows, Sequence};
use crate::error::Result;

/// A vector for each relative position, the same in all heads of a layer.
#[derive(Debug)]
pub(crate) struct DistanceVectors {
    /// From that of a key farthest after the query to that of one farthest before it, `(2 · reach - 1, size)`.
    table: Vec<f32>,
    size: usize,
    rows: DistanceRows,
    /// Factor on the scores.
    scale: f32,
}

/// The rows that have scores with the vectors of distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DistanceRows {
    Queries,
    QueriesAndKeys,
}

impl DistanceVectors {
    /// From a table of `(2 · reach - 1, size)`, where `reach` rows are the longest sequence.
    pub(crate) fn new(table: Vec<f32>, size: usize, rows: DistanceRows) -> Self {
        Self { table, size, rows, scale: 1.0 / (size as f32).sqrt() }
    }

    fn reach(&self) -> usize {
        self.table.len().checked_div(self.size).unwrap_or(0).div_ceil(2)
    }

    /// True if they are those of heads of this size and of sequences of so many rows.
    pub(super) fn fits(&self, size: usize, longest: usize) -> bool {
        self.size == size && longest <= self.reach()
    }

    fn of(&self, query: usize, key: usize) -> &[f32] {
        let number = (query + self.reach()).saturating_sub(key + 1);
        self.table.get(number * self.size..).and_then(|table| table.get(..self.size)).unwrap_or_default()
    }

    /// Adds the scores with the vectors to those of a query with the keys from `first` on.
    pub(super) fn add(
        &self,
        sequence: &Sequence<'_>,
        head: usize,
        query: usize,
        first: usize,
        scores: &mut [f32],
    ) {
        let own = |rows: &Rows<'_>, row: usize| {
            let begin = row * rows.stride + head * self.size;
            begin..begin + self.size
        };
        let Some(row) = sequence.queries.values.get(own(&sequence.queries, query)) else { return };
        let mut sum = row.to_vec();
        for (key, score) in (first..).zip(scores) {
            if self.rows == DistanceRows::QueriesAndKeys {
                let keys = sequence.keys.values.get(own(&sequence.keys, key)).unwrap_or_default();
                sum.iter_mut().zip(row.iter().zip(keys)).for_each(|(sum, (query, key))| *sum = query + key);
            }
            *score += self.scale * dot(&sum, self.of(query, key));
        }
    }

    /// The same scores of padded sequences for an accelerator: of queries and keys `(batch, heads, rows, size)` to
    /// `(batch, heads, rows, rows)`.
    pub(super) fn scores(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (batch, heads, count, size) = queries.dims4()?;
        let table: Vec<f32> = (0..count)
            .flat_map(|query| (0..count).flat_map(move |key| self.of(query, key)))
            .copied()
            .collect();
        let table =
            Tensor::from_vec(table, (count, count, size), &Device::Cpu)?.to_device(queries.device())?;
        // For each row its products with the vectors from it to all others, `(rows, batch, heads, rows)`.
        let products = |rows: &Tensor, vectors: Tensor| {
            let rows = rows.permute((2, 0, 1, 3))?.contiguous()?.reshape((count, batch * heads, size))?;
            rows.matmul(&vectors.contiguous()?)?.reshape((count, batch, heads, count))
        };
        let of_queries = products(queries, table.transpose(1, 2)?)?.permute((1, 2, 0, 3))?;
        let scores = match self.rows {
            DistanceRows::Queries => of_queries,
            DistanceRows::QueriesAndKeys => {
                let of_keys = products(keys, table.permute((1, 2, 0))?)?.permute((1, 2, 3, 0))?;
                (of_queries + of_keys)?
            }
        };
        Ok((scores * f64::from(self.scale))?)
    }
}

/// In partial sums, which the compiler keeps in a register.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (left, right) = (left.chunks(sums.len()), right.chunks(sums.len()));
    for (left, right) in left.zip(right) {
        sums.iter_mut().zip(left.iter().zip(right)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum()
}
