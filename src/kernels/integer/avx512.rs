//! A panel's operations by AVX-512 with VNNI, whose `vpdpbusd` multiplies four pairs of bytes of each lane and adds them
//! to the lane. All but that instruction go through pulp.
#![allow(
    unsafe_code,
    reason = "pulp has no function for `vpdpbusd`; the token proves that the processor has it"
)]

use std::arch::x86_64::{__m128i, __m512, __m512i, _mm512_dpbusd_epi32};

use pulp::bytemuck::cast;

use super::lanes::{Lanes, PANEL, Work};

pulp::simd_type! {
    /// Proof that the processor has these instructions.
    pub(super) struct Avx512 {
        sse2: "sse2",
        avx: "avx",
        avx2: "avx2",
        fma: "fma",
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512vl: "avx512vl",
        avx512vnni: "avx512vnni",
    }
}

/// For each byte the first one of its lane.
const FIRST_OF_LANE: [u8; 64] = {
    let mut index = [0; 64];
    let mut byte = 0;
    while byte < 64 {
        index[byte] = (byte % 16 / 4 * 4) as u8;
        byte += 1;
    }
    index
};

impl Avx512 {
    #[inline(always)]
    fn dot(self, sum: __m512i, bytes: __m512i, quad: i32) -> __m512i {
        let quad = self.avx512f._mm512_set1_epi32(quad);
        // SAFETY: it needs AVX-512 VNNI and touches no memory. A value of this type is made by `try_new` alone, which
        // gives none where the processor lacks that.
        unsafe { _mm512_dpbusd_epi32(sum, bytes, quad) }
    }

    #[inline(always)]
    fn count(self, bits: u32) -> __m128i {
        self.sse2._mm_cvtsi32_si128(bits as i32)
    }
}

impl Lanes for Avx512 {
    type Ints = __m512i;
    type Floats = __m512;
    // `vpdpbusd` takes its first factors as unsigned.
    const SIGNED_OFFSET_BITS: u32 = 7;

    #[inline(always)]
    fn run(self, work: impl Work) {
        struct With<W>(Avx512, W);
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
    fn load(self, bytes: &[u8; 64]) -> __m512i {
        cast(*bytes)
    }

    #[inline(always)]
    fn splat(self, value: u32) -> __m512i {
        self.avx512f._mm512_set1_epi32(value as i32)
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_and_si512(a, b)
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_or_si512(a, b)
    }

    #[inline(always)]
    fn minus(self, a: __m512i, value: i32) -> __m512i {
        self.avx512f._mm512_sub_epi32(a, self.avx512f._mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn shift_left(self, a: __m512i, bits: u32) -> __m512i {
        self.avx512f._mm512_sll_epi32(a, self.count(bits))
    }

    #[inline(always)]
    fn shift_right(self, a: __m512i, bits: u32) -> __m512i {
        self.avx512f._mm512_srl_epi32(a, self.count(bits))
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; PANEL]) -> __m512i {
        self.avx512f._mm512_cvtepu8_epi32(cast(*bytes))
    }

    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; PANEL]) -> __m512i {
        self.avx512f._mm512_cvtepi8_epi32(cast(*bytes))
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 2 * PANEL]) -> __m512i {
        self.avx512f._mm512_cvtepu16_epi32(cast(*bytes))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * PANEL]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(cast(*bytes))
    }

    #[inline(always)]
    fn pick(self, bytes: __m512i, table: &[i8; 16]) -> __m512i {
        self.avx512bw._mm512_shuffle_epi8(cast([*table; 4]), bytes)
    }

    #[inline(always)]
    fn fifth_bits(self, words: __m512i, quad: usize) -> __m512i {
        let byte = self.avx512f._mm512_set1_epi32(quad as i32 / 2 * 0x0101_0101);
        let byte = self.or(cast(FIRST_OF_LANE), byte);
        let bits = self.avx512f._mm512_set1_epi32(0x0804_0201 << (4 * (quad % 2)));
        let set = self.avx512bw._mm512_test_epi8_mask(self.avx512bw._mm512_shuffle_epi8(words, byte), bits);
        self.avx512bw._mm512_maskz_set1_epi8(set, 16)
    }

    #[inline(always)]
    fn signed(self, bytes: __m512i) -> __m512i {
        self.avx512f._mm512_xor_si512(bytes, self.splat(0x8080_8080))
    }

    #[inline(always)]
    fn dot_small(self, sum: __m512i, bytes: __m512i, quad: i32) -> __m512i {
        self.dot(sum, bytes, quad)
    }

    #[inline(always)]
    fn dot_signed(self, sum: __m512i, bytes: __m512i, quad: i32) -> __m512i {
        self.dot(sum, bytes, quad)
    }

    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        self.avx512f._mm512_cvtepi32_ps(ints)
    }

    #[inline(always)]
    fn as_floats(self, ints: __m512i) -> __m512 {
        cast(ints)
    }

    #[inline(always)]
    fn float(self, value: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(value)
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; PANEL]) -> __m512 {
        cast(*values)
    }

    #[inline(always)]
    fn store(self, values: __m512, out: &mut [f32; PANEL]) {
        *out = cast(values);
    }
}
