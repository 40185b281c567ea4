//! GGML's quantized types as products of integers see them: a type says how its blocks are interleaved in panels, and
//! unpacks 32 numbers of each of a panel's rows into bytes with their scales. The same formats as numbers are in
//! `ggml`; the reference is `ggml-quants.c` of llama.cpp.

mod legacy;
mod k_quants;
mod codebook;

use super::interleaved::Layout;
use super::lanes::{Lanes, PANEL};
use crate::kernels::ggml::GgmlType;

pub(super) use codebook::{Iq4Nl, Iq4Xs, Mxfp4};
pub(super) use k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(super) use legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// A quantized type.
pub(super) trait Format {
    /// Order of a block's bytes.
    const LAYOUT: &'static Layout;
    /// Bytes of a block.
    const BYTES: usize = super::interleaved::block_bytes(Self::LAYOUT);
    /// Parts of 32 numbers in a block.
    const PARTS: usize = 1;
    /// The two halves of a part have scales of their own.
    const HALVES: bool = false;
    /// Numbers begin at a minimum, which is added to each: [`Group::minima`].
    const MINIMA: bool = false;
    /// The number 0 is stored as 2 to this power; 0 bits stand for 0. For [`Dot::Small`] alone.
    const OFFSET_BITS: u32 = 0;
    /// Form of the bytes.
    const DOT: Dot = Dot::Small;

    /// Scales that a block's parts share.
    type Scales<L: Lanes>: Copy;

    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> Self::Scales<L>;
    /// One part of a panel's block.
    fn part<L: Lanes>(lanes: L, block: &[u8], scales: &Self::Scales<L>, part: usize) -> Group<L>;
}

/// Form of the bytes of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dot {
    /// From 0 to at most 63.
    Small,
    /// Any signed byte.
    Signed,
}

/// 32 numbers of each row of a panel.
pub(super) struct Group<L: Lanes> {
    /// Four numbers each.
    pub(super) quads: [L::Ints; 8],
    /// Of the halves, or one for both.
    pub(super) scales: [L::Floats; 2],
    pub(super) minima: [L::Floats; 2],
}

/// Evaluates an expression with `$format` as the type of a [`GgmlType`]; nothing for one without a product.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $expression:expr) => {
        $crate::kernels::integer::formats::with_format!(@ $dtype, $format => $expression, {
            Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl Iq4Xs Mxfp4
        })
    };
    (@ $dtype:expr, $format:ident => $expression:expr, { $($name:ident)* }) => {
        match $dtype {
            $(GgmlType::$name => {
                type $format = $crate::kernels::integer::formats::$name;
                $expression
            })*
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => Default::default(),
        }
    };
}

pub(super) use with_format;

/// Order of the bytes of a type's blocks; none for a type without a product.
pub(super) fn layout(dtype: GgmlType) -> Option<&'static Layout> {
    with_format!(dtype, F => Some(F::LAYOUT))
}

/// Registers of a panel's block from a byte on; zeros where it is too short, which no block is.
#[inline(always)]
fn registers<const N: usize>(block: &[u8], begin: usize) -> &[[u8; 64]; N] {
    let bytes = block.get(begin..begin + 64 * N).unwrap_or_default();
    bytes.as_chunks::<64>().0.first_chunk().unwrap_or(&[[0; 64]; N])
}

/// Bytes of a panel's block from one on.
#[inline(always)]
fn bytes<const N: usize>(block: &[u8], begin: usize) -> &[u8; N] {
    block.get(begin..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; N])
}

/// A 16-bit scale of each row.
#[inline(always)]
fn halves<L: Lanes>(lanes: L, block: &[u8], begin: usize) -> L::Floats {
    lanes.halves(bytes::<{ 2 * PANEL }>(block, begin))
}

/// Lower and upper half of each byte of four registers: of 32 numbers the first half and the second.
#[inline(always)]
fn nibbles<L: Lanes>(lanes: L, registers: &[[u8; 64]; 4]) -> [L::Ints; 8] {
    let mask = lanes.splat(0x0f0f_0f0f);
    let mut quads = [mask; 8];
    for (quad, register) in registers.iter().enumerate() {
        let pairs = lanes.load(register);
        quads[quad] = lanes.and(pairs, mask);
        quads[quad + 4] = lanes.and(lanes.shift_right(pairs, 4), mask);
    }
    quads
}
