//! Linear layer of decoders, for any number of rows: one row of a text that is being generated, a few of
//! several texts, hundreds of a prompt. The weight lies once in memory, packed in panels that are read from
//! one end to the other, once for a few rows together; the weights of GGUF files stay quantized, and are
//! multiplied with rows that are quantized to 8 bits, or exactly. Each output is summed in the same order
//! whatever the other rows are, so a row's result is the same to the last bit alone and in any batch. On an
//! accelerator it is candle's own product.

use std::borrow::Cow;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};

use super::activation::Activation;
use super::cpu::{split_rows_at, threads_for, with_values};
use super::ggml::GgmlType;
use super::integer::{self, EightBitRows, IntegerRows};
use super::matmul::Output;
use super::panels::{PANEL, Panels};
pub(crate) use super::quantized::QuantizedRows;
use crate::error::{Error, Result};

/// Use of the rows of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowUse {
    /// They are also looked up, as those of an embedding that is tied to the output layer.
    LookedUp,
    MultipliedOnly,
}

/// Arithmetic of products with quantized weights on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// Rows are quantized to 8 bits for each product, and integers are multiplied.
    EightBit,
    /// Weights are dequantized to 32-bit numbers in each product.
    Exact,
}

impl Arithmetic {
    /// That of a model whose products are to be exact, or need not be.
    pub(crate) fn of(exact: bool) -> Self {
        if exact { Self::Exact } else { Self::EightBit }
    }
}

/// Linear layer whose weight is packed for the processor, or a tensor on an accelerator.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    weight: Weight,
    bias: Option<Tensor>,
    in_dim: usize,
    out_dim: usize,
}

#[derive(Debug)]
enum Weight {
    Panels(Panels),
    /// Quantized rows, the outputs of one part after those of the other.
    Quantized(Vec<Part>),
    /// `(out, in)`, on an accelerator.
    Tensor(Tensor),
    /// Quantized rows on an accelerator, the outputs of one part after those of the other.
    QuantizedTensors(Vec<QMatMul>),
}

/// Rows of a quantized weight.
#[derive(Debug)]
enum Part {
    Exact(QuantizedRows),
    EightBit(IntegerRows),
}

impl Part {
    fn new(rows: QuantizedRows, in_dim: usize, arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::EightBit => IntegerRows::new(rows, in_dim).map_or_else(Self::Exact, Self::EightBit),
            Arithmetic::Exact => Self::Exact(rows),
        }
    }

    fn out_dim(&self) -> usize {
        match self {
            Self::Exact(rows) => rows.out_dim,
            Self::EightBit(rows) => rows.out_dim,
        }
    }

    /// Dequantizes one row.
    fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Exact(rows) => rows.row(row, out),
            Self::EightBit(rows) => rows.row(row, out),
        }
    }

    /// Computes `input · weightᵀ`.
    fn multiply(&self, input: &[f32], eight_bit: &EightBitRows, in_dim: usize) -> Product {
        match self {
            Self::Exact(rows) => {
                Product { values: rows.multiply(input, in_dim), panel: 1, out_dim: rows.out_dim }
            }
            Self::EightBit(rows) => {
                Product { values: rows.multiply(eight_bit), panel: integer::PANEL, out_dim: rows.out_dim }
            }
        }
    }
}

/// Product with a weight, `(panel, row, output of the panel)`. The last panel may have outputs that are none of the weight's.
struct Product {
    values: Vec<f32>,
    /// Outputs of a panel.
    panel: usize,
    out_dim: usize,
}

impl Product {
    /// Writes one of `count` rows, added to what is there or in its place.
    fn write(&self, row: usize, count: usize, kind: Output, out: &mut [f32]) {
        let panels = self.values.chunks_exact(count * self.panel);
        for (out, panel) in out.chunks_mut(self.panel).zip(panels) {
            let values = panel[row * self.panel..].iter().zip(out);
            match kind {
                Output::Replace => values.for_each(|(value, out)| *out = *value),
                Output::Add => values.for_each(|(value, out)| *out += *value),
            }
        }
    }
}

impl PackedLinear {
    /// Builds the layer from the numbers of a weight as files have it, `(out, in)`, and a bias, `(out)`.
    pub(crate) fn new(
        weight: Vec<f32>,
        in_dim: usize,
        bias: Option<Tensor>,
        device: &Device,
    ) -> Result<Self> {
        if in_dim == 0 || !weight.len().is_multiple_of(in_dim) {
            return Err(Error::compute("a weight of no width"));
        }
        let out_dim = weight.len() / in_dim;
        let weight = match device {
            Device::Cpu => Weight::Panels(Panels::pack(weight, in_dim)),
            device => Weight::Tensor(Tensor::from_vec(weight, (out_dim, in_dim), device)?),
        };
        Ok(Self { weight, bias, in_dim, out_dim })
    }

