//! The types with blocks of 32 numbers.

use super::{Dot, Format, Group, bytes, halves, nibbles, registers};
use crate::kernels::integer::interleaved::Layout;
use crate::kernels::integer::lanes::Lanes;

pub(in super::super) struct Q4_0;
pub(in super::super) struct Q4_1;
pub(in super::super) struct Q5_0;
pub(in super::super) struct Q5_1;
pub(in super::super) struct Q8_0;

/// A scale for all numbers and none to add.
#[inline(always)]
fn scaled<L: Lanes>(lanes: L, quads: [L::Ints; 8], scale: L::Floats) -> Group<L> {
    Group { quads, scales: [scale; 2], minima: [lanes.float(0.0); 2] }
}

/// The lower four bits with the fifth ones.
#[inline(always)]
fn with_fifth<L: Lanes>(lanes: L, block: &[u8], begin: usize) -> [L::Ints; 8] {
    let [bits] = registers::<1>(block, begin);
    let bits = lanes.load(bits);
    let mut quads = nibbles(lanes, registers(block, begin + 64));
    for (quad, low) in quads.iter_mut().enumerate() {
        *low = lanes.or(*low, lanes.fifth_bits(bits, quad));
    }
    quads
}

impl Format for Q4_0 {
    const LAYOUT: &'static Layout = &[(2, 1), (4, 4)];
    const OFFSET_BITS: u32 = 3;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        halves(lanes, block, 0)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scale: &L::Floats, _: usize) -> Group<L> {
        scaled(lanes, nibbles(lanes, registers(block, 32)), *scale)
    }
}

impl Format for Q4_1 {
    const LAYOUT: &'static Layout = &[(2, 2), (4, 4)];
    const MINIMA: bool = true;
    type Scales<L: Lanes> = [L::Floats; 2];

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> [L::Floats; 2] {
        [halves(lanes, block, 0), halves(lanes, block, 32)]
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], [scale, least]: &[L::Floats; 2], _: usize) -> Group<L> {
        let quads = nibbles(lanes, registers(block, 64));
        Group { quads, scales: [*scale; 2], minima: [*least; 2] }
    }
}

impl Format for Q5_0 {
    const LAYOUT: &'static Layout = &[(2, 1), (4, 1), (4, 4)];
    const OFFSET_BITS: u32 = 4;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        halves(lanes, block, 0)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scale: &L::Floats, _: usize) -> Group<L> {
        scaled(lanes, with_fifth(lanes, block, 32), *scale)
    }
}

impl Format for Q5_1 {
    const LAYOUT: &'static Layout = &[(2, 2), (4, 1), (4, 4)];
    const MINIMA: bool = true;
    type Scales<L: Lanes> = [L::Floats; 2];

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> [L::Floats; 2] {
        [halves(lanes, block, 0), halves(lanes, block, 32)]
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], [scale, least]: &[L::Floats; 2], _: usize) -> Group<L> {
        Group { quads: with_fifth(lanes, block, 64), scales: [*scale; 2], minima: [*least; 2] }
    }
}

impl Format for Q8_0 {
    const LAYOUT: &'static Layout = &[(2, 1), (4, 8)];
    const DOT: Dot = Dot::Signed;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        lanes.halves(bytes(block, 0))
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scale: &L::Floats, _: usize) -> Group<L> {
        let mut quads = [lanes.splat(0); 8];
        for (quad, numbers) in quads.iter_mut().zip(registers::<8>(block, 32)) {
            *quad = lanes.signed(lanes.load(numbers));
        }
        scaled(lanes, quads, *scale)
    }
}
