//! Tensor types of GGML, which GGUF files have: their sizes and their dequantization. A block of a quantized
//! type is a few scales and many small integers. The loops are compiled for every instruction set that
//! matters and chosen at run time. The reference is `ggml-quants.c` of llama.cpp.

mod codebook;

use candle_core::quantized::GgmlDType;
use half::f16;
use pulp::{Arch, Simd, WithSimd};

/// Names of the types that are not supported, by their numbers.
const UNSUPPORTED: [(u32, &str); 26] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Tensor type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

impl GgmlType {
    /// Names of the supported types, for error messages.
    pub(crate) const NAMES: &'static str =
        "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4";

    /// Name of a type that is not supported.
    pub(crate) fn unsupported_name(number: u32) -> String {
        let name = UNSUPPORTED.into_iter().find(|(other, _)| *other == number);
        name.map_or_else(|| format!("number {number}"), |(_, name)| name.to_owned())
    }

    /// Type by its number in files (`ggml_type`).
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            20 => Self::Iq4Nl,
            23 => Self::Iq4Xs,
            39 => Self::Mxfp4,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Numbers in a block, and its bytes.
    const fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Nl => (32, 18),
            Self::Iq4Xs => (256, 136),
            Self::Mxfp4 => (32, 17),
        }
    }

    /// The same type in candle, where it has it.
    pub(crate) fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
            Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => return None,
        })
    }

    /// Bytes of a row of so many numbers; none if it is not made of whole blocks.
    pub(crate) fn row_bytes(self, numbers: usize) -> Option<usize> {
        let (count, bytes) = self.size();
        numbers.is_multiple_of(count).then(|| (numbers / count).checked_mul(bytes)).flatten()
    }

    /// Bytes of a tensor whose innermost dimension is the last.
    pub(crate) fn bytes_of(self, shape: &[usize]) -> Option<u64> {
        let row = self.row_bytes(shape.last().copied().unwrap_or(1))?;
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |rows, side| rows.checked_mul(*side))?;
        rows.checked_mul(row).map(|bytes| bytes as u64)
    }

    /// Dequantizes blocks, as many as both slices have room for.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        Arch::new().dispatch(Decode { dtype: self, bytes, out });
    }

    /// Index of the first row, of so many numbers, with a number that is not finite.
    pub(crate) fn first_damaged_row(self, bytes: &[u8], numbers: usize) -> Option<usize> {
        // A tensor without rows may claim rows of any length.
        let size = self.row_bytes(numbers).filter(|size| (1..=bytes.len()).contains(size))?;
        let mut row = vec![0.0; numbers];
        bytes.chunks_exact(size).position(|bytes| {
            self.decode(bytes, &mut row);
            row.iter().any(|value| !value.is_finite())
        })
    }

    /// Like [`Self::decode`], to be inlined into a loop that is compiled for the processor's instructions.
    #[inline(always)]
    pub(super) fn decode_inline(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => each(bytes, out, |block: &[u8; 4], out: &mut [f32; 1]| {
                *out = [f32::from_le_bytes(*block)];
            }),
            Self::F16 => each(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| {
                *out = [half(u16::from_le_bytes(*block))];
            }),
            Self::Bf16 => each(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| {
                *out = [f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16)];
            }),
            Self::Q4_0 => each(bytes, out, q4_0),
            Self::Q4_1 => each(bytes, out, q4_1),
            Self::Q5_0 => each(bytes, out, q5_0),
            Self::Q5_1 => each(bytes, out, q5_1),
            Self::Q8_0 => each(bytes, out, q8_0),
            Self::Q2K => each(bytes, out, q2_k),
            Self::Q3K => each(bytes, out, q3_k),
            Self::Q4K => each(bytes, out, q4_k),
            Self::Q5K => each(bytes, out, q5_k),
            Self::Q6K => each(bytes, out, q6_k),
            Self::Iq4Nl => each(bytes, out, codebook::iq4_nl),
            Self::Iq4Xs => each(bytes, out, codebook::iq4_xs),
            Self::Mxfp4 => each(bytes, out, codebook::mxfp4),
        }
    }
}

struct Decode<'a> {
    dtype: GgmlType,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl WithSimd for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.dtype.decode_inline(self.bytes, self.out);
    }
}

#[inline(always)]
fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(block, out);
    }
}