    /// Builds the layer from the numbers of a few rows, `(out, in)`, which stay as they are: in a panel most columns would
    /// be padding.
    pub(crate) fn of_few_rows(weight: &[f32], in_dim: usize, device: &Device) -> Result<Self> {
        if !device.is_cpu() || in_dim == 0 || !weight.len().is_multiple_of(in_dim) {
            return Self::new(weight.to_vec(), in_dim, None, device);
        }
        let out_dim = weight.len() / in_dim;
        let bytes = weight.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = Part::Exact(QuantizedRows { dtype: GgmlType::F32, bytes, out_dim });
        Ok(Self { weight: Weight::Quantized(vec![rows]), bias: None, in_dim, out_dim })
    }

    /// The same weight with this bias, `(out)`.
    pub(crate) fn with_bias(self, bias: Tensor) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Builds the layer from quantized parts, the outputs of one after those of the other. They stay
    /// quantized, except on an accelerator where rows of the weight are looked up.
    pub(crate) fn quantized(
        parts: Vec<QuantizedRows>,
        in_dim: usize,
        bias: Option<Tensor>,
        device: &Device,
        use_of_rows: RowUse,
        arithmetic: Arithmetic,
    ) -> Result<Self> {
        let out_dim = parts.iter().map(|part| part.out_dim).sum();
        let plain = parts.iter().all(|part| part.dtype == GgmlType::F32);
        if plain || !device.is_cpu() && use_of_rows == RowUse::LookedUp {
            let mut weight = vec![0.0; out_dim * in_dim];
            let mut rest = weight.as_mut_slice();
            for part in parts {
                let (values, others) = rest.split_at_mut(part.out_dim * in_dim);
                part.dtype.decode(&part.bytes, values);
                rest = others;
            }
            return Self::new(weight, in_dim, bias, device);
        }
        let weight = match device {
            Device::Cpu => {
                Weight::Quantized(parts.into_iter().map(|part| Part::new(part, in_dim, arithmetic)).collect())
            }
            device => Weight::QuantizedTensors(
                parts.into_iter().map(|part| on_accelerator(part, in_dim, device)).collect::<Result<_>>()?,
            ),
        };
        Ok(Self { weight, bias, in_dim, out_dim })
    }

    /// Computes `activation(input · weightᵀ + bias)`: `(rows, in)` to `(rows, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.weight {
            Weight::Panels(panels) => {
                let count = self.check(input)?;
                let values = with_values(input, |input| panels.multiply(input, count))?;
                let product = Product { values, panel: PANEL, out_dim: self.out_dim };
                self.assemble(vec![product], count, activation)
            }
            Weight::Quantized(parts) => {
                let count = self.check(input)?;
                let products = with_values(input, |input| {
                    let is_rounded = parts.iter().any(|part| matches!(part, Part::EightBit(_)));
                    let rounded = EightBitRows::quantize(if is_rounded { input } else { &[] }, self.in_dim);
                    parts.iter().map(|part| part.multiply(input, &rounded, self.in_dim)).collect()
                })?;
                self.assemble(products, count, activation)
            }
            Weight::Tensor(weight) => self.finish(input.matmul(&weight.t()?)?, activation),
            Weight::QuantizedTensors(parts) => {
                let parts = parts.iter().map(|part| part.forward(input));
                let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
                self.finish(Tensor::cat(&parts, 1)?, activation)
            }
        }
    }

    fn finish(&self, product: Tensor, activation: Activation) -> Result<Tensor> {
        let sum = match &self.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        };
        Ok(activation.on_tensor(sum)?)
    }

    /// Checks the width of the input. Gives its number of rows.
    fn check(&self, input: &Tensor) -> Result<usize> {
        match input.dims2()? {
            (count, in_dim) if in_dim == self.in_dim => Ok(count),
            _ => Err(Error::compute("rows of another width than the weight")),
        }
    }

    /// Looks up rows of the weight, as an embedding does. Gives `(rows, in)`.
    pub(crate) fn lookup(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.out_dim) {
            let reason = format!("the token {row} is none of the model's {}", self.out_dim);
            return Err(Error::InvalidInput(reason));
        }
        match &self.weight {
            Weight::Panels(panels) => {
                let mut out: Vec<f32> = Vec::with_capacity(rows.len() * self.in_dim);
                rows.iter().for_each(|row| out.extend(panels.row(*row as usize)));
                Ok(Tensor::from_vec(out, (rows.len(), self.in_dim), &Device::Cpu)?)
            }
            Weight::Quantized(parts) => {
                let mut out = vec![0.0; rows.len() * self.in_dim];
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(self.in_dim)) {
                    let mut row = *row as usize;
                    for part in parts {
                        if row < part.out_dim() {
                            part.row(row, out);
                            break;
                        }
                        row -= part.out_dim();
                    }
                }
                Ok(Tensor::from_vec(out, (rows.len(), self.in_dim), &Device::Cpu)?)
            }
            Weight::Tensor(weight) => Ok(weight.index_select(&Tensor::new(rows, weight.device())?, 0)?),
            Weight::QuantizedTensors(_) => Err(Error::compute("a lookup in blocks on an accelerator")),
        }
    }

    /// Puts the products of all parts together to rows, with the bias and the activation.
    fn assemble(&self, mut products: Vec<Product>, count: usize, activation: Activation) -> Result<Tensor> {
        let mut out = match (&self.bias, count, products.as_mut_slice()) {
            // The one row of a product of one part is the output as it is.
            (None, 1, [product]) => {
                let mut row = std::mem::take(&mut product.values);
                row.truncate(self.out_dim);
                products.clear();
                row
            }
            (None, ..) => vec![0.0; count * self.out_dim],
            (Some(bias), ..) => with_values(bias, |bias| bias.repeat(count))?,
        };
        let kind = if self.bias.is_some() { Output::Add } else { Output::Replace };
        let threads = threads_for(out.len());
        split_rows_at(&mut out, self.out_dim, threads, |first, rows| {
            for (row, out) in (first..).zip(rows.chunks_exact_mut(self.out_dim.max(1))) {
                let mut rest = out;
                for product in &products {
                    let (own, others) = rest.split_at_mut(product.out_dim);
                    product.write(row, count, kind, own);
                    rest = others;
                }
            }
            activation.on_values(rows);
        });
        Ok(Tensor::from_vec(out, (count, self.out_dim), &Device::Cpu)?)
    }
}

