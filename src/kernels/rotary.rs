//! Rotary position embedding (Su et al., 2021): pairs of a head's numbers, one from its first half and one from its
//! second, are turned by an angle that grows with the position. The turns are worked out once for a pass and shared
//! by its layers. Which frequencies a model has is left to its configuration.

use candle_core::{Device, Tensor};

use super::{split_rows_at, threads, with_values};
use crate::error::Result;

/// How positions become turns.
#[derive(Debug, Clone)]
pub(crate) struct Frequencies {
    /// Radians from one position to the next, for each pair. A head's numbers beyond two for each pair stay as they are.
    pub(crate) steps: Vec<f32>,
    /// Which of a position's three coordinates turns each pair; all of them the first, where this is empty.
    pub(crate) axes: Vec<u8>,
    /// Factor on the turned numbers.
    pub(crate) amplitude: f32,
}

/// Where a token is: time, height and width in models that see images, and three times the same for a text's.
pub(crate) type Position = [u32; 3];

/// Cosines and sines of the rows of a pass, each `(rows, pairs)`.
pub(crate) struct RopeTable {
    pairs: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    pub(crate) fn new(pairs: usize) -> Self {
        Self { pairs, cosines: Vec::new(), sines: Vec::new() }
    }

    /// Appends rows at these positions.
    pub(crate) fn extend(&mut self, frequencies: &Frequencies, positions: impl Iterator<Item = Position>) {
        for position in positions {
            for (pair, step) in frequencies.steps.iter().enumerate().take(self.pairs) {
                let axis = frequencies.axes.get(pair).copied().unwrap_or(0);
                // 32-bit angles, as the reference implementations have them.
                let angle = position.get(axis as usize).copied().unwrap_or(0) as f32 * step;
                let (sine, cosine) = f64::from(angle).sin_cos();
                self.cosines.push(cosine as f32 * frequencies.amplitude);
                self.sines.push(sine as f32 * frequencies.amplitude);
            }
        }
    }

    /// Rotates the heads, `size` numbers each, that lie one after another in `row`.
    pub(super) fn rotate_row(&self, row_index: usize, row: &mut [f32], size: usize) {
        let range = row_index * self.pairs..(row_index + 1) * self.pairs;
        let (Some(cosines), Some(sines)) = (self.cosines.get(range.clone()), self.sines.get(range)) else {
            return;
        };
        for head in row.chunks_exact_mut(size) {
            let (first, rest) = head.split_at_mut(self.pairs.min(size / 2));
            let turns = cosines.iter().zip(sines);
            for ((x, y), (cosine, sine)) in first.iter_mut().zip(rest).zip(turns) {
                (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
            }
        }
    }

    /// The same for the heads of `(rows, width)`, where they are.
    pub(crate) fn rotate_rows(&self, rows: &Tensor, size: usize) -> Result<Tensor> {
        let (count, width) = rows.dims2()?;
        if !rows.device().is_cpu() {
            let turned = self.rotate(&rows.reshape((count, width / size.max(1), size))?)?;
            return Ok(turned.reshape((count, width))?);
        }
        let mut turned = with_values(rows, <[f32]>::to_vec)?;
        split_rows_at(&mut turned, width, threads(), |first, rows| {
            let rows = rows.chunks_exact_mut(width.max(1));
            (first..).zip(rows).for_each(|(place, row)| self.rotate_row(place, row, size));
        });
        Ok(Tensor::from_vec(turned, (count, width), &Device::Cpu)?)
    }

    /// The same for `(rows, heads, size)` on any device.
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
        let turned = 2 * self.pairs;
        if turned == size {
            return Ok(Tensor::cat(&[left, right], 2)?);
        }
        Ok(Tensor::cat(&[left, right, heads.narrow(2, turned, size - turned)?], 2)?)
    }
}
