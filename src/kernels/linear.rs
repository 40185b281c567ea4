//! Linear layer with its bias and activation in one pass, for many rows at a time. On the processor it calls
//! gemm on the caller's threads; on an accelerator, or with a vendor's matrix library, candle's own product.

use candle_core::{Device, Tensor};

use super::activation::Activation;
use super::cpu::{split_rows, threads, with_values};
use super::matmul::{Matrix, Output, multiply};
use crate::error::{Error, Result};

/// Linear layer. Its weight is kept as `(in, out)`, which saves gemm from rearranging it at each product.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Builds the layer from a weight as files have it, `(out, in)`, and the bias, `(out)`.
    pub(crate) fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: weight.t()?.contiguous()?, bias })
    }

    /// Computes `activation(input · weightᵀ + bias)` over the last dimension: `(…, in)` to `(…, out)`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let (in_dim, out_dim) = self.weight.dims2()?;
        let mut shape = input.dims().to_vec();
        if shape.pop() != Some(in_dim) {
            return Err(Error::compute("linear layer: rows of another width than the weight"));
        }
        let rows = input.reshape((shape.iter().product::<usize>(), in_dim))?;
        // A vendor library behind candle's own product beats gemm, so with one of them that path is taken.
        let vendor = cfg!(any(feature = "mkl", feature = "accelerate"));
        let out = match input.device().is_cpu() && !vendor {
            true => self.on_cpu(&rows, activation)?,
            false => self.on_any(&rows, activation)?,
        };
        shape.push(out_dim);
        Ok(out.reshape(shape)?)
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
        let (count, in_dim) = input.dims2()?;
        let (_, out_dim) = self.weight.dims2()?;
        let (mut out, kind) = match &self.bias {
            Some(bias) => (with_values(bias, |bias| bias.repeat(count))?, Output::Add),
            None => (vec![0.0; count * out_dim], Output::Replace),
        };
        let threads = threads();
        with_values(input, |input| {
            with_values(&self.weight, |weight| {
                let left = Matrix::rows(input, count, in_dim, in_dim);
                let right = Matrix::rows(weight, in_dim, out_dim, out_dim);
                multiply((&mut out, out_dim), kind, left, right, 1.0, threads);
            })
        })??;
        split_rows(&mut out, out_dim, threads, |rows| activation.on_values(rows));
        Ok(Tensor::from_vec(out, (count, out_dim), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_operations_whatever_the_threads() {
        let input = random(0.0, 1.0, (15, 96));
        let weight = random(0.0, 0.2, (40, 96));
        let bias = random(0.0, 1.0, 40);
        let layer = Linear::new(&weight, Some(bias)).unwrap();
        let product = layer.on_any(&input, Activation::GeluErf).unwrap();
        let check = || {
            let difference = (layer.forward(&input, Activation::GeluErf).unwrap() - &product).unwrap();
            assert!(difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
    }
}
