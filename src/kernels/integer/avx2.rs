//! A panel's operations by AVX2, in two registers of eight lanes, through pulp. `vpmaddubsw` multiplies unsigned bytes
//! with signed ones and adds neighbours in 16 bits, which hold two products of bytes up to 63 with -127 to 127, or two of
//! bytes of which one has the other's sign.

use std::arch::x86_64::{__m128i, __m256, __m256i};

use pulp::bytemuck::cast;
use pulp::x86::V3;

use super::lanes::{Lanes, PANEL, Work};

/// Two registers, of the first eight lanes and the others.
type Pair<T> = [T; 2];

/// For each byte the first one of its lane.
const FIRST_OF_LANE: [u8; 32] = {
    let mut index = [0; 32];
    let mut byte = 0;
    while byte < 32 {
        index[byte] = (byte % 16 / 4 * 4) as u8;
        byte += 1;
    }
    index
};

#[inline(always)]
fn both<T: Copy, U: Copy, V>(a: Pair<T>, b: Pair<U>, of: impl Fn(T, U) -> V) -> Pair<V> {
    [of(a[0], b[0]), of(a[1], b[1])]
}

#[inline(always)]
fn each<T: Copy, V>(a: Pair<T>, of: impl Fn(T) -> V) -> Pair<V> {
    [of(a[0]), of(a[1])]
}

/// Adds two sums of products in 16 bits to each lane.
#[inline(always)]
fn add_pairs(simd: V3, sum: __m256i, products: __m256i) -> __m256i {
    let quads = simd.avx2._mm256_madd_epi16(products, simd.avx._mm256_set1_epi16(1));
    simd.avx2._mm256_add_epi32(sum, quads)
}

/// Eight bytes each, in the lower half of a register.
#[inline(always)]
fn eights(bytes: &[u8; PANEL]) -> Pair<__m128i> {
    let [low, high]: [u64; 2] = cast(*bytes);
    [cast([low, 0]), cast([high, 0])]
}

#[inline(always)]
fn count(simd: V3, bits: u32) -> __m128i {
    simd.sse2._mm_cvtsi32_si128(bits as i32)
}

impl Lanes for V3 {
    type Ints = Pair<__m256i>;
    type Floats = Pair<__m256>;
    const SIGNED_OFFSET_BITS: u32 = 0;

