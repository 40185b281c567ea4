//! Matrix product with a weight that is packed in panels of output columns, each read from one end to the
//! other, once for a few rows together. Each output is summed in the same order whatever the other rows are.
//! A weight whose numbers all have 16 bits, as those of most files, is kept so, and its numbers are widened in
//! registers: half as many bytes are read for the same products to the last bit.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::threads;

/// Output columns of a panel: a multiple of two registers on every processor.
pub(super) const PANEL: usize = 32;
/// Rows that are computed in one reading of a panel.
const BLOCK: usize = 8;

/// Numbers of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32,
    Bf16,
    F16,
}

impl Stored {
    /// The shortest form that has each of the numbers exactly.
    fn shortest(weight: &[f32]) -> Self {
        let is_bf16 = |value: &f32| value.to_bits().trailing_zeros() >= 16;
        let is_f16 = |value: &f32| f16::from_f32(*value).to_f32().to_bits() == value.to_bits();
        if weight.iter().all(is_bf16) {
            Self::Bf16
        } else if weight.iter().all(is_f16) {
            Self::F16
        } else {
            Self::F32
        }
    }

    /// Words of one step of a panel. One of two numbers has a column of the first half in its low bits, and the column as
    /// far in the second half in its high ones.
    fn words(self) -> usize {
        match self {
            Self::F32 => PANEL,
            Self::Bf16 | Self::F16 => PANEL / 2,
        }
    }

    /// Writes a column of a panel.
    fn put(self, step: &mut [u32], column: usize, value: u32) {
        let bits = match self {
            Self::F32 => return step[column] = value,
            Self::Bf16 => (value >> 16) as u16,
            Self::F16 => f16::from_f32(f32::from_bits(value)).to_bits(),
        };
        let half = PANEL / 2;
        let word = &mut step[column % half];
        *word = if column < half { u32::from(bits) } else { *word | u32::from(bits) << 16 };
    }

    /// Reads a column of a panel.
    fn get(self, step: &[u32], column: usize) -> f32 {
        let half = PANEL / 2;
        let bits = || (step[column % half] >> if column < half { 0 } else { 16 }) as u16;
        match self {
            Self::F32 => f32::from_bits(step[column]),
            Self::Bf16 => bf16::from_bits(bits()).to_f32(),
            Self::F16 => f16::from_bits(bits()).to_f32(),
        }
    }
}

/// Weight `(out, in)` as panels of `(in, column)`.
#[derive(Debug)]
pub(super) struct Panels {
    stored: Stored,
    whole: Vec<u32>,
    /// Panel of the remaining outputs, padded with zeros; empty where the others take all.
    last: Vec<u32>,
    in_dim: usize,
}

impl Panels {
    /// Packs a weight in place, so that a load never has a matrix in memory twice. The last panel has memory
    /// of its own, because there is no room for its padding in the weight's.
    pub(super) fn pack(weight: Vec<f32>, in_dim: usize) -> Self {
        Self::pack_as(Stored::shortest(&weight), weight, in_dim)
    }

    fn pack_as(stored: Stored, weight: Vec<f32>, in_dim: usize) -> Self {
        let mut weight: Vec<u32> = bytemuck::cast_vec(weight);
        let (size, packed_size) = (PANEL * in_dim, stored.words() * in_dim);
        let mut rows = vec![0; size];
        let panels = weight.len() / size;
        let mut last = Vec::new();
        if panels * size < weight.len() {
            rows[..weight.len() - panels * size].copy_from_slice(&weight[panels * size..]);
            last.resize(packed_size, 0);
            pack_panel(stored, &rows, in_dim, &mut last);
        }
        for panel in 0..panels {
            rows.copy_from_slice(&weight[panel * size..(panel + 1) * size]);
            pack_panel(stored, &rows, in_dim, &mut weight[panel * packed_size..(panel + 1) * packed_size]);
        }
        weight.truncate(panels * packed_size);
        if stored != Stored::F32 {
            weight.shrink_to_fit();
        }
        Self { stored, whole: weight, last, in_dim }
    }

