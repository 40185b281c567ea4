//! The K types, with blocks of 256 numbers whose parts have scales of a few bits.

use super::{Format, Group, bytes, halves, registers};
use crate::kernels::integer::interleaved::Layout;
use crate::kernels::integer::lanes::{Lanes, PANEL};

pub(in super::super) struct Q2K;
pub(in super::super) struct Q3K;
pub(in super::super) struct Q4K;
pub(in super::super) struct Q5K;
pub(in super::super) struct Q6K;

/// So many bits of each byte of eight registers, from a shift on.
#[inline(always)]
fn bits<L: Lanes>(lanes: L, registers: &[[u8; 64]; 8], shift: usize, mask: u8) -> [L::Ints; 8] {
    let mask = lanes.splat(u32::from_ne_bytes([mask; 4]));
    // Loops here, not closures: those that are left as functions lack the instructions.
    let mut quads = [mask; 8];
    for (quad, register) in quads.iter_mut().zip(registers) {
        *quad = lanes.and(lanes.shift_right(lanes.load(register), shift as u32), mask);
    }
    quads
}

/// Two numbers of bits as one, the second above the first's so many.
#[inline(always)]
fn join<L: Lanes>(lanes: L, mut low: [L::Ints; 8], high: [L::Ints; 8], at: u32) -> [L::Ints; 8] {
    for (low, high) in low.iter_mut().zip(&high) {
        *low = lanes.or(*low, lanes.shift_left(*high, at));
    }
    low
}

/// A scale times a small integer of each row.
#[inline(always)]
fn scaled<L: Lanes>(lanes: L, step: L::Floats, ints: L::Ints) -> L::Floats {
    lanes.mul(step, lanes.to_floats(ints))
}

/// Byte number `index` of each row, in a run of single bytes from `begin` on.
#[inline(always)]
fn byte(block: &[u8], begin: usize, index: usize) -> &[u8; PANEL] {
    bytes(block, begin + PANEL * index)
}

/// Some bits of each lane.
#[inline(always)]
fn field<L: Lanes>(lanes: L, ints: L::Ints, shift: usize, mask: u32) -> L::Ints {
    lanes.and(lanes.shift_right(ints, shift as u32), lanes.splat(mask))
}

/// Scale and minimum of Q4_K's and Q5_K's part, of six bits each in 12 bytes, from `begin` on.
#[inline(always)]
fn six_bits<L: Lanes>(
    lanes: L,
    block: &[u8],
    begin: usize,
    [step, least]: &[L::Floats; 2],
    part: usize,
) -> [L::Floats; 2] {
    let (scale, below) = if part < 4 {
        let (scale, below) = (byte(block, begin, part), byte(block, begin, part + 4));
        (field(lanes, lanes.bytes(scale), 0, 63), field(lanes, lanes.bytes(below), 0, 63))
    } else {
        let low = lanes.bytes(byte(block, begin, part + 4));
        let scale = field(lanes, lanes.bytes(byte(block, begin, part - 4)), 6, 3);
        let below = field(lanes, lanes.bytes(byte(block, begin, part)), 6, 3);
        let (scale, below) = (lanes.shift_left(scale, 4), lanes.shift_left(below, 4));
        (lanes.or(field(lanes, low, 0, 15), scale), lanes.or(field(lanes, low, 4, 15), below))
    };
    [scaled(lanes, *step, scale), scaled(lanes, *least, below)]
}

/// Scale and minimum of a block, the latter turned round, as it is taken away from each number.
#[inline(always)]
fn step_and_least<L: Lanes>(lanes: L, block: &[u8], begin: usize) -> [L::Floats; 2] {
    [halves(lanes, block, begin), lanes.mul(halves(lanes, block, begin + 32), lanes.float(-1.0))]
}

impl Format for Q2K {
    const LAYOUT: &'static Layout = &[(1, 16), (4, 16), (2, 2)];
    const PARTS: usize = 8;
    const HALVES: bool = true;
    const MINIMA: bool = true;
    type Scales<L: Lanes> = [L::Floats; 2];

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> [L::Floats; 2] {
        step_and_least(lanes, block, 80 * PANEL)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], [step, least]: &[L::Floats; 2], part: usize) -> Group<L> {
        let low = lanes.bytes(byte(block, 0, 2 * part));
        let high = lanes.bytes(byte(block, 0, 2 * part + 1));
        let numbers = registers::<8>(block, 16 * PANEL + 512 * (part / 4));
        Group {
            quads: bits(lanes, numbers, 2 * (part % 4), 3),
            scales: [
                scaled(lanes, *step, field(lanes, low, 0, 15)),
                scaled(lanes, *step, field(lanes, high, 0, 15)),
            ],
            minima: [
                scaled(lanes, *least, field(lanes, low, 4, 15)),
                scaled(lanes, *least, field(lanes, high, 4, 15)),
            ],
        }
    }
}

