//! Matrix product of weights that stay quantized as in a GGUF file with rows that are quantized to 8 bits: the products
//! are sums of small integers, exact in any order, and each block's sum is scaled. So does llama.cpp. The weights are
//! stored in panels of 16 rows whose blocks are interleaved, so that one instruction works on all of a panel's rows; a
//! block is unpacked once for all input rows. Blocks are added up in their order, so that a row's result is the same to
//! the last bit whatever the other rows and the processor's instructions are. Weights that are multiplied exactly are
//! left to `quantized`.

mod lanes;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod interleaved;
mod input;
mod formats;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::cpu::threads_for;
use super::ggml::GgmlType;
use super::quantized::QuantizedRows;
use formats::{Dot, Format, Group};
use input::Block;
pub(super) use input::EightBitRows;
use interleaved::Panels;
pub(super) use lanes::PANEL;
use lanes::{Lanes, Plain, Work};

/// Rows of a quantized weight, `(out, in)`, interleaved in panels.
#[derive(Debug)]
pub(super) struct IntegerRows {
    dtype: GgmlType,
    panels: Panels,
    pub(super) out_dim: usize,
}

impl IntegerRows {
    /// Interleaves the rows of a weight, each of `in_dim` numbers, where there is a product for their type; gives them
    /// back otherwise.
    pub(super) fn new(rows: QuantizedRows, in_dim: usize) -> Result<Self, QuantizedRows> {
        let QuantizedRows { dtype, bytes, out_dim } = rows;
        let size = dtype.row_bytes(in_dim).filter(|size| *size > 0 && bytes.len() == size * out_dim);
        match (formats::layout(dtype), size) {
            (Some(layout), Some(size)) => {
                Ok(Self { dtype, panels: Panels::interleave(bytes, size, layout), out_dim })
            }
            _ => Err(QuantizedRows { dtype, bytes, out_dim }),
        }
    }

    /// Dequantizes one row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        self.dtype.decode(&self.panels.row(row), out);
    }

    /// Computes `input · weightᵀ`. Gives `(panel, row, output of the panel)`.
    pub(super) fn multiply(&self, input: &EightBitRows) -> Vec<f32> {
        self.multiply_by(Instructions::detect(), input)
    }

    fn multiply_by(&self, instructions: Instructions, input: &EightBitRows) -> Vec<f32> {
        let size = input.count * PANEL;
        let mut out = vec![0.0; self.out_dim.div_ceil(PANEL) * size];
        let one = |(out, panel): (&mut [f32], &[u8])| {
            instructions.run(PanelProduct { dtype: self.dtype, panel, input, out });
        };
        // A byte of a weight takes about as long as a quarter of a number elsewhere.
        let work = self.panels.bytes().saturating_mul(input.count) / 4;
        match (size, threads_for(work)) {
            (0, _) => {}
            (_, 1) => out.chunks_exact_mut(size).zip(self.panels.iter()).for_each(one),
            _ => out.par_chunks_exact_mut(size).zip(self.panels.par_iter()).for_each(one),
        }
        out
    }
}

/// Instructions that a product is computed with.
#[derive(Debug, Clone, Copy)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    Plain,
}

impl Instructions {
    /// The best that this processor has.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = avx512::Avx512::try_new() {
                return Self::Avx512(avx512);
            }
            if let Some(avx2) = pulp::x86::V3::try_new() {
                return Self::Avx2(avx2);
            }
        }
        Self::Plain
    }

    fn run(self, work: impl Work) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => lanes.run(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(work),
            Self::Plain => Plain.run(work),
        }
    }
}

/// Product of all input rows with one panel.
struct PanelProduct<'a> {
    dtype: GgmlType,
    panel: &'a [u8],
    input: &'a EightBitRows,
    out: &'a mut [f32],
}

impl Work for PanelProduct<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let Self { dtype, panel, input, out } = self;
        formats::with_format!(dtype, F => product::<L, F>(lanes, panel, input, out));
    }
}

/// Adds the products of all input rows with a panel to `out`, `(row, output)`, block by block.
#[inline(always)]
fn product<L: Lanes, F: Format>(lanes: L, panel: &[u8], input: &EightBitRows, out: &mut [f32]) {
    let blocks = panel.chunks_exact(F::BYTES * PANEL);
    for (block, inputs) in blocks.zip(input.blocks.chunks_exact(F::PARTS * input.count)) {
        let scales = F::scales(lanes, block);
        for (part, inputs) in inputs.chunks_exact(input.count).enumerate() {
            let group = F::part(lanes, block, &scales, part);
            for (out, input) in out.as_chunks_mut::<PANEL>().0.iter_mut().zip(inputs) {
                step::<L, F>(lanes, &group, input, out);
            }
        }
    }
}

/// Adds the product of 32 numbers of each of a panel's rows with those of an input row.
#[inline(always)]
fn step<L: Lanes, F: Format>(lanes: L, group: &Group<L>, input: &Block, out: &mut [f32; PANEL]) {
    let Group { quads, scales, minima } = group;
    let [low, high, whole] = input.negative_sums;
    let sum = if F::HALVES {
        let low = dot::<L, F>(lanes, low, &quads[..4], &input.quads[..4]);
        let high = dot::<L, F>(lanes, high, &quads[4..], &input.quads[4..]);
        let sum = lanes.mul_add(high, scales[1], lanes.mul(low, scales[0]));
        match F::MINIMA {
            true => {
                let sum = lanes.mul_add(minima[0], lanes.float(input.sums[0]), sum);
                lanes.mul_add(minima[1], lanes.float(input.sums[1]), sum)
            }
            false => sum,
        }
    } else {
        let sum = lanes.mul(dot::<L, F>(lanes, whole, quads, &input.quads), scales[0]);
        match F::MINIMA {
            true => lanes.mul_add(minima[0], lanes.float(input.sums[2]), sum),
            false => sum,
        }
    };
    let total = lanes.mul_add(sum, lanes.float(input.scale), lanes.load_floats(out));
    lanes.store(total, out);
}

/// Sum of the products of some quads, each less what its format adds to numbers.
#[inline(always)]
fn dot<L: Lanes, F: Format>(lanes: L, negative_sum: i32, quads: &[L::Ints], inputs: &[i32]) -> L::Floats {
    let offset = match F::DOT {
        Dot::Small => F::OFFSET_BITS,
        Dot::Signed => L::SIGNED_OFFSET_BITS,
    };
    let mut sum = match offset {
        0 => lanes.splat(0),
        bits => lanes.shift_left(lanes.splat(negative_sum as u32), bits),
    };
    for (quad, input) in quads.iter().zip(inputs) {
        sum = match F::DOT {
            Dot::Small => lanes.dot_small(sum, *quad, *input),
            Dot::Signed => lanes.dot_signed(sum, *quad, *input),
        };
    }
    lanes.to_floats(sum)
}
