//! Input rows of a product, quantized to 8 bits: 32 numbers share a scale, as in llama.cpp's Q8_0. They lie block by
//! block, and in each block row by row, as products read them.

use pulp::{Arch, Simd, WithSimd};

use super::super::cpu::{split_rows_at, threads_for};

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;

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
        let (count, places) = (input.len() / width.max(1), width / BLOCK);
        let mut blocks = vec![EMPTY; count * places];
        let threads = threads_for(input.len());
        split_rows_at(&mut blocks, count, threads, |first, to| {
            Arch::new().dispatch(Quantize { input, width, first, to });
        });
        Self { blocks, count }
    }
}

/// The blocks at the places from `first` on, of all rows.
struct Quantize<'a> {
    input: &'a [f32],
    width: usize,
    first: usize,
    to: &'a mut [Block],
}

impl WithSimd for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { input, width, first, to } = self;
        let count = (input.len() / width.max(1)).max(1);
        for (place, to) in (first..).zip(to.chunks_exact_mut(count)) {
            for (to, row) in to.iter_mut().zip(input.chunks_exact(width)) {
                if let Some(values) = row.get(place * BLOCK..).and_then(|values| values.first_chunk()) {
                    *to = block(values);
                }
            }
        }
    }
}

#[inline(always)]
fn block(values: &[f32; BLOCK]) -> Block {
    // Sizes of floats are in the order of their bits, and what is not finite is above all others.
    let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    let scale = largest / 127.0;
    // The inverse of less would be infinite.
    let factor = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    /// Adding it leaves a whole number in the lowest bits, rounded to even.
    const ROUND: f32 = 12_582_912.0;
    let mut ints = [0i32; BLOCK];
    let mut bytes = [0u8; BLOCK];
    for ((int, byte), value) in ints.iter_mut().zip(&mut bytes).zip(values) {
        let value = (value * factor + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        // A number that is not finite gives any; its row's result is not finite by its scale.
        *int = value.clamp(-127, 127);
        *byte = *int as u8;
    }
    let mut quads = [0i32; 8];
    quads.iter_mut().zip(bytes.as_chunks().0).for_each(|(quad, bytes)| *quad = i32::from_le_bytes(*bytes));
    let sum = |half: usize| ints[16 * half..16 * half + 16].iter().sum::<i32>();
    let (low, high) = (sum(0), sum(1));
    let sums = [low, high, low + high];
    let scale = if largest.is_finite() { scale } else { f32::NAN };
    Block { quads, scale, negative_sums: sums.map(|sum| -sum), sums: sums.map(|sum| sum as f32) }
}
