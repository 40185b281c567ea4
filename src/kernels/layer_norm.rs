//! Layer norm (Ba et al., 2016, arXiv 1607.06450), alone or of a residual sum in one pass. On the processor a
//! loop over rows, spread over the caller's threads; on an accelerator candle's operations.

use candle_core::{Device, Tensor};

use super::cpu::{split_rows, split_rows_at, threads, with_values};
use super::rows;
use crate::error::{Error, Result};

/// Layer norm over the last dimension: weight and bias `(width)`.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl LayerNorm {
    /// Normalizes each row of `input`, which ends with the width. Gives the input's shape.
    pub(crate) fn of(&self, input: &Tensor) -> Result<Tensor> {
        if !input.device().is_cpu() {
            return Ok(candle_nn::ops::layer_norm(input, &self.weight, &self.bias, self.epsilon as f32)?);
        }
        let mut out = with_values(input, <[f32]>::to_vec)?;
        self.with_parameters(|norm| {
            split_rows(&mut out, norm.weight.len(), threads(), |rows| rows::norm(rows, norm));
        })?;
        Ok(Tensor::from_vec(out, input.shape(), &Device::Cpu)?)
    }

    /// Normalizes `left + right`, a residual connection: both of one shape that ends with the width.
    pub(crate) fn of_sum(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        if !left.device().is_cpu() {
            let sum = (left + right)?;
            return Ok(candle_nn::ops::layer_norm(&sum, &self.weight, &self.bias, self.epsilon as f32)?);
        }
        if left.dims() != right.dims() {
            return Err(Error::compute("layer norm: the two inputs differ in shape"));
        }
        let mut out = with_values(left, <[f32]>::to_vec)?;
        with_values(right, |right| {
            self.with_parameters(|norm| {
                let width = norm.weight.len();
                split_rows_at(&mut out, width, threads(), |first, rows| {
                    let others = &right[first * width..][..rows.len()];
                    rows::add_norm(rows, others, norm);
                });
            })
        })??;
        Ok(Tensor::from_vec(out, left.shape(), &Device::Cpu)?)
    }

    fn with_parameters(&self, work: impl FnOnce(rows::Norm<'_>)) -> Result<()> {
        with_values(&self.weight, |weight| {
            with_values(&self.bias, |bias| {
                work(rows::Norm { weight, bias, epsilon: self.epsilon as f32 });
            })
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_whatever_the_shape_and_the_threads() {
        let (weight, bias) = (random(1.0, 0.3, 24), random(0.0, 1.0, 24));
        let norm = LayerNorm { weight: weight.clone(), bias: bias.clone(), epsilon: 1e-5 };
        let (left, right) = (random(0.0, 1.0, (2, 7, 24)), random(0.5, 2.0, (2, 7, 24)));
        let candles = |input: &Tensor| candle_nn::ops::layer_norm(input, &weight, &bias, 1e-5).unwrap();
        let (of, of_sum) = (candles(&left), candles(&(&left + &right).unwrap()));
        let check = || {
            let ours = [norm.of(&left).unwrap(), norm.of_sum(&left, &right).unwrap()];
            for (ours, theirs) in ours.iter().zip([&of, &of_sum]) {
                let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
            }
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
    }
}
