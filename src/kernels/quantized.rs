//! Matrix product with weights that stay quantized as in a GGUF file. A few rows of the weight at a time are
//! dequantized and multiplied with all input rows before the next few. So results are those of the
//! dequantized weights, memory holds the quantized ones alone, and a row's result is the same to the last bit
//! whatever the other rows are.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::threads;
use super::ggml::GgmlType;
use crate::error::Result;

/// Rows of the weight that are dequantized at a time.
const GROUP: usize = 16;
/// Rows of either side whose dot products are in registers at once.
const TILE: usize = 4;

/// Rows of a quantized weight, `(out, in)`, of one type.
#[derive(Debug)]
pub(crate) struct QuantizedRows {
    pub(crate) dtype: GgmlType,
    pub(crate) bytes: Vec<u8>,
    pub(crate) out_dim: usize,
}

impl QuantizedRows {
    /// Quantizes rows of `in_dim` numbers, whole blocks of 32, to 8 bits with a scale for each block (Q8_0).
    pub(crate) fn eight_bit(weight: Vec<f32>, in_dim: usize) -> Result<Self> {
        let out_dim = weight.len() / in_dim.max(1);
        let weight = Tensor::from_vec(weight, (out_dim, in_dim), &Device::Cpu)?;
        let bytes = QTensor::quantize(&weight, GgmlDType::Q8_0)?.data()?.into_owned();
        Ok(Self { dtype: GgmlType::Q8_0, bytes, out_dim })
    }

    /// Dequantizes one row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let size = self.dtype.row_bytes(out.len()).unwrap_or(0);
        if let Some(bytes) = self.bytes.get(row * size..(row + 1) * size) {
            self.dtype.decode(bytes, out);
        }
    }

    /// Computes `input · weightᵀ`: `(count, in_dim)` to `(out, count)`.
    pub(super) fn multiply(&self, input: &[f32], in_dim: usize) -> Vec<f32> {
        let count = input.len() / in_dim.max(1);
        let size = self.dtype.row_bytes(in_dim).unwrap_or(0);
        let mut out = vec![0.0; self.out_dim * count];
        if size == 0 || count == 0 {
            return out;
        }
        let work = |scratch: &mut Vec<f32>, (out, bytes): (&mut [f32], &[u8])| {
            scratch.resize(bytes.len() / size * in_dim, 0.0);
            let weights = scratch.as_mut_slice();
            Arch::new().dispatch(GroupProduct { dtype: self.dtype, bytes, weights, input, in_dim, out });
        };
        let (group, bytes) = (GROUP * count, GROUP * size);
        match threads() {
            1 => {
                let mut scratch = Vec::new();
                let pairs = out.chunks_mut(group).zip(self.bytes.chunks(bytes));
                pairs.for_each(|pair| work(&mut scratch, pair));
            }
            _ => out.par_chunks_mut(group).zip(self.bytes.par_chunks(bytes)).for_each_init(Vec::new, work),
        }
        out
    }
}

/// Product of a group of weight rows with all input rows.
struct GroupProduct<'a> {
    dtype: GgmlType,
    bytes: &'a [u8],
    weights: &'a mut [f32],
    input: &'a [f32],
    in_dim: usize,
    out: &'a mut [f32],
}

