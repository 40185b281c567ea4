//! The types whose four bits pick one of sixteen numbers.

use super::{Dot, Format, Group, bytes, halves, nibbles, registers};
use crate::kernels::integer::interleaved::Layout;
use crate::kernels::integer::lanes::{Lanes, PANEL};

pub(in super::super) struct Iq4Nl;
pub(in super::super) struct Iq4Xs;
pub(in super::super) struct Mxfp4;

/// Numbers that IQ4_NL and IQ4_XS pick from.
const NON_LINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The numbers of a 4-bit float, each twice as large.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[inline(always)]
fn picked<L: Lanes>(lanes: L, registers: &[[u8; 64]; 4], table: &[i8; 16], scale: L::Floats) -> Group<L> {
    let mut quads = nibbles(lanes, registers);
    for quad in &mut quads {
        *quad = lanes.signed(lanes.pick(*quad, table));
    }
    Group { quads, scales: [scale; 2], minima: [lanes.float(0.0); 2] }
}

impl Format for Iq4Nl {
    const LAYOUT: &'static Layout = &[(2, 1), (4, 4)];
    const DOT: Dot = Dot::Signed;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        halves(lanes, block, 0)
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scale: &L::Floats, _: usize) -> Group<L> {
        picked(lanes, registers(block, 32), &NON_LINEAR, *scale)
    }
}

impl Format for Iq4Xs {
    const LAYOUT: &'static Layout = &[(2, 2), (1, 4), (4, 32)];
    const PARTS: usize = 8;
    const DOT: Dot = Dot::Signed;
    /// The scale, and the upper bits of the parts'.
    type Scales<L: Lanes> = (L::Floats, L::Ints);

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> (L::Floats, L::Ints) {
        (halves(lanes, block, 0), lanes.words(bytes(block, 2 * PANEL)))
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], (step, upper): &(L::Floats, L::Ints), part: usize) -> Group<L> {
        let low = lanes.bytes(bytes(block, 4 * PANEL + PANEL * (part / 2)));
        let low = lanes.and(lanes.shift_right(low, 4 * (part as u32 % 2)), lanes.splat(15));
        let high = lanes.and(lanes.shift_right(*upper, 2 * part as u32), lanes.splat(3));
        let scale = lanes.minus(lanes.or(low, lanes.shift_left(high, 4)), 32);
        let scale = lanes.mul(*step, lanes.to_floats(scale));
        picked(lanes, registers(block, 8 * PANEL + 256 * part), &NON_LINEAR, scale)
    }
}

impl Format for Mxfp4 {
    const LAYOUT: &'static Layout = &[(1, 1), (4, 4)];
    const DOT: Dot = Dot::Signed;
    type Scales<L: Lanes> = L::Floats;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8]) -> L::Floats {
        // Half of the power of two, as a product of two normal numbers: the ends of the range have no exponent for it.
        let exponent = lanes.bytes(bytes(block, 0));
        let half = lanes.minus(lanes.shift_right(exponent, 1), -64);
        let rest = lanes.minus(lanes.shift_right(lanes.minus(exponent, -1), 1), -62);
        let [half, rest] = [lanes.shift_left(half, 23), lanes.shift_left(rest, 23)];
        lanes.mul(lanes.as_floats(half), lanes.as_floats(rest))
    }

    #[inline(always)]
    fn part<L: Lanes>(lanes: L, block: &[u8], scale: &L::Floats, _: usize) -> Group<L> {
        picked(lanes, registers(block, PANEL), &E2M1, *scale)
    }
}