    /// Numbers of one row of the weight.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        let (size, column) = (self.panel_size(), row % PANEL);
        let begin = row / PANEL * size;
        let panel = self.whole.get(begin..begin + size).unwrap_or(&self.last);
        panel.chunks_exact(self.stored.words()).map(move |step| self.stored.get(step, column))
    }

    /// Words of a panel.
    fn panel_size(&self) -> usize {
        self.stored.words() * self.in_dim
    }

    /// Multiplies `count` rows with each panel. Gives `(panel, row, column)`.
    pub(super) fn multiply(&self, input: &[f32], count: usize) -> Vec<f32> {
        let (stored, words) = (self.stored, self.panel_size());
        let input = RowBlocks::of(input, count, self.in_dim);
        let mut out = vec![0.0; (self.whole.len() + self.last.len()) / words * PANEL * count];
        let one = |(out, panel): (&mut [f32], &[u32])| {
            Arch::new().dispatch(PanelProduct { stored, panel, input: &input, out });
        };
        let size = (count * PANEL).max(1);
        match threads() {
            1 => {
                let panels = self.whole.chunks_exact(words).chain(self.last.chunks_exact(words));
                out.chunks_exact_mut(size).zip(panels).for_each(one);
            }
            _ => {
                let panels = self.whole.par_chunks_exact(words).chain(self.last.par_chunks_exact(words));
                out.par_chunks_exact_mut(size).zip(panels).for_each(one);
            }
        }
        out
    }
}

/// Packs rows, `(column, in)`, as `(in, column)`.
fn pack_panel(stored: Stored, rows: &[u32], in_dim: usize, panel: &mut [u32]) {
    for (column, row) in rows.chunks_exact(in_dim).enumerate() {
        for (step, value) in panel.chunks_exact_mut(stored.words()).zip(row) {
            stored.put(step, column, *value);
        }
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
    stored: Stored,
    panel: &'a [u32],
    input: &'a RowBlocks,
    out: &'a mut [f32],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.stored {
            Stored::F32 => self.run::<S, Whole>(simd),
            Stored::Bf16 => self.run::<S, PairsOfBf16>(simd),
            Stored::F16 => self.run::<S, PairsOfF16>(simd),
        }
    }
}

impl PanelProduct<'_> {
    #[inline(always)]
    fn run<S: Simd, W: Words>(self, simd: S) {
        let in_dim = self.input.in_dim;
        let blocks = self.input.values.chunks(BLOCK * in_dim);
        for (out, block) in self.out.chunks_mut(BLOCK * PANEL).zip(blocks) {
            match block.len() / in_dim {
                1 => product::<S, W, 1>(simd, self.panel, block, out),
                2 => product::<S, W, 2>(simd, self.panel, block, out),
                3 => product::<S, W, 3>(simd, self.panel, block, out),
                4 => product::<S, W, 4>(simd, self.panel, block, out),
                5 => product::<S, W, 5>(simd, self.panel, block, out),
                6 => product::<S, W, 6>(simd, self.panel, block, out),
                7 => product::<S, W, 7>(simd, self.panel, block, out),
                _ => product::<S, W, BLOCK>(simd, self.panel, block, out),
            }
        }
    }
}

/// Columns of a panel in its words.
trait Words {
    /// Numbers in a word.
    const NUMBERS: usize;

    /// The columns of register `index`, and those half a panel further.
    fn columns<S: Simd>(simd: S, step: &[S::u32s], index: usize) -> [S::f32s; 2];
}

struct Whole;

impl Words for Whole {
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn columns<S: Simd>(simd: S, step: &[S::u32s], index: usize) -> [S::f32s; 2] {
        [index, index + step.len() / 2].map(|index| simd.transmute_f32s_u32s(step[index]))
    }
}

struct PairsOfBf16;

impl Words for PairsOfBf16 {
    const NUMBERS: usize = 2;

    #[inline(always)]
    fn columns<S: Simd>(simd: S, step: &[S::u32s], index: usize) -> [S::f32s; 2] {
        let low = simd.wrapping_dyn_shl_u32s(step[index], simd.splat_u32s(16));
        let high = simd.and_u32s(step[index], simd.splat_u32s(0xffff_0000));
        [low, high].map(|bits| simd.transmute_f32s_u32s(bits))
    }
}

struct PairsOfF16;

impl Words for PairsOfF16 {
    const NUMBERS: usize = 2;

    #[inline(always)]
    fn columns<S: Simd>(simd: S, step: &[S::u32s], index: usize) -> [S::f32s; 2] {
        let low = simd.wrapping_dyn_shl_u32s(step[index], simd.splat_u32s(16));
        [widened_f16(simd, low), widened_f16(simd, step[index])]
    }
}

/// Widens the number of 16 bits in the high bits of each word. With exponent and fraction where those of 32 bits are, it is too
/// small by the difference of the exponents' offsets; multiplied by that power of two it is right, one below the normal range
/// included. Not a closure: those are not sure to be inlined, and out of line this takes thirty times as long.
#[inline(always)]
fn widened_f16<S: Simd>(simd: S, bits: S::u32s) -> S::f32s {
    let magnitude = simd.and_u32s(bits, simd.splat_u32s(0x7fff_0000));
    let magnitude = simd.wrapping_dyn_shr_u32s(magnitude, simd.splat_u32s(3));
    let power = simd.splat_f32s(f32::from_bits((127 + 112) << 23));
    let magnitude = simd.mul_f32s(simd.transmute_f32s_u32s(magnitude), power);
    let sign = simd.and_u32s(bits, simd.splat_u32s(0x8000_0000));
    simd.or_f32s(magnitude, simd.transmute_f32s_u32s(sign))
}