impl WithSimd for GroupProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dtype, bytes, weights, input, in_dim, out } = self;
        dtype.decode_inline(bytes, weights);
        let count = input.len() / in_dim;
        for (tile, inputs) in input.chunks(TILE * in_dim).enumerate() {
            let pairs = weights.chunks(TILE * in_dim).zip(out.chunks_mut(TILE * count));
            for (weights, out) in pairs {
                let place = Place { out, count, first: tile * TILE };
                match (weights.len() / in_dim, inputs.len() / in_dim) {
                    (TILE, 4) => dot_rows::<S, TILE, 4>(simd, weights, inputs, in_dim, place),
                    (TILE, 3) => dot_rows::<S, TILE, 3>(simd, weights, inputs, in_dim, place),
                    (TILE, 2) => dot_rows::<S, TILE, 2>(simd, weights, inputs, in_dim, place),
                    (TILE, 1) => dot_rows::<S, TILE, 1>(simd, weights, inputs, in_dim, place),
                    _ => {
                        let weights = weights.chunks_exact(in_dim).zip(place.out.chunks_mut(count));
                        for (weight, out) in weights {
                            for (index, input) in inputs.chunks_exact(in_dim).enumerate() {
                                let place = Place { out: &mut *out, count, first: tile * TILE + index };
                                dot_rows::<S, 1, 1>(simd, weight, input, in_dim, place);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Output of products, `(weight row, input row)`, for the inputs from `first` on.
struct Place<'a> {
    out: &'a mut [f32],
    count: usize,
    first: usize,
}

/// Computes the dot products of `W` weight rows with `R` input rows. Each is summed the same way whatever the
/// others are.
#[inline(always)]
fn dot_rows<S: Simd, const W: usize, const R: usize>(
    simd: S,
    weights: &[f32],
    inputs: &[f32],
    in_dim: usize,
    place: Place<'_>,
) {
    let mut sums = [[simd.splat_f32s(0.0); R]; W];
    let weights: [&[f32]; W] = std::array::from_fn(|row| &weights[row * in_dim..(row + 1) * in_dim]);
    let inputs: [&[f32]; R] = std::array::from_fn(|row| &inputs[row * in_dim..(row + 1) * in_dim]);
    // All of one length that the compiler knows to be one, so that it checks no index in the loop.
    let steps = in_dim / S::F32_LANES;
    let weight_registers = weights.map(|row| &S::as_simd_f32s(row).0[..steps]);
    let input_registers = inputs.map(|row| &S::as_simd_f32s(row).0[..steps]);
    for step in 0..steps {
        let inputs: [S::f32s; R] = std::array::from_fn(|row| input_registers[row][step]);
        for row in 0..W {
            let weight = weight_registers[row][step];
            for column in 0..R {
                sums[row][column] = simd.mul_add_e_f32s(weight, inputs[column], sums[row][column]);
            }
        }
    }
    let done = steps * S::F32_LANES;
    for (row, sums) in sums.into_iter().enumerate() {
        for (column, sum) in sums.into_iter().enumerate() {
            let rest = weights[row][done..].iter().zip(&inputs[column][done..]);
            let rest: f32 = rest.map(|(weight, input)| weight * input).sum();
            place.out[row * place.count + place.first + column] = simd.reduce_sum_f32s(sum) + rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    fn rows(number: u32, weight: &Tensor) -> (QuantizedRows, Tensor) {
        let dtype = GgmlType::from_number(number).unwrap();
        let quantized = QTensor::quantize(weight, dtype.candle().unwrap()).unwrap();
        let bytes = quantized.data().unwrap().into_owned();
        let out_dim = weight.dims()[0];
        (QuantizedRows { dtype, bytes, out_dim }, quantized.dequantize(&Device::Cpu).unwrap())
    }

    #[test]
    fn products_are_those_of_the_dequantised_weights_and_of_each_row_alone_to_the_last_bit() {
        // 37 rows: whole groups and tiles, and what is left of both.
        let weight = random(0.0, 1.0, (37, 256));
        for number in [2, 8, 12, 14] {
            let (rows, numbers) = rows(number, &weight);
            for count in [1, 3, 4, 6, 9] {
                let input = random(0.0, 1.0, (count, 256));
                let values: Vec<f32> = input.flatten_all().unwrap().to_vec1().unwrap();
                let ours = rows.multiply(&values, 256);
                let theirs = numbers.matmul(&input.t().unwrap()).unwrap().flatten_all().unwrap();
                let theirs: Vec<f32> = theirs.to_vec1().unwrap();
                let pairs = ours.iter().zip(&theirs);
                assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-4, "{number} {count}");
                for (index, input) in values.chunks_exact(256).enumerate() {
                    let together: Vec<f32> = ours.iter().skip(index).step_by(count).copied().collect();
                    assert_eq!(rows.multiply(input, 256), together, "{number} {count}");
                }
            }
        }
    }
}
