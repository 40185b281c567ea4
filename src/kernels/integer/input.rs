//! Input rows of a product, quantized to 8 bits: 32 numbers share a scale, as in llama.cpp's Q8_0. They lie block by
//! block, and in each block row by row, as products read them.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::cpu::threads;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;
/// Rows that are a task.
const ROWS: usize = 16;

/// Input rows.
#[derive(Debug)]
pub(in super::super) struct EightBitRows {
    /// `(block, row)`.
    pub(super) blocks: Vec<Block>,
    pub(super) count: usize,
}

/// 32 numbers of a row, and their sums, which make up for weights that are not stored around zero.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(64))]
pub(super) struct Block {
    /// Four numbers each, the first in the lowest byte.
    pub(super) quads: [i32; 8],
    pub(super) scale: f32,
    /// Sums of the first half, the second and all, less than zero where the sum is above.
    pub(super) negative_sums: [i32; 3],
    pub(super) sums: [f32; 3],
}

const EMPTY: Block = Block { quads: [0; 8], scale: 0.0, negative_sums: [0; 3], sums: [0.0; 3] };

impl EightBitRows {
    /// Quantizes rows of `width` numbers; what does not fill a block is left out.
    pub(in super::super) fn quantize(input: &[f32], width: usize) -> Self {
        let count = input.len() / width.max(1);
        let blocks = width / BLOCK;
        let mut rows = vec![EMPTY; count * blocks];
        if rows.is_empty() {
            return Self { blocks: rows, count };
        }
        if count == 1 {
            Arch::new().dispatch(Quantize(input, &mut rows));
            return Self { blocks: rows, count };
        }
        let quantize = |(to, input): (&mut [Block], &[f32])| {
            let rows = to.chunks_exact_mut(blocks).zip(input.chunks_exact(width));
            rows.for_each(|(to, input)| Arch::new().dispatch(Quantize(input, to)));
        };
        match threads() {
            1 => quantize((&mut rows, input)),
            _ => rows.par_chunks_mut(ROWS * blocks).zip(input.par_chunks(ROWS * width)).for_each(quantize),
        }
        let mut ordered = vec![EMPTY; count * blocks];
        for (block, to) in ordered.chunks_exact_mut(count).enumerate() {
            to.iter_mut().zip(rows.iter().skip(block).step_by(blocks)).for_each(|(to, from)| *to = *from);
        }
        Self { blocks: ordered, count }
    }
}

/// One row.
struct Quantize<'a>(&'a [f32], &'a mut [Block]);

impl WithSimd for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.1.iter_mut().zip(self.0.as_chunks().0).for_each(|(to, values)| *to = block(values));
    }
}

#[inline(always)]
fn block(values: &[f32; BLOCK]) -> Block {
    let mut lanes = [0.0f32; 16];
    let (halves, _) = values.as_chunks::<16>();
    for half in halves {
        for (lane, value) in lanes.iter_mut().zip(half) {
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    let largest = lanes.into_iter().fold(0.0f32, |a, b| if b > a { b } else { a });
    let scale = largest / 127.0;
    // The inverse of less would be infinite.
    let factor = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    /// Adding it leaves a whole number in the lowest bits, rounded to even.
    const ROUND: f32 = 12_582_912.0;
    let mut ints = [0i32; BLOCK];
    for (int, value) in ints.iter_mut().zip(values) {
        let value = (value * factor + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        // A number that is not finite gives any; its row's result is not finite by its scale.
        *int = value.clamp(-127, 127);
    }
    let mut quads = [0i32; 8];
    for (quad, ints) in quads.iter_mut().zip(ints.as_chunks::<4>().0) {
        *quad = ints[0] & 255 | (ints[1] & 255) << 8 | (ints[2] & 255) << 16 | ints[3] << 24;
    }
    let sum = |half: usize| ints[16 * half..16 * half + 16].iter().sum::<i32>();
    let (low, high) = (sum(0), sum(1));
    let sums = [low, high, low + high];
    // What is not a number is never above the largest one.
    let scale = if values.iter().all(|value| value.is_finite()) { scale } else { f32::NAN };
    Block { quads, scale, negative_sums: sums.map(|sum| -sum), sums: sums.map(|sum| sum as f32) }
}