impl Format for Q3K {
    const LAYOUT: &'static Layout = &[(4, 8), (4, 16), (1, 12), (2, 1)];
    const PARTS: usize = 8;
    const HALVES: bool = true;
    const OFFSET_BITS: u32 = 2;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        halves(lanes, block, 108 * PANEL)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], step: &L::Floats, part: usize) -> Group<L> {
        let low = bits(lanes, registers::<8>(block, 32 * PANEL + 512 * (part / 4)), 2 * (part % 4), 3);
        let third = bits(lanes, registers::<8>(block, 0), part, 1);
        Group {
            quads: join(lanes, low, third, 2),
            scales: [
                scaled(lanes, *step, q3_scale(lanes, block, 2 * part)),
                scaled(lanes, *step, q3_scale(lanes, block, 2 * part + 1)),
            ],
            minima: [lanes.float(0.0); 2],
        }
    }
}

/// One of 16 scales of six bits: the lower four of all in 8 bytes, then the upper two in 4.
#[inline(always)]
fn q3_scale<L: Lanes>(lanes: L, block: &[u8], index: usize) -> L::Ints {
    let low = lanes.bytes(byte(block, 96 * PANEL, index % 8));
    let high = lanes.bytes(byte(block, 96 * PANEL, 8 + index % 4));
    let low = field(lanes, low, 4 * (index / 8), 15);
    let high = field(lanes, high, 2 * (index / 4), 3);
    lanes.minus(lanes.or(low, lanes.shift_left(high, 4)), 32)
}

impl Format for Q4K {
    const LAYOUT: &'static Layout = &[(2, 2), (1, 12), (4, 32)];
    const PARTS: usize = 8;
    const MINIMA: bool = true;
    type Scales<L: Lanes> = [L::Floats; 2];

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> [L::Floats; 2] {
        step_and_least(lanes, block, 0)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scales: &[L::Floats; 2], part: usize) -> Group<L> {
        let [scale, least] = six_bits(lanes, block, 4 * PANEL, scales, part);
        let numbers = registers::<8>(block, 16 * PANEL + 512 * (part / 2));
        let quads = bits(lanes, numbers, 4 * (part % 2), 15);
        Group { quads, scales: [scale; 2], minima: [least; 2] }
    }
}

impl Format for Q5K {
    const LAYOUT: &'static Layout = &[(2, 2), (1, 12), (4, 8), (4, 32)];
    const PARTS: usize = 8;
    const MINIMA: bool = true;
    type Scales<L: Lanes> = [L::Floats; 2];

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> [L::Floats; 2] {
        step_and_least(lanes, block, 0)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scales: &[L::Floats; 2], part: usize) -> Group<L> {
        let [scale, least] = six_bits(lanes, block, 4 * PANEL, scales, part);
        let low = registers::<8>(block, 48 * PANEL + 512 * (part / 2));
        let low = bits(lanes, low, 4 * (part % 2), 15);
        let fifth = bits(lanes, registers::<8>(block, 16 * PANEL), part, 1);
        Group { quads: join(lanes, low, fifth, 4), scales: [scale; 2], minima: [least; 2] }
    }
}

impl Format for Q6K {
    const LAYOUT: &'static Layout = &[(4, 32), (4, 16), (1, 16), (2, 1)];
    const PARTS: usize = 8;
    const HALVES: bool = true;
    const OFFSET_BITS: u32 = 5;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        halves(lanes, block, 208 * PANEL)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], step: &L::Floats, part: usize) -> Group<L> {
        // Each half of 128 numbers: the lower four bits in 64 bytes, the upper two in 32.
        let (half, quarter) = (part / 4, part % 4);
        let low = registers::<8>(block, 1024 * half + 512 * (quarter % 2));
        let low = bits(lanes, low, 4 * (quarter / 2), 15);
        let high = bits(lanes, registers::<8>(block, 128 * PANEL + 512 * half), 2 * quarter, 3);
        let scales = [
            scaled(lanes, *step, lanes.signed_bytes(byte(block, 192 * PANEL, 2 * part))),
            scaled(lanes, *step, lanes.signed_bytes(byte(block, 192 * PANEL, 2 * part + 1))),
        ];
        Group { quads: join(lanes, low, high, 4), scales, minima: [lanes.float(0.0); 2] }
    }
}