/// One block of `R` rows with one panel, two registers of columns at a time.
#[inline(always)]
fn product<S: Simd, W: Words, const R: usize>(simd: S, panel: &[u32], block: &[f32], out: &mut [f32]) {
    let half = PANEL / S::F32_LANES / 2;
    let (panel, _) = S::as_simd_u32s(panel);
    let (steps, _) = block.as_chunks::<R>();
    for index in 0..half {
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (weights, step) in panel.chunks_exact(2 * half / W::NUMBERS).zip(steps) {
            let [left, right] = W::columns(simd, weights, index);
            for (sum, value) in sums.iter_mut().zip(step) {
                let value = simd.splat_f32s(*value);
                sum[0] = simd.mul_add_e_f32s(value, left, sum[0]);
                sum[1] = simd.mul_add_e_f32s(value, right, sum[1]);
            }
        }
        for (row, sum) in out.chunks_exact_mut(PANEL).zip(sums) {
            let (row, _) = S::as_mut_simd_f32s(row);
            row[index] = sum[0];
            row[index + half] = sum[1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_packed_where_it_lies() {
        for out_dim in [2 * PANEL, 2 * PANEL + 1, PANEL - 5] {
            // Of more bits than 16.
            let plain: Vec<f32> = (0..out_dim * 3).map(|value| value as f32 + 1e-3).collect();
            // Without a number's room to spare.
            let weight = plain.clone().into_boxed_slice().into_vec();
            let place = weight.as_ptr().cast();
            let packed = Panels::pack(weight, 3);
            assert_eq!(packed.stored, Stored::F32);
            assert_eq!((packed.whole.as_ptr(), packed.whole.capacity()), (place, out_dim * 3));
            assert_eq!(packed.whole.len(), out_dim / PANEL * PANEL * 3);
            assert_eq!(packed.last.len(), if out_dim.is_multiple_of(PANEL) { 0 } else { PANEL * 3 });
            for (row, values) in plain.chunks_exact(3).enumerate() {
                assert_eq!(packed.row(row).collect::<Vec<_>>(), values, "{row} of {out_dim}");
            }
        }
    }

    /// Every number of 16 bits that is one, in rows of 33.
    fn all(number: fn(u16) -> f32) -> Vec<f32> {
        let mut all: Vec<f32> = (0..=u16::MAX).map(number).filter(|value| value.is_finite()).collect();
        all.truncate(all.len() / 33 * 33);
        all
    }

    #[test]
    fn numbers_of_16_bits_are_kept_in_half_the_memory() {
        let bf16s = all(|bits| bf16::from_bits(bits).to_f32());
        let f16s = all(|bits| f16::from_bits(bits).to_f32());
        for (stored, plain) in [(Stored::Bf16, bf16s), (Stored::F16, f16s)] {
            let packed = Panels::pack(plain.clone(), 33);
            assert_eq!(packed.stored, stored);
            assert_eq!(packed.whole.len(), plain.len() / 33 / PANEL * PANEL * 33 / 2);
            assert!(packed.whole.capacity() <= packed.whole.len() + 1024, "the rest is given back");
            for (row, values) in plain.chunks_exact(33).enumerate() {
                assert!(packed.row(row).map(f32::to_bits).eq(values.iter().map(|value| value.to_bits())));
            }
        }
        assert_eq!(Stored::shortest(&[1.0, f32::from_bits(1.0f32.to_bits() + 1)]), Stored::F32);
    }

    #[test]
    fn products_with_numbers_of_16_bits_are_those_of_32_to_the_last_bit() {
        for number in [|bits| f16::from_bits(bits).to_f32(), |bits| bf16::from_bits(bits).to_f32()] {
            // Without those whose products overflow: NaN and infinity are nobody's weights.
            let mut weight = all(number);
            weight.iter_mut().filter(|value| value.abs() > 1e30).for_each(|value| *value = 1.0);
            let short = Panels::pack(weight.clone(), 33);
            let long = Panels::pack_as(Stored::F32, weight, 33);
            assert_eq!(long.stored, Stored::F32);
            for count in 1..=BLOCK + 1 {
                let input: Vec<f32> = (0..33 * count).map(|index| (index as f32).sin()).collect();
                let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert!(bits(short.multiply(&input, count)) == bits(long.multiply(&input, count)), "{count}");
            }
        }
    }
}