/// Converts a 16-bit float by integer operations, which compilers vectorize.
#[inline(always)]
fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // Exponents differ by 112; the product also normalises what is subnormal in 16 bits.
    let value = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let value = if bits & 0x7c00 == 0x7c00 { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// Reads the 16-bit scale at an offset of a block.
#[inline(always)]
fn scale(block: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([block[place], block[place + 1]]).to_f32()
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let step = scale(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), pair) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = (i32::from(pair & 15) - 8) as f32 * step;
        *high = (i32::from(pair >> 4) - 8) as f32 * step;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (step, least) = (scale(block, 0), scale(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), pair) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = i32::from(pair & 15) as f32 * step + least;
        *high = i32::from(pair >> 4) as f32 * step + least;
    }
}

/// Reads the fifth bits of a block's numbers.
#[inline(always)]
fn fifth(block: &[u8], place: usize) -> u32 {
    u32::from_le_bytes([block[place], block[place + 1], block[place + 2], block[place + 3]])
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (step, bits) = (scale(block, 0), fifth(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (index, ((low, high), pair)) in low.iter_mut().zip(high).zip(&block[6..]).enumerate() {
        let (left, right) = (bits >> index & 1, bits >> (index + 16) & 1);
        *low = ((u32::from(pair & 15) | left << 4) as i32 - 16) as f32 * step;
        *high = ((u32::from(pair >> 4) | right << 4) as i32 - 16) as f32 * step;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (step, least, bits) = (scale(block, 0), scale(block, 2), fifth(block, 4));
    let (low, high) = out.split_at_mut(16);
    for (index, ((low, high), pair)) in low.iter_mut().zip(high).zip(&block[8..]).enumerate() {
        let (left, right) = (bits >> index & 1, bits >> (index + 16) & 1);
        *low = (u32::from(pair & 15) | left << 4) as f32 * step + least;
        *high = (u32::from(pair >> 4) | right << 4) as f32 * step + least;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let step = scale(block, 0);
    for (out, value) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*value as i8) * step;
    }
}

#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (step, least) = (scale(block, 80), scale(block, 82));
    for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // 128 numbers share 32 bytes: 16 and 16 by each two bits.
        let (half, shift, side) = (index / 8, index % 8 / 2 * 2, index % 2);
        let both = block[index];
        let (step, least) = (step * f32::from(both & 15), least * f32::from(both >> 4));
        let begin = 16 + 32 * half + 16 * side;
        for (out, value) in out.iter_mut().zip(&block[begin..begin + 16]) {
            *out = step * f32::from(value >> shift & 3) - least;
        }
    }
}

#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let step = scale(block, 108);
    let scales = &block[96..108];
    for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, shift, side) = (index / 8, index % 8 / 2 * 2, index % 2);
        // Scales of six bits: the lower four of 16 in 8 bytes, then the upper two in 4.
        let low = scales[index % 8] >> (4 * (index / 8)) & 15;
        let high = scales[8 + index % 4] >> (2 * (index / 4)) & 3;
        let step = step * f32::from((low | high << 4) as i8 - 32);
        let begin = 32 + 32 * half + 16 * side;
        let bit = 4 * half + shift / 2;
        let values = block[begin..begin + 16].iter().zip(&block[16 * side..16 * side + 16]);
        for (out, (value, mask)) in out.iter_mut().zip(values) {
            let missing = if mask >> bit & 1 == 0 { 4 } else { 0 };
            *out = step * (i32::from(value >> shift & 3) - missing) as f32;
        }
    }
}

