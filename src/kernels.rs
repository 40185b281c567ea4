//! The few operations that transformer encoders spend their time in, on tensors: a linear layer with its activation,
//! a sum with its layer norm, and attention over texts of unlike length that lie one after another without padding.
//! On the processor they are fused loops that use the caller's thread alone, or the rayon pool that it runs in; on
//! an accelerator they are candle's own operations. What they are put together to is left to the families.

mod cross_attention;
pub(crate) mod ggml;
pub(crate) mod causal;
mod convolution;
mod flash;
pub(crate) mod glu;
mod group_norm;
mod matmul;
pub(crate) mod self_attention;
pub(crate) mod packed;
mod interleaved_rotary;
mod panels;
mod patchify;
mod quantized;
#[cfg(test)]
mod random;
pub(crate) mod rotary;
pub(crate) mod rms_norm;
mod rows;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
pub(crate) use convolution::Convolution;
pub(crate) use cross_attention::scaled_dot_product_attention;
pub(crate) use flash::{AttentionMask, SCORES_PER_THREAD};
pub(crate) use group_norm::GroupNorm;
pub(crate) use interleaved_rotary::rotate_interleaved;
use matmul::{Matrix, Output, multiply};
pub(crate) use patchify::patchify;
#[cfg(test)]
pub(crate) use random::random;

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    GeluErf,
    GeluTanh,
    /// `x · sigmoid(1.702 x)`, as OpenAI's CLIP has it.
    QuickGelu,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// The names that configurations use.
    pub(crate) const NAMES: &'static str =
        "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, silu, swish, tanh";

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "quick_gelu" => Some(Self::QuickGelu),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    fn on_values(self, values: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::GeluErf => rows::gelu_erf(values),
            Self::GeluTanh => rows::gelu_tanh(values),
            Self::QuickGelu => rows::quick_gelu(values),
            Self::Relu => rows::relu(values),
            Self::Silu => rows::silu(values),
            Self::Tanh => rows::tanh(values),
        }
    }

    fn on_tensor(self, tensor: Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Identity => Ok(tensor),
            Self::GeluErf => tensor.gelu_erf(),
            Self::GeluTanh => tensor.gelu(),
            Self::QuickGelu => &tensor * candle_nn::ops::sigmoid(&(&tensor * 1.702)?)?,
            Self::Relu => tensor.relu(),
            Self::Silu => tensor.silu(),
            Self::Tanh => tensor.tanh(),
        }
    }
}

/// A linear layer. Its weight is kept as `(in, out)`, which saves gemm from rearranging it at each product.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From the weight as files have it, `(out, in)`, and the bias, `(out)`.
    pub(crate) fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: weight.t()?.contiguous()?, bias })
    }

    /// `activation(input · weightᵀ + bias)`: `(rows, in)` to `(rows, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        // A vendor library behind candle's own product beats gemm, so with one of them that path is taken.
        let vendor = cfg!(any(feature = "mkl", feature = "accelerate"));
        if input.device().is_cpu() && !vendor {
            self.on_cpu(input, activation)
        } else {
            self.on_any(input, activation)
        }
    }

    fn on_any(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = input.matmul(&self.weight)?;
        let sum = match &self.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        };
        Ok(activation.on_tensor(sum)?)
    }

    fn on_cpu(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let (count, inside) = input.dims2()?;
        let (_, outside) = self.weight.dims2()?;
        let (mut out, kind) = match &self.bias {
            Some(bias) => (with_values(bias, |bias| bias.repeat(count))?, Output::Add),
            None => (vec![0.0; count * outside], Output::Replace),
        };
        let threads = threads();
        with_values(input, |input| {
            with_values(&self.weight, |weight| {
                let left = Matrix::rows(input, count, inside, inside);
                let right = Matrix::rows(weight, inside, outside, outside);
                multiply((&mut out, outside), kind, left, right, 1.0, threads);
            })
        })??;
        split_rows(&mut out, outside, threads, |rows| activation.on_values(rows));
        Ok(Tensor::from_vec(out, (count, outside), &Device::Cpu)?)
    }
}