fn on_accelerator(part: QuantizedRows, in_dim: usize, device: &Device) -> Result<QMatMul> {
    let Some(kind) = part.dtype.candle() else {
        let mut weight = vec![0.0; part.out_dim * in_dim];
        part.dtype.decode(&part.bytes, &mut weight);
        return Ok(QMatMul::Tensor(Tensor::from_vec(weight, (part.out_dim, in_dim), device)?));
    };
    let storage = QStorage::from_data(Cow::Owned(part.bytes), device, kind)?;
    Ok(QMatMul::from_qtensor(QTensor::new(storage, (part.out_dim, in_dim))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    fn layer(out_dim: usize, in_dim: usize) -> (PackedLinear, Tensor, Tensor) {
        let weight = random(0.0, 0.2, (out_dim, in_dim));
        let bias = random(0.0, 1.0, out_dim);
        let values = weight.flatten_all().unwrap().to_vec1().unwrap();
        (PackedLinear::new(values, in_dim, Some(bias.clone()), &Device::Cpu).unwrap(), weight, bias)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn products_are_candles_for_every_number_of_rows() {
        for (out_dim, in_dim) in [(32, 16), (45, 33), (7, 96), (200, 1)] {
            let (layer, weight, bias) = layer(out_dim, in_dim);
            for count in [1, 2, 3, 7, 8, 9, 16, 21] {
                let input = random(0.0, 1.0, (count, in_dim));
                let ours = layer.forward(&input, Activation::Relu).unwrap();
                let theirs = input.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
                let theirs = theirs.relu().unwrap();
                let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{out_dim} {in_dim} {count}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_to_the_last_bit_alone_and_among_others_whatever_the_threads() {
        let (layer, ..) = layer(100, 70);
        let input = random(0.0, 1.0, (13, 70));
        let together = layer.forward(&input, Activation::Identity).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for row in 0..13 {
            let one = input.narrow(0, row, 1).unwrap();
            let alone = pool.install(|| layer.forward(&one, Activation::Identity)).unwrap();
            assert_eq!(values(&alone), values(&together.narrow(0, row, 1).unwrap()));
        }
    }

    #[test]
    fn a_few_rows_are_multiplied_as_any_others_and_each_input_as_it_is_alone() {
        let weight = random(0.0, 0.2, (6, 70));
        let layer = PackedLinear::of_few_rows(&values(&weight), 70, &Device::Cpu).unwrap();
        let input = random(0.0, 1.0, (9, 70));
        let ours = layer.forward(&input, Activation::Identity).unwrap();
        let difference = (&ours - input.matmul(&weight.t().unwrap()).unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        for row in 0..9 {
            let alone = layer.forward(&input.narrow(0, row, 1).unwrap(), Activation::Identity).unwrap();
            assert_eq!(values(&alone), values(&ours.narrow(0, row, 1).unwrap()));
        }
        assert!(PackedLinear::of_few_rows(&[1.0; 5], 2, &Device::Cpu).is_err());
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