    #[inline(always)]
    fn run(self, work: impl Work) {
        struct With<W>(V3, W);
        impl<W: Work> pulp::NullaryFnOnce for With<W> {
            type Output = ();
            #[inline(always)]
            fn call(self) {
                self.1.with(self.0);
            }
        }
        self.vectorize(With(self, work));
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 64]) -> Self::Ints {
        cast(*bytes)
    }

    #[inline(always)]
    fn splat(self, value: u32) -> Self::Ints {
        [self.avx._mm256_set1_epi32(value as i32); 2]
    }

    #[inline(always)]
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        both(
            a,
            b,
            #[inline(always)]
            |a, b| self.avx2._mm256_and_si256(a, b),
        )
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        both(
            a,
            b,
            #[inline(always)]
            |a, b| self.avx2._mm256_or_si256(a, b),
        )
    }

    #[inline(always)]
    fn minus(self, a: Self::Ints, value: i32) -> Self::Ints {
        each(
            a,
            #[inline(always)]
            |a| self.avx2._mm256_sub_epi32(a, self.avx._mm256_set1_epi32(value)),
        )
    }

    #[inline(always)]
    fn shift_left(self, a: Self::Ints, bits: u32) -> Self::Ints {
        each(
            a,
            #[inline(always)]
            |a| self.avx2._mm256_sll_epi32(a, count(self, bits)),
        )
    }

    #[inline(always)]
    fn shift_right(self, a: Self::Ints, bits: u32) -> Self::Ints {
        each(
            a,
            #[inline(always)]
            |a| self.avx2._mm256_srl_epi32(a, count(self, bits)),
        )
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; PANEL]) -> Self::Ints {
        let [low, high] = eights(bytes);
        [self.avx2._mm256_cvtepu8_epi32(low), self.avx2._mm256_cvtepu8_epi32(high)]
    }

    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; PANEL]) -> Self::Ints {
        let [low, high] = eights(bytes);
        [self.avx2._mm256_cvtepi8_epi32(low), self.avx2._mm256_cvtepi8_epi32(high)]
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 2 * PANEL]) -> Self::Ints {
        let halves: Pair<__m128i> = cast(*bytes);
        [self.avx2._mm256_cvtepu16_epi32(halves[0]), self.avx2._mm256_cvtepu16_epi32(halves[1])]
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * PANEL]) -> Self::Floats {
        // By integer operations, as pulp has no function for `vcvtph2ps`: exponents differ by 112, and the product also
        // normalises what is subnormal in 16 bits.
        let bits = self.words(bytes);
        let sign = self.shift_left(self.and(bits, self.splat(0x8000)), 16);
        let rest = self.shift_left(self.and(bits, self.splat(0x7fff)), 13);
        let value = self.mul(self.as_floats(rest), self.float(f32::from_bits((127 + 112) << 23)));
        self.as_floats(self.or([cast(value[0]), cast(value[1])], sign))
    }

    #[inline(always)]
    fn pick(self, bytes: Self::Ints, table: &[i8; 16]) -> Self::Ints {
        each(
            bytes,
            #[inline(always)]
            |bytes| self.avx2._mm256_shuffle_epi8(cast([*table; 2]), bytes),
        )
    }

    #[inline(always)]
    fn fifth_bits(self, words: Self::Ints, quad: usize) -> Self::Ints {
        let byte = self.avx._mm256_set1_epi32(quad as i32 / 2 * 0x0101_0101);
        let byte = self.avx2._mm256_or_si256(cast(FIRST_OF_LANE), byte);
        let bits = self.avx._mm256_set1_epi32(0x0804_0201 << (4 * (quad % 2)));
        each(
            words,
            #[inline(always)]
            |words| {
                let all = self.avx2._mm256_shuffle_epi8(words, byte);
                let set = self.avx2._mm256_cmpeq_epi8(self.avx2._mm256_and_si256(all, bits), bits);
                self.avx2._mm256_and_si256(set, self.avx._mm256_set1_epi8(16))
            },
        )
    }

    #[inline(always)]
    fn signed(self, bytes: Self::Ints) -> Self::Ints {
        bytes
    }

    #[inline(always)]
    fn dot_small(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints {
        let quad = self.avx._mm256_set1_epi32(quad);
        both(
            sum,
            bytes,
            #[inline(always)]
            |sum, bytes| add_pairs(self, sum, self.avx2._mm256_maddubs_epi16(bytes, quad)),
        )
    }

    #[inline(always)]
    fn dot_signed(self, sum: Self::Ints, bytes: Self::Ints, quad: i32) -> Self::Ints {
        let quad = self.avx._mm256_set1_epi32(quad);
        both(
            sum,
            bytes,
            #[inline(always)]
            |sum, bytes| {
                // The sign goes to the other factor. That of -128 is 128, which is right as an unsigned byte.
                let (size, signed) =
                    (self.avx2._mm256_abs_epi8(bytes), self.avx2._mm256_sign_epi8(quad, bytes));
                add_pairs(self, sum, self.avx2._mm256_maddubs_epi16(size, signed))
            },
        )
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        each(
            ints,
            #[inline(always)]
            |ints| self.avx._mm256_cvtepi32_ps(ints),
        )
    }

    #[inline(always)]
    fn as_floats(self, ints: Self::Ints) -> Self::Floats {
        [cast(ints[0]), cast(ints[1])]
    }

    #[inline(always)]
    fn float(self, value: f32) -> Self::Floats {
        [self.avx._mm256_set1_ps(value); 2]
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        both(
            a,
            b,
            #[inline(always)]
            |a, b| self.avx._mm256_mul_ps(a, b),
        )
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        [self.fma._mm256_fmadd_ps(a[0], b[0], c[0]), self.fma._mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; PANEL]) -> Self::Floats {
        cast(*values)
    }

    #[inline(always)]
    fn store(self, values: Self::Floats, out: &mut [f32; PANEL]) {
        *out = cast(values);
    }
}