/// Scale and minimum of part `index` of 8, of six bits each.
#[inline(always)]
fn scale_and_least(scales: &[u8], index: usize) -> (f32, f32) {
    let (scale, least) = if index < 4 {
        (scales[index] & 63, scales[index + 4] & 63)
    } else {
        (
            scales[index + 4] & 15 | scales[index - 4] >> 6 << 4,
            scales[index + 4] >> 4 | scales[index] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(least))
}

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (step, least) = (scale(block, 0), scale(block, 2));
    for (index, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (part, below) = scale_and_least(&block[4..16], index);
        let (step, least) = (step * part, least * below);
        let begin = 16 + 32 * (index / 2);
        let shift = 4 * (index % 2);
        for (out, value) in out.iter_mut().zip(&block[begin..begin + 32]) {
            *out = step * f32::from(value >> shift & 15) - least;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (step, least) = (scale(block, 0), scale(block, 2));
    for (index, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (part, below) = scale_and_least(&block[4..16], index);
        let (step, least) = (step * part, least * below);
        let begin = 48 + 32 * (index / 2);
        let shift = 4 * (index % 2);
        let values = block[begin..begin + 32].iter().zip(&block[16..48]);
        for (out, (value, bits)) in out.iter_mut().zip(values) {
            *out = step * f32::from(value >> shift & 15 | (bits >> index & 1) << 4) - least;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let step = scale(block, 208);
    for (index, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Each half of 128 numbers: the lower four bits in 64 bytes, the upper two in 32.
        let (half, quarter) = (index / 4, index % 4);
        let low = 64 * half + 32 * (quarter % 2);
        let high = 128 + 32 * half;
        let (shift_low, shift_high) = (4 * (quarter / 2), 2 * quarter);
        let scales = [192 + 8 * half + 2 * quarter, 193 + 8 * half + 2 * quarter];
        let steps = scales.map(|place| step * f32::from(block[place] as i8));
        for (part, (out, step)) in out.as_chunks_mut::<16>().0.iter_mut().zip(steps).enumerate() {
            let (low, high) = (low + 16 * part, high + 16 * part);
            let values = block[low..low + 16].iter().zip(&block[high..high + 16]);
            for (out, (low, high)) in out.iter_mut().zip(values) {
                let value = low >> shift_low & 15 | (high >> shift_high & 3) << 4;
                *out = step * (i32::from(value) - 32) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernels::random;
    use candle_core::Device;
    use candle_core::quantized::QTensor;

    /// A tensor of no rows, each of 2^50 numbers, once allocated as much memory.
    #[test]
    fn rows_that_are_not_there_cost_nothing() {
        for dtype in [0, 1, 8, 12].map(|number| GgmlType::from_number(number).unwrap()) {
            assert_eq!(dtype.first_damaged_row(&[], 1 << 50), None);
            assert_eq!(dtype.first_damaged_row(&[0; 100], 1 << 50), None);
        }
    }

    #[test]
    fn every_format_stands_for_the_numbers_that_candle_makes_of_it() {
        let kinds = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];
        let values = random(0.1, 1.0, (3, 512));
        for dtype in kinds.map(|number| GgmlType::from_number(number).unwrap()) {
            let quantized = QTensor::quantize(&values, dtype.candle().unwrap()).unwrap();
            let bytes = quantized.data().unwrap();
            assert_eq!(dtype.bytes_of(&[3, 512]), Some(bytes.len() as u64), "{dtype:?}");
            let mut ours = vec![0.0; 3 * 512];
            dtype.decode(&bytes, &mut ours);
            let theirs = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let theirs: Vec<f32> = theirs.to_vec1().unwrap();
            let pairs = ours.iter().zip(&theirs);
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-6, "{dtype:?}: {difference}");
            assert_eq!(dtype.first_damaged_row(&bytes, 512), None);
        }
    }

    /// Random blocks, and what the `gguf` package of llama.cpp makes of them (`tests/references/ggml_blocks.py`).
    #[test]
    fn formats_that_candle_lacks_stand_for_the_numbers_of_the_reference_to_the_last_bit() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ggml/blocks.safetensors");
        let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        for (number, name) in [(20, "IQ4_NL"), (23, "IQ4_XS"), (39, "MXFP4")] {
            let dtype = GgmlType::from_number(number).unwrap();
            assert!(dtype.candle().is_none() && GgmlType::NAMES.contains(name));
            let bytes: Vec<u8> =
                expected[&format!("{name}.blocks")].flatten_all().unwrap().to_vec1().unwrap();
            let values = expected[&format!("{name}.values")].flatten_all().unwrap();
            let theirs: Vec<f32> = values.to_vec1().unwrap();
            assert_eq!(dtype.bytes_of(&[theirs.len()]), Some(bytes.len() as u64), "{name}");
            let mut ours = vec![0.0; theirs.len()];
            dtype.decode(&bytes, &mut ours);
            let differs = |(ours, theirs): (&f32, &f32)| ours.to_bits() != theirs.to_bits();
            assert_eq!(ours.iter().zip(&theirs).position(differs), None, "{name}");
        }
    }

    #[test]
    fn a_type_is_either_supported_or_has_a_name() {
        for number in 0..=41 {
            let named = !GgmlType::unsupported_name(number).starts_with("number");
            assert!(GgmlType::from_number(number).is_some() != named, "{number}");
        }
        assert_eq!(GgmlType::unsupported_name(35), "TQ2_0");
        assert_eq!(GgmlType::unsupported_name(99), "number 99");
    }

    #[test]
    fn every_16_bit_number_is_right_and_what_is_not_finite_is_found() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half(bits), f16::from_bits(bits).to_f32());
            assert!(ours == theirs || !ours.is_finite() && !theirs.is_finite(), "{bits:#x}");
        }
        let mut bytes = vec![0; 34 * 4];
        bytes[34 * 3 + 1] = 0x7c;
        assert_eq!(GgmlType::Q8_0.first_damaged_row(&bytes, 64), Some(1));
        assert_eq!(GgmlType::Q8_0.row_bytes(33), None);
    }
}
