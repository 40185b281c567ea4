//! A linear layer for any number of rows: one row of a text that is being written, a few of several texts, hundreds of
//! a prompt. The weight lies once in memory, in panels that are read from one end to the other; a few rows together
//! take one reading. Each output is summed in the same order whatever the other rows are, so that a row's result is
//! the same to the last bit alone and in any batch. On an accelerator it is candle's own product.

use candle_core::{Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Activation, threads, with_values};
use crate::error::{Error, Result};

/// Output columns of a panel: a multiple of two registers on every processor.
const PANEL: usize = 32;
/// Rows that are computed while a panel is read once.
const BLOCK: usize = 8;

/// A linear layer whose weight is packed for the processor, or a tensor on an accelerator.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    weight: Weight,
    bias: Option<Tensor>,
    inside: usize,
    outside: usize,
}

#[derive(Debug)]
enum Weight {
    /// `(panel, in, column)`; the last panel is filled up with zeros.
    Panels(Vec<f32>),
    /// `(out, in)`.
    Tensor(Tensor),
}

impl PackedLinear {
    /// From the numbers of the weight as files have it, `(out, in)`, and the bias, `(out)`.
    pub(crate) fn new(
        weight: Vec<f32>,
        inside: usize,
        bias: Option<Tensor>,
        device: &Device,
    ) -> Result<Self> {
        if inside == 0 || !weight.len().is_multiple_of(inside) {
            return Err(Error::Compute(candle_core::Error::msg("a weight of no width")));
        }
        let outside = weight.len() / inside;
        let weight = match device {
            Device::Cpu => Weight::Panels(pack(&weight, inside)),
            device => Weight::Tensor(Tensor::from_vec(weight, (outside, inside), device)?),
        };
        Ok(Self { weight, bias, inside, outside })
    }

    /// Length of an output row.
    pub(crate) fn outside(&self) -> usize {
        self.outside
    }

    /// `activation(input · weightᵀ + bias)`: `(rows, in)` to `(rows, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.weight {
            Weight::Panels(panels) => {
                let (count, inside) = input.dims2()?;
                if inside != self.inside {
                    return Err(Error::Compute(candle_core::Error::msg(
                        "rows of another width than the weight",
                    )));
                }
                let product = with_values(input, |input| multiply(panels, input, count, inside))?;
                let mut out = self.rows(&product, count)?;
                activation.on_values(&mut out);
                Ok(Tensor::from_vec(out, (count, self.outside), &Device::Cpu)?)
            }
            Weight::Tensor(weight) => {
                let product = input.matmul(&weight.t()?)?;
                let sum = match &self.bias {
                    Some(bias) => product.broadcast_add(bias)?,
                    None => product,
                };
                Ok(activation.on_tensor(sum)?)
            }
        }
    }

    /// The rows of the weight, `(out, in)`, with these numbers: what an embedding looks up.
    pub(crate) fn lookup(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.outside) {
            let reason = format!("the token {row} is none of the model's {}", self.outside);
            return Err(Error::InvalidInput(reason));
        }
        match &self.weight {
            Weight::Panels(panels) => {
                let mut out: Vec<f32> = Vec::with_capacity(rows.len() * self.inside);
                for row in rows {
                    let (panel, column) = (*row as usize / PANEL, *row as usize % PANEL);
                    let panel = &panels[panel * self.inside * PANEL..(panel + 1) * self.inside * PANEL];
                    out.extend(panel.iter().skip(column).step_by(PANEL));
                }
                Ok(Tensor::from_vec(out, (rows.len(), self.inside), &Device::Cpu)?)
            }
            Weight::Tensor(weight) => Ok(weight.index_select(&Tensor::new(rows, weight.device())?, 0)?),
        }
    }

    /// From panels of rows to rows, with the bias.
    fn rows(&self, product: &[f32], count: usize) -> Result<Vec<f32>> {
        let mut out = match &self.bias {
            Some(bias) => with_values(bias, |bias| bias.repeat(count))?,
            None => vec![0.0; count * self.outside],
        };
        for (panel, columns) in product.chunks_exact((count * PANEL).max(1)).enumerate() {
            for (row, from) in out.chunks_exact_mut(self.outside).zip(columns.chunks_exact(PANEL)) {
                for (out, value) in row[panel * PANEL..].iter_mut().zip(from) {
                    *out += *value;
                }
            }
        }
        Ok(out)
    }
}

fn pack(weight: &[f32], inside: usize) -> Vec<f32> {
    let outside = weight.len() / inside;
    let mut panels = vec![0.0; outside.div_ceil(PANEL) * PANEL * inside];
    for (panel, rows) in panels.chunks_exact_mut(PANEL * inside).zip(weight.chunks(PANEL * inside)) {
        for (column, row) in rows.chunks_exact(inside).enumerate() {
            for (to, value) in panel[column..].iter_mut().step_by(PANEL).zip(row) {
                *to = *value;
            }
        }
    }
    panels
}

