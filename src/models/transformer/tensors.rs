//! The tensors of a model file as the loader sees them: vectors, norms and linear layers by their names.
//! Safetensors are here; GGUF files are in `decoder`, which alone reads them.

use candle_core::{Device, Tensor};

use super::config::{Bias, NormKind, Workload};
use super::names::MatrixOrder;
use super::norm::Norm;
use super::projection::Projection;
use crate::error::{Error, Result};
use crate::kernels::ggml::GgmlType;
use crate::kernels::packed::{Arithmetic, PackedLinear, QuantizedRows, RowUse};
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::{LayerNorm, Linear};
use crate::weights::WeightReader;

/// The tensors of a model file.
pub(crate) trait Tensors {
    /// True if the file has a tensor of this name.
    fn contains(&self, name: &str) -> bool;
    /// A tensor of exactly this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// A vector of this length.
    fn vector(&self, name: &str, length: usize) -> Result<Tensor> {
        self.tensor(name, &[length])
    }
    /// Linear layers as one, packed for any number of rows.
    fn packed(&self, layers: &Linears<'_>, rows: RowUse) -> Result<PackedLinear>;
    /// Linear layers as one, on the kernel that suits the model's rows.
    fn projection(&self, layers: &Linears<'_>) -> Result<Projection> {
        self.packed(layers, RowUse::MultipliedOnly).map(Projection::Packed)
    }
    /// Linear layers as one for each of `count` experts, whose matrices are in one tensor for each of the parts.
    fn stacked(&self, layers: &Linears<'_>, count: usize, order: MatrixOrder) -> Result<Vec<Projection>>;

    /// The layer norm, or root-mean-square norm, `name`.
    fn norm(&self, name: &str, width: usize, kind: NormKind, epsilon: f64) -> Result<Norm> {
        // Checkpoints converted from TensorFlow call the two gamma and beta.
        let old = !self.contains(&format!("{name}.weight")) && self.contains(&format!("{name}.gamma"));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let weight = self.vector(&format!("{name}.{weight}"), width)?;
        Ok(match kind {
            NormKind::Layer(has_bias) => {
                let bias = match has_bias {
                    Bias::Yes => self.vector(&format!("{name}.{bias}"), width)?,
                    Bias::No => weight.zeros_like()?,
                };
                Norm::Layer(LayerNorm { weight, bias, epsilon })
            }
            NormKind::Rms => Norm::Rms(RmsNorm { weight, epsilon }),
            NormKind::RmsLessOne => Norm::Rms(RmsNorm { weight: (weight + 1.0)?, epsilon }),
        })
    }
}

/// Linear layers of a file that become one, one's outputs after the other's.
pub(crate) struct Linears<'a> {
    /// Name and number of outputs of each.
    pub(crate) parts: &'a [(&'a str, usize)],
    /// Number of inputs.
    pub(crate) in_dim: usize,
    pub(crate) bias: Bias,
    /// Name of the layer that has no bias, where the others have one.
    pub(crate) unbiased: Option<&'a str>,
    pub(crate) order: RowOrder,
    /// Name of a vector of factors on the outputs.
    pub(crate) scale: Option<&'a str>,
}

/// Order of a layer's outputs in the file, where it is another than in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    AsStored,
    /// Two halves, of which the second comes first in memory.
    Swapped,
    /// A row of the half that comes first in memory and one of the other in turn.
    Interleaved,
    /// So many groups of runs of rows. In memory the first run of each group comes first, then the second of each.
    Groups {
        count: usize,
        runs: [usize; 4],
    },
}

impl RowOrder {
    /// Rows of `length` numbers in the order of memory.
    pub(crate) fn apply<T: Copy>(self, rows: Vec<T>, length: usize) -> Vec<T> {
        let mut rows = rows;
        match self {
            Self::AsStored => rows,
            Self::Swapped => {
                let half = rows.len() / length.max(1) / 2;
                rows.rotate_left(half * length);
                rows
            }
            Self::Interleaved => {
                let rows = |first| rows.chunks_exact(length.max(1)).skip(first).step_by(2);
                rows(0).chain(rows(1)).flatten().copied().collect()
            }
            Self::Groups { count, runs } => {
                let group = runs.iter().sum::<usize>() * length;
                let mut ordered = Vec::with_capacity(rows.len());
                let mut begin = 0;
                for run in runs {
                    let end = begin + run * length;
                    for rows in rows.chunks_exact(group.max(1)).take(count) {
                        ordered.extend_from_slice(&rows[begin..end]);
                    }
                    begin = end;
                }
                ordered
            }
        }
    }
}

impl<'a> Linears<'a> {
    pub(crate) fn new(parts: &'a [(&'a str, usize)], in_dim: usize, bias: Bias) -> Self {
        Self { parts, in_dim, bias, unbiased: None, order: RowOrder::AsStored, scale: None }
    }

    /// Number of outputs.
    pub(crate) fn out_dim(&self) -> usize {
        self.parts.iter().map(|(_, out_dim)| out_dim).sum()
    }
}

