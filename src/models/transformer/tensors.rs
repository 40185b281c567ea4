//! The tensors of a model file as the loader sees them: vectors, norms and linear layers by their names.
//! Safetensors are here; GGUF files are in `decoder`, which alone reads them.

use candle_core::{Device, Tensor};

use super::config::{Bias, NormKind, Workload};
use super::norm::Norm;
use super::projection::Projection;
use crate::error::Result;
use crate::kernels::packed::{PackedLinear, RowUse};
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
    pub(crate) halves: Halves,
    /// Name of a vector of factors on the outputs.
    pub(crate) scale: Option<&'a str>,
}

/// Order of the two halves of a layer's outputs, of which one is a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halves {
    AsStored,
    Swapped,
}

impl<'a> Linears<'a> {
    pub(crate) fn new(parts: &'a [(&'a str, usize)], in_dim: usize, bias: Bias) -> Self {
        Self { parts, in_dim, bias, halves: Halves::AsStored, scale: None }
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
            // A parameter that is no layer of its own has a name without an ending.
            let parameter = !self.contains(&format!("{name}.weight")) && self.contains(name);
            let ending = if parameter { "" } else { ".weight" };
            self.append(&format!("{name}{ending}"), &[*out_dim, layers.in_dim], &mut weight)?;
            if layers.bias == Bias::Yes {
                self.append(&format!("{name}.bias"), &[*out_dim], &mut bias)?;
            }
        }
        let out_dim = layers.out_dim();
        if layers.halves == Halves::Swapped {
            weight.rotate_left(out_dim / 2 * layers.in_dim);
            let half = bias.len() / 2;
            bias.rotate_left(half);
        }
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
        PackedLinear::new(weight, layers.in_dim, bias, self.device())
    }

    fn projection(&self, layers: &Linears<'_>) -> Result<Projection> {
        match self.workload {
            Workload::GrowingSequences => self.packed(layers, RowUse::MultipliedOnly).map(Projection::Packed),
            Workload::WholeSequences => {
                let (weight, bias) = self.read(layers)?;
                let weight = self.reader.place(weight, &[layers.out_dim(), layers.in_dim])?;
                Ok(Projection::Gemm(Linear::new(&weight, bias)?))
            }
        }
    }
}