/// A layer norm: weight and bias `(width)`.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl LayerNorm {
    /// The norm of `left + right`, both `(rows, width)`.
    pub(crate) fn of_sum(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        if !left.device().is_cpu() {
            let sum = (left + right)?;
            return Ok(candle_nn::ops::layer_norm(&sum, &self.weight, &self.bias, self.epsilon as f32)?);
        }
        let (count, width) = left.dims2()?;
        let mut out = with_values(left, <[f32]>::to_vec)?;
        with_values(right, |right| {
            with_values(&self.weight, |weight| {
                with_values(&self.bias, |bias| {
                    let norm = rows::Norm { weight, bias, epsilon: self.epsilon as f32 };
                    let per_thread = count.div_ceil(threads()).max(1) * width;
                    let pieces = out.par_chunks_mut(per_thread).zip(right.par_chunks(per_thread));
                    match threads() {
                        1 => rows::add_norm(&mut out, right, norm),
                        _ => pieces.for_each(|(rows, others)| rows::add_norm(rows, others, norm)),
                    }
                })
            })
        })???;
        Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
    }
}

impl LayerNorm {
    /// The norm of each row of `input`, `(rows, width)`.
    pub(crate) fn of(&self, input: &Tensor) -> Result<Tensor> {
        if !input.device().is_cpu() {
            return Ok(candle_nn::ops::layer_norm(input, &self.weight, &self.bias, self.epsilon as f32)?);
        }
        let (count, width) = input.dims2()?;
        let mut out = with_values(input, <[f32]>::to_vec)?;
        with_values(&self.weight, |weight| {
            with_values(&self.bias, |bias| {
                let norm = rows::Norm { weight, bias, epsilon: self.epsilon as f32 };
                split_rows(&mut out, width, threads(), |rows| rows::norm(rows, norm));
            })
        })??;
        Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
    }
}

/// Where tokens go when texts are padded to one length.
struct Padding {
    longest: usize,
    /// For each padded place the token that fills it; any will do where the mask hides it.
    source: Vec<u32>,
    /// For each padded place 0, or minus infinity for padding.
    mask: Vec<f32>,
    /// For each token its padded place.
    tokens: Vec<u32>,
}

impl Padding {
    fn of(lengths: &[usize]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padding = Self { longest, source: Vec::new(), mask: Vec::new(), tokens: Vec::new() };
        let mut first = 0;
        for (text, &length) in lengths.iter().enumerate() {
            for place in 0..longest {
                let real = place < length;
                padding.source.push((first + if real { place } else { 0 }) as u32);
                padding.mask.push(if real { 0.0 } else { f32::NEG_INFINITY });
                if real {
                    padding.tokens.push((text * longest + place) as u32);
                }
            }
            first += length;
        }
        padding
    }
}

/// Threads that work may be spread over: the rayon pool's that it runs in, or the caller's alone.
fn threads() -> usize {
    if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 }
}

fn split_rows(values: &mut [f32], width: usize, threads: usize, work: impl Fn(&mut [f32]) + Sync + Send) {
    if threads == 1 {
        return work(values);
    }
    let per_thread = (values.len() / width.max(1)).div_ceil(threads).max(1) * width;
    values.par_chunks_mut(per_thread).for_each(work);
}

/// As [`split_rows`], for work that wants to know the number of its first row.
fn split_rows_at(
    values: &mut [f32],
    width: usize,
    threads: usize,
    work: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if threads == 1 {
        return work(0, values);
    }
    let rows = (values.len() / width.max(1)).div_ceil(threads).max(1);
    let pieces = values.par_chunks_mut((rows * width).max(1)).enumerate();
    pieces.for_each(|(piece, values)| work(piece * rows, values));
}

/// Lends a tensor's numbers; it lies in host memory in one piece.
pub(crate) fn with_values<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(work(&values[start..end])),
        _ => Err(Error::compute("a kernel was given a tensor that it cannot read in place")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(left: &Tensor, right: &Tensor) -> f32 {
        let difference = (left - right).unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar().unwrap()
    }

    #[test]
    fn both_ways_of_each_operation_agree_whatever_the_threads() {
        let mixed = random(0.0, 1.0, (15, 96));
        let weight = random(0.0, 0.2, (40, 96));
        let bias = random(0.0, 1.0, 40);
        let layer = Linear::new(&weight, Some(bias)).unwrap();
        let product = layer.on_any(&mixed, Activation::GeluErf).unwrap();
        let check = || {
            assert!(difference(&layer.forward(&mixed, Activation::GeluErf).unwrap(), &product) < 1e-5);
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
    }
}