/// The tensors of safetensors files on a path of names.
pub(crate) struct SafeTensors<'a> {
    reader: &'a WeightReader<'a>,
    path: String,
    workload: Workload,
}

impl<'a> SafeTensors<'a> {
    /// The tensors whose names begin with `path`, which is empty or ends with a dot.
    pub(crate) fn new(reader: &'a WeightReader<'a>, path: &str, workload: Workload) -> Self {
        Self { reader, path: path.to_owned(), workload }
    }

    /// The tensors on a path within this one.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self::new(self.reader, &format!("{}{path}", self.path), self.workload)
    }

    /// The device that tensors are put on.
    pub(crate) fn device(&self) -> &'a Device {
        self.reader.device()
    }

    /// A tensor of exactly this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.reader.tensor(&format!("{}{name}", self.path), shape)
    }

    /// The layer norm `name`, with a bias.
    pub(crate) fn layer_norm(&self, name: &str, width: usize, epsilon: f64) -> Result<Norm> {
        self.norm(name, width, NormKind::Layer(Bias::Yes), epsilon)
    }

    /// The linear layer `name`.
    pub(crate) fn linear(&self, name: &str, out_dim: usize, in_dim: usize, bias: Bias) -> Result<Projection> {
        self.projection(&Linears::new(&[(name, out_dim)], in_dim, bias))
    }

    /// The weight's numbers, `(out, in)`, and those of the bias.
    fn read(&self, layers: &Linears<'_>) -> Result<(Vec<f32>, Option<Tensor>)> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, out_dim) in layers.parts {
            // A parameter that is no layer of its own has a name without an ending; a weight with adapters beside it has
            // that of PyTorch's parametrisations, and one of its attention an underscore in place of the dot.
            let endings = [".weight", "", ".parametrizations.weight.original", "_weight"];
            let known = endings.into_iter().find(|ending| self.contains(&format!("{name}{ending}")));
            let ending = known.unwrap_or(".weight");
            self.append(&format!("{name}{ending}"), &[*out_dim, layers.in_dim], &mut weight)?;
            let bias_ending = if ending == "_weight" { "_bias" } else { ".bias" };
            if layers.bias == Bias::Yes && layers.unbiased == Some(*name) {
                bias.resize(bias.len() + out_dim, 0.0);
            } else if layers.bias == Bias::Yes {
                self.append(&format!("{name}{bias_ending}"), &[*out_dim], &mut bias)?;
            }
        }
        let out_dim = layers.out_dim();
        (weight, bias) = (layers.order.apply(weight, layers.in_dim), layers.order.apply(bias, 1));
        if let Some(name) = layers.scale {
            // Scaled outputs are those of a scaled weight and bias.
            let mut scale = Vec::new();
            self.append(name, &[out_dim], &mut scale)?;
            for (row, factor) in weight.chunks_exact_mut(layers.in_dim.max(1)).zip(&scale) {
                row.iter_mut().for_each(|value| *value *= *factor);
            }
            bias.iter_mut().zip(&scale).for_each(|(value, factor)| *value *= *factor);
        }
        let bias = match layers.bias {
            Bias::Yes => Some(self.reader.place(bias, &[out_dim])?),
            Bias::No => None,
        };
        Ok((weight, bias))
    }

    fn append(&self, name: &str, shape: &[usize], values: &mut Vec<f32>) -> Result<()> {
        self.reader.append(&format!("{}{name}", self.path), shape, values)
    }

    /// A layer of these numbers on the kernel that suits the model's rows.
    fn made(&self, weight: Vec<f32>, layers: &Linears<'_>, bias: Option<Tensor>) -> Result<Projection> {
        match self.workload {
            Workload::GrowingSequences => self.pack(weight, layers, bias).map(Projection::Packed),
            Workload::WholeSequences if self.reader.eight_bit() => {
                self.pack(weight, layers, bias).map(Projection::Packed)
            }
            Workload::WholeSequences => {
                let weight = self.reader.place(weight, &[layers.out_dim(), layers.in_dim])?;
                Ok(Projection::Gemm(Linear::new(&weight, bias)?))
            }
        }
    }

    /// A layer for any number of rows, quantised where that is asked for and its rows are whole blocks.
    fn pack(&self, weight: Vec<f32>, layers: &Linears<'_>, bias: Option<Tensor>) -> Result<PackedLinear> {
        let (in_dim, device) = (layers.in_dim, self.device());
        if !self.reader.eight_bit() || GgmlType::Q8_0.row_bytes(in_dim).is_none() {
            return PackedLinear::new(weight, in_dim, bias, device);
        }
        let rows = QuantizedRows::eight_bit(weight, in_dim)?;
        PackedLinear::quantized(vec![rows], in_dim, bias, device, RowUse::LookedUp, Arithmetic::EightBit)
    }

    /// The layers of one of the experts.
    fn expert(&self, layers: &Linears<'_>, order: MatrixOrder, place: Place) -> Result<Projection> {
        let (mut weight, mut quantised, mut all_biases) = (Vec::new(), Vec::new(), Vec::new());
        for (name, out_dim) in layers.parts {
            let (in_dim, name) = (layers.in_dim, format!("{}{name}", self.path));
            if self.reader.contains(&format!("{name}_blocks")) {
                quantised.push(self.mxfp4(&name, *out_dim, layers, place)?);
            } else if order == MatrixOrder::Outputs {
                let shape = [place.count, *out_dim, in_dim];
                self.reader.append_part(&name, &shape, place.index, &mut weight)?;
            } else {
                let mut turned = Vec::new();
                self.reader.append_part(&name, &[place.count, in_dim, *out_dim], place.index, &mut turned)?;
                let column = |column| turned.iter().skip(column).step_by((*out_dim).max(1)).copied();
                (0..*out_dim).for_each(|output| weight.extend(column(output)));
            }
            if layers.bias == Bias::Yes {
                let shape = [place.count, *out_dim];
                self.reader.append_part(&format!("{name}_bias"), &shape, place.index, &mut all_biases)?;
            }
        }
        let bias = match layers.bias {
            Bias::Yes => Some(self.reader.place(layers.order.apply(all_biases, 1), &[layers.out_dim()])?),
            Bias::No => None,
        };
        match (quantised.is_empty(), weight.is_empty()) {
            (true, _) => self.made(layers.order.apply(weight, layers.in_dim), layers, bias),
            (false, true) => {
                let rows = RowUse::MultipliedOnly;
                PackedLinear::quantized(
                    quantised,
                    layers.in_dim,
                    bias,
                    self.device(),
                    rows,
                    Arithmetic::Exact,
                )
                .map(Projection::Packed)
            }
            (false, false) => Err(Error::compute("experts of which only some are quantised")),
        }
    }

    /// One expert's rows of a matrix in MXFP4: for 32 numbers 16 bytes in a tensor of blocks, each of two neighbours,
    /// and a scale in another.
    fn mxfp4(&self, name: &str, out_dim: usize, layers: &Linears<'_>, place: Place) -> Result<QuantizedRows> {
        let (in_dim, blocks) = (layers.in_dim, format!("{name}_blocks"));
        if !in_dim.is_multiple_of(32) {
            let found = format!("blocks of 32 numbers for rows of {in_dim}");
            return Err(Error::UnsupportedNumbers { tensor: blocks, found });
        }
        let shape = [place.count, out_dim, in_dim / 32, 16];
        let pairs = self.reader.part_bytes(&blocks, &shape, place.index)?;
        let scales = self.reader.part_bytes(&format!("{name}_scales"), &shape[..3], place.index)?;
        let bytes = mxfp4_rows(&scales, &pairs);
        let row = in_dim / 32 * 17;
        if let Some(row) = GgmlType::Mxfp4.first_damaged_row(&bytes, in_dim) {
            return Err(Error::NotFinite { tensor: blocks, index: row * in_dim, value: "NaN".to_owned() });
        }
        Ok(QuantizedRows { dtype: GgmlType::Mxfp4, bytes: layers.order.apply(bytes, row), out_dim })
    }
}

