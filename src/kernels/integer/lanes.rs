//! Operations of one panel of a product, sixteen 32-bit lanes at a time, one lane for each of the panel's rows. They are
//! written once for each instruction set; here is the plain loop that all of them agree with to the last bit.

use half::f16;

/// Rows of a panel: the 32-bit lanes of the widest register.
pub(in super::super) const PANEL: usize = 16;

/// Sixteen lanes of 32 bits, each also four bytes, by one instruction set.
pub(super) trait Lanes: Copy {
    type Ints: Copy;
    type Floats: Copy;
    /// Bits by which a byte that [`Self::signed`] gives is shifted from the number that it stands for: 2 to this power is
    /// added to each; 0 stands for nothing.
    const SIGNED_OFFSET_BITS: u32;

    /// Runs work that is compiled for the instruction set.
    fn run(self, work: impl Work);

    fn load(self, bytes: &[u8; 64]) -> Self::Ints;
    fn splat(self, value: u32) -> Self::Ints;
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Each lane less a number.
    fn minus(self, a: Self::Ints, value: i32) -> Self::Ints;
    fn shift_left(self, a: Self::Ints, bits: u32) -> Self::Ints;
    fn shift_right(self, a: Self::Ints, bits: u32) -> Self::Ints;
    /// A byte to each lane.
    fn bytes(self, bytes: &[u8; PANEL]) -> Self::Ints;
    fn signed_bytes(self, bytes: &[u8; PANEL]) -> Self::Ints;
    /// Two bytes to each lane.
    fn words(self, bytes: &[u8; 2 * PANEL]) -> Self::Ints;
    /// A finite 16-bit float to each lane.
    fn halves(self, bytes: &[u8; 2 * PANEL]) -> Self::Floats;
    /// Each byte, of at most 15, to the number of the table that it picks.
    fn pick(self, bytes: Self::Ints, table: &[i8; 16]) -> Self::Ints;
    /// For bits `4 · quad` to `4 · quad + 3` of each lane a byte each: 16 or 0.
    fn fifth_bits(self, words: Self::Ints, quad: usize) -> Self::Ints;
    /// Signed bytes to the form that [`Self::dot_signed`] takes.
    fn signed(self, bytes: Self::Ints) -> Self::Ints;
    /// Adds the products of the four bytes of each lane, none above 63, with four signed ones to a sum.
    fn dot_small(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints;
    /// The same for bytes that [`Self::signed`] gave, and four between -127 and 127.
    fn dot_signed(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints;

    /// Signed integers to floats.
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    /// Integers as the bits of floats.
    fn as_floats(self, ints: Self::Ints) -> Self::Floats;
    fn float(self, value: f32) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn load_floats(self, values: &[f32; PANEL]) -> Self::Floats;
    fn store(self, values: Self::Floats, out: &mut [f32; PANEL]);
}

/// Work by any instruction set.
pub(super) trait Work {
    fn with<L: Lanes>(self, lanes: L);
}

/// Loops over arrays, which compilers turn into whatever there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

#[inline(always)]
fn each(a: [u32; PANEL], b: [u32; PANEL], of: impl Fn(u32, u32) -> u32) -> [u32; PANEL] {
    std::array::from_fn(|lane| of(a[lane], b[lane]))
}

#[inline(always)]
fn dot(sum: [u32; PANEL], bytes: [u32; PANEL], quad: i32, weight: impl Fn(u8) -> i32) -> [u32; PANEL] {
    let quad = quad.to_le_bytes().map(|value| i32::from(value as i8));
    std::array::from_fn(|lane| {
        let bytes = bytes[lane].to_le_bytes();
        let products = bytes.iter().zip(quad).map(|(byte, value)| weight(*byte) * value);
        sum[lane].wrapping_add(products.sum::<i32>() as u32)
    })
}

impl Lanes for Plain {
    type Ints = [u32; PANEL];
    type Floats = [f32; PANEL];
    const SIGNED_OFFSET_BITS: u32 = 0;

    fn run(self, work: impl Work) {
        work.with(self);
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> Self::Ints {
        let (quads, _) = bytes.as_chunks::<4>();
        std::array::from_fn(|lane| u32::from_le_bytes(quads[lane]))
    }

    #[inline(always)]
    fn splat(self, value: u32) -> Self::Ints {
        [value; PANEL]
    }

    #[inline(always)]
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn minus(self, a: Self::Ints, value: i32) -> Self::Ints {
        a.map(|lane| lane.wrapping_sub(value as u32))
    }

    #[inline(always)]
    fn shift_left(self, a: Self::Ints, bits: u32) -> Self::Ints {
        a.map(|lane| lane << bits)
    }

    #[inline(always)]
    fn shift_right(self, a: Self::Ints, bits: u32) -> Self::Ints {
        a.map(|lane| lane >> bits)
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; PANEL]) -> Self::Ints {
        bytes.map(u32::from)
    }

    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; PANEL]) -> Self::Ints {
        bytes.map(|byte| i32::from(byte as i8) as u32)
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 2 * PANEL]) -> Self::Ints {
        let (words, _) = bytes.as_chunks::<2>();
        std::array::from_fn(|lane| u32::from(u16::from_le_bytes(words[lane])))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * PANEL]) -> Self::Floats {
        self.words(bytes).map(|bits| f16::from_bits(bits as u16).to_f32())
    }

    #[inline(always)]
    fn pick(self, bytes: Self::Ints, table: &[i8; 16]) -> Self::Ints {
        bytes.map(|quad| {
            u32::from_le_bytes(quad.to_le_bytes().map(|byte| table[usize::from(byte & 15)] as u8))
        })
    }

    #[inline(always)]
    fn fifth_bits(self, words: Self::Ints, quad: usize) -> Self::Ints {
        words.map(|word| {
            let bits = word >> (4 * quad);
            u32::from_le_bytes(std::array::from_fn(|byte| (bits >> byte & 1) as u8 * 16))
        })
    }

    #[inline(always)]
    fn signed(self, bytes: Self::Ints) -> Self::Ints {
        bytes
    }

    #[inline(always)]
    fn dot_small(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints {
        dot(sum, bytes, quad, i32::from)
    }

    #[inline(always)]
    fn dot_signed(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints {
        dot(sum, bytes, quad, |byte| i32::from(byte as i8))
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|lane| lane as i32 as f32)
    }

    #[inline(always)]
    fn as_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(f32::from_bits)
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        [value; PANEL]
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; PANEL]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn store(self, values: Self::Floats, out: &mut [f32; PANEL]) {
        *out = values;
    }
}
