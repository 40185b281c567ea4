//! Types of GGML whose four bits pick one of sixteen numbers, which do not lie at equal distances: IQ4_NL and IQ4_XS of
//! llama.cpp, and MXFP4 of the Open Compute Project's microscaling formats. The sizes of blocks and the choice of
//! instructions are left to `ggml`. The reference is `ggml-quants.c` of llama.cpp.

use super::scale;

/// Numbers that IQ4_NL and IQ4_XS pick from.
const NON_LINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];
/// The numbers of a 4-bit float (E2M1), each twice as large, which halves of scales make up for.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The low halves of bytes stand for the first half of the numbers, the high ones for the second.
#[inline(always)]
fn pick(pairs: &[u8; 16], out: &mut [f32; 32], numbers: &[f32; 16], step: f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), pair) in low.iter_mut().zip(high).zip(pairs) {
        *low = step * numbers[usize::from(pair & 15)];
        *high = step * numbers[usize::from(pair >> 4)];
    }
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let [_, _, pairs @ ..] = block;
    pick(pairs, out, &NON_LINEAR, scale(block, 0));
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let step = scale(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    let parts = out.as_chunks_mut::<32>().0.iter_mut().zip(block[8..].as_chunks::<16>().0);
    for (index, (out, pairs)) in parts.enumerate() {
        // Scales of six bits: the lower four of 8 in 4 bytes, the upper two in 2.
        let low = block[4 + index / 2] >> (4 * (index % 2)) & 15;
        let high = (upper >> (2 * index) & 3) as u8;
        let step = step * f32::from((low | high << 4) as i8 - 32);
        pick(pairs, out, &NON_LINEAR, step);
    }
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let [exponent, pairs @ ..] = block;
    // Half of the power of two; the smallest two have no exponent left for it.
    let bits = match u32::from(*exponent) {
        exponent @ 0..2 => 0x0020_0000 << exponent,
        exponent => (exponent - 1) << 23,
    };
    pick(pairs, out, &E2M1, f32::from_bits(bits));
}