/// The place of an expert among all.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    count: usize,
}

/// Blocks of MXFP4 as GGML has them: the scale first, and in each byte a number of the first half of a block and one of the
/// second, where safetensors have two neighbours.
fn mxfp4_rows(scales: &[u8], pairs: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(scales.len() * 17);
    for (scale, pairs) in scales.iter().zip(pairs.as_chunks::<16>().0) {
        let number = |index: usize| match index % 2 {
            0 => pairs[index / 2] & 15,
            _ => pairs[index / 2] >> 4,
        };
        bytes.push(*scale);
        bytes.extend((0..16).map(|index| number(index) | number(index + 16) << 4));
    }
    bytes
}

impl Tensors for SafeTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        self.reader.contains(&format!("{}{name}", self.path))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Self::tensor(self, name, shape)
    }

    fn packed(&self, layers: &Linears<'_>, _: RowUse) -> Result<PackedLinear> {
        let (weight, bias) = self.read(layers)?;
        self.pack(weight, layers, bias)
    }

    fn projection(&self, layers: &Linears<'_>) -> Result<Projection> {
        let (weight, bias) = self.read(layers)?;
        self.made(weight, layers, bias)
    }

    fn stacked(&self, layers: &Linears<'_>, count: usize, order: MatrixOrder) -> Result<Vec<Projection>> {
        (0..count).map(|index| self.expert(layers, order, Place { index, count })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_of_memory() {
        let rows: Vec<usize> = (0..20).collect();
        let groups = RowOrder::Groups { count: 2, runs: [1, 1, 3, 0] };
        let ordered = [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17, 18, 19];
        assert_eq!(groups.apply(rows.clone(), 2), ordered);
        assert_eq!(RowOrder::Swapped.apply(rows[..6].to_vec(), 1), [3, 4, 5, 0, 1, 2]);
        assert_eq!(RowOrder::Interleaved.apply(rows[..6].to_vec(), 1), [0, 2, 4, 1, 3, 5]);
        assert_eq!(RowOrder::AsStored.apply(rows.clone(), 2), rows);
    }
}
