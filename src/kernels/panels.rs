//! Matrix product with a weight that is packed in panels of output columns, each read from one end to the
//! other, once for a few rows together. Each output is summed in the same order whatever the other rows are.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::threads;

/// Output columns of a panel: a multiple of two registers on every processor.
pub(super) const PANEL: usize = 32;
/// Rows that are computed in one reading of a panel.
const BLOCK: usize = 8;

/// Weight `(out, in)` as panels of `(in, column)`.
#[derive(Debug)]
pub(super) struct Panels {
    whole: Vec<f32>,
    /// Panel of the remaining outputs, padded with zeros; empty where the others take all.
    last: Vec<f32>,
    in_dim: usize,
}

impl Panels {
    /// Packs a weight in place, so that a load never has a matrix in memory twice. The last panel has memory
    /// of its own, because there is no room for its padding in the weight's.
    pub(super) fn pack(mut weight: Vec<f32>, in_dim: usize) -> Self {
        let size = PANEL * in_dim;
        let mut rows = vec![0.0; size];
        let rest = weight.len() / size * size;
        let mut last = vec![0.0; if rest < weight.len() { size } else { 0 }];
        last[..weight.len() - rest].copy_from_slice(&weight[rest..]);
        weight.truncate(rest);
        for panel in weight.chunks_exact_mut(size).chain(last.chunks_exact_mut(size)) {
            rows.copy_from_slice(panel);
            for (column, row) in rows.chunks_exact(in_dim).enumerate() {
                for (to, value) in panel[column..].iter_mut().step_by(PANEL).zip(row) {
                    *to = *value;
                }
            }
        }
        Self { whole: weight, last, in_dim }
    }

    /// Numbers of one row of the weight.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = &f32> {
        let begin = row / PANEL * PANEL * self.in_dim;
        let panel = self.whole.get(begin..begin + PANEL * self.in_dim).unwrap_or(&self.last);
        panel.iter().skip(row % PANEL).step_by(PANEL)
    }

    /// Multiplies `count` rows with each panel. Gives `(panel, row, column)`.
    pub(super) fn multiply(&self, input: &[f32], count: usize) -> Vec<f32> {
        let in_dim = self.in_dim;
        let input = RowBlocks::of(input, count, in_dim);
        let mut out = vec![0.0; (self.whole.len() + self.last.len()) / in_dim * count];
        let one = |(out, panel): (&mut [f32], &[f32])| {
            Arch::new().dispatch(PanelProduct { panel, input: &input, out });
        };
        let (size, panel) = ((count * PANEL).max(1), in_dim * PANEL);
        match threads() {
            1 => {
                let panels = self.whole.chunks_exact(panel).chain(self.last.chunks_exact(panel));
                out.chunks_exact_mut(size).zip(panels).for_each(one);
            }
            _ => {
                let panels = self.whole.par_chunks_exact(panel).chain(self.last.par_chunks_exact(panel));
                out.par_chunks_exact_mut(size).zip(panels).for_each(one);
            }
        }
        out
    }
}

/// Input rows in blocks of up to [`BLOCK`], each block `(in, row)`, so that a step reads its rows side by
/// side.
struct RowBlocks {
    values: Vec<f32>,
    in_dim: usize,
}

impl RowBlocks {
    fn of(input: &[f32], count: usize, in_dim: usize) -> Self {
        let mut values = vec![0.0; count * in_dim];
        for (block, rows) in values.chunks_mut(BLOCK * in_dim).zip(input.chunks(BLOCK * in_dim)) {
            let high = rows.len() / in_dim;
            for (index, row) in rows.chunks_exact(in_dim).enumerate() {
                for (to, value) in block[index..].iter_mut().step_by(high).zip(row) {
                    *to = *value;
                }
            }
        }
        Self { values, in_dim }
    }
}

/// Product of all rows with one panel.
struct PanelProduct<'a> {
    panel: &'a [f32],
    input: &'a RowBlocks,
    out: &'a mut [f32],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let in_dim = self.input.in_dim;
        let blocks = self.input.values.chunks(BLOCK * in_dim);
        for (out, block) in self.out.chunks_mut(BLOCK * PANEL).zip(blocks) {
            match block.len() / in_dim {
                1 => product::<S, 1>(simd, self.panel, block, out),
                2 => product::<S, 2>(simd, self.panel, block, out),
                3 => product::<S, 3>(simd, self.panel, block, out),
                4 => product::<S, 4>(simd, self.panel, block, out),
                5 => product::<S, 5>(simd, self.panel, block, out),
                6 => product::<S, 6>(simd, self.panel, block, out),
                7 => product::<S, 7>(simd, self.panel, block, out),
                _ => product::<S, BLOCK>(simd, self.panel, block, out),
            }
        }
    }
}

/// One block of `R` rows with one panel, two registers of columns at a time.
#[inline(always)]
fn product<S: Simd, const R: usize>(simd: S, panel: &[f32], block: &[f32], out: &mut [f32]) {
    let registers = PANEL / S::F32_LANES;
    let (panel, _) = S::as_simd_f32s(panel);
    let (steps, _) = block.as_chunks::<R>();
    for pair in (0..registers).step_by(2) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (weights, step) in panel.chunks_exact(registers).zip(steps) {
            let (left, right) = (weights[pair], weights[pair + 1]);
            for (sum, value) in sums.iter_mut().zip(step) {
                let value = simd.splat_f32s(*value);
                sum[0] = simd.mul_add_e_f32s(value, left, sum[0]);
                sum[1] = simd.mul_add_e_f32s(value, right, sum[1]);
            }
        }
        for (row, sum) in out.chunks_exact_mut(PANEL).zip(sums) {
            let (row, _) = S::as_mut_simd_f32s(row);
            row[pair] = sum[0];
            row[pair + 1] = sum[1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_packed_where_it_lies() {
        for out_dim in [2 * PANEL, 2 * PANEL + 1, PANEL - 5] {
            let plain: Vec<f32> = (0..out_dim * 3).map(|value| value as f32).collect();
            // Without a number's room to spare.
            let weight = plain.clone().into_boxed_slice().into_vec();
            let place = weight.as_ptr();
            let packed = Panels::pack(weight, 3);
            assert_eq!((packed.whole.as_ptr(), packed.whole.capacity()), (place, out_dim * 3));
            assert_eq!(packed.whole.len(), out_dim / PANEL * PANEL * 3);
            assert_eq!(packed.last.len(), if out_dim.is_multiple_of(PANEL) { 0 } else { PANEL * 3 });
            for (row, values) in plain.chunks_exact(3).enumerate() {
                assert_eq!(packed.row(row).copied().collect::<Vec<_>>(), values, "{row} of {out_dim}");
            }
        }
    }
}