/// The products of all rows with each panel: `(panel, row, column)`.
fn multiply(panels: &[f32], input: &[f32], count: usize, inside: usize) -> Vec<f32> {
    let input = Blocks::of(input, count, inside);
    let mut out = vec![0.0; panels.len() / inside * count];
    let one = |(out, panel): (&mut [f32], &[f32])| {
        Arch::new().dispatch(PanelProduct { panel, input: &input, out });
    };
    let (size, panel) = ((count * PANEL).max(1), inside * PANEL);
    match threads() {
        1 => out.chunks_exact_mut(size).zip(panels.chunks_exact(panel)).for_each(one),
        _ => out.par_chunks_exact_mut(size).zip(panels.par_chunks_exact(panel)).for_each(one),
    }
    out
}

/// Rows in blocks of up to [`BLOCK`], each block `(in, row)`, so that a step reads its rows side by side.
struct Blocks {
    values: Vec<f32>,
    inside: usize,
}

impl Blocks {
    fn of(input: &[f32], count: usize, inside: usize) -> Self {
        let mut values = vec![0.0; count * inside];
        for (block, rows) in values.chunks_mut(BLOCK * inside).zip(input.chunks(BLOCK * inside)) {
            let high = rows.len() / inside;
            for (index, row) in rows.chunks_exact(inside).enumerate() {
                for (to, value) in block[index..].iter_mut().step_by(high).zip(row) {
                    *to = *value;
                }
            }
        }
        Self { values, inside }
    }
}

/// All rows with one panel.
struct PanelProduct<'a> {
    panel: &'a [f32],
    input: &'a Blocks,
    out: &'a mut [f32],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inside = self.input.inside;
        let blocks = self.input.values.chunks(BLOCK * inside);
        for (out, block) in self.out.chunks_mut(BLOCK * PANEL).zip(blocks) {
            match block.len() / inside {
                1 => product::<S, 1>(simd, self.panel, block, out),
                2 => product::<S, 2>(simd, self.panel, block, out),
                3 => product::<S, 3>(simd, self.panel, block, out),
                4 => product::<S, 4>(simd, self.panel, block, out),
                5 => product::<S, 5>(simd, self.panel, block, out),
                6 => product::<S, 6>(simd, self.panel, block, out),
                7 => product::<S, 7>(simd, self.panel, block, out),
                _ => product::<S, BLOCK>(simd, self.panel, block, out),
            }
        }
    }
}

/// One block of `R` rows with one panel, two registers of columns at a time.
#[inline(always)]
fn product<S: Simd, const R: usize>(simd: S, panel: &[f32], block: &[f32], out: &mut [f32]) {
    let registers = PANEL / S::F32_LANES;
    let (panel, _) = S::as_simd_f32s(panel);
    let (steps, _) = block.as_chunks::<R>();
    for pair in (0..registers).step_by(2) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (weights, step) in panel.chunks_exact(registers).zip(steps) {
            let (left, right) = (weights[pair], weights[pair + 1]);
            for (sum, value) in sums.iter_mut().zip(step) {
                let value = simd.splat_f32s(*value);
                sum[0] = simd.mul_add_e_f32s(value, left, sum[0]);
                sum[1] = simd.mul_add_e_f32s(value, right, sum[1]);
            }
        }
        for (row, sum) in out.chunks_exact_mut(PANEL).zip(sums) {
            let (row, _) = S::as_mut_simd_f32s(row);
            row[pair] = sum[0];
            row[pair + 1] = sum[1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(outside: usize, inside: usize) -> (PackedLinear, Tensor, Tensor) {
        let weight = Tensor::randn(0.0f32, 0.2, (outside, inside), &Device::Cpu).unwrap();
        let bias = Tensor::randn(0.0f32, 1.0, outside, &Device::Cpu).unwrap();
        let values = weight.flatten_all().unwrap().to_vec1().unwrap();
        (PackedLinear::new(values, inside, Some(bias.clone()), &Device::Cpu).unwrap(), weight, bias)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn products_are_candles_for_every_number_of_rows() {
        for (outside, inside) in [(32, 16), (45, 33), (7, 96), (200, 1)] {
            let (layer, weight, bias) = layer(outside, inside);
            for count in [1, 2, 3, 7, 8, 9, 16, 21] {
                let input = Tensor::randn(0.0f32, 1.0, (count, inside), &Device::Cpu).unwrap();
                let ours = layer.forward(&input, Activation::Relu).unwrap();
                let theirs = input.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
                let theirs = theirs.relu().unwrap();
                let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{outside} {inside} {count}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_to_the_last_bit_alone_and_among_others_whatever_the_threads() {
        let (layer, ..) = layer(100, 70);
        let input = Tensor::randn(0.0f32, 1.0, (13, 70), &Device::Cpu).unwrap();
        let together = layer.forward(&input, Activation::Identity).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for row in 0..13 {
            let one = input.narrow(0, row, 1).unwrap();
            let alone = pool.install(|| layer.forward(&one, Activation::Identity)).unwrap();
            assert_eq!(values(&alone), values(&together.narrow(0, row, 1).unwrap()));
        }
    }

    #[test]
    fn a_looked_up_row_is_the_weights() {
        let (layer, weight, _) = layer(45, 10);
        let found = layer.lookup(&[44, 0, 31, 32]).unwrap();
        let rows = Tensor::new(&[44u32, 0, 31, 32], &Device::Cpu).unwrap();
        assert_eq!(values(&found), values(&weight.index_select(&rows, 0).unwrap()));
        assert!(matches!(layer.lookup(&[45]), Err(Error::InvalidInput(_))));
    }
}
