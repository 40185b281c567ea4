//! Root-mean-square norm (Zhang and Sennrich, 2019, arXiv 1910.07467). On the processor a loop over rows,
//! spread over the caller's threads; on an accelerator candle's operations.

use candle_core::{D, Device, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::cpu::{split_rows, threads, with_values};
use super::rows::sum_of;
use crate::error::Result;

/// Root-mean-square norm with a weight of shape `(width)`.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// Normalizes each run of `width` numbers: a row of `(rows, width)`, or each head of a row where the
    /// weight has a head's size. Gives the input's shape.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if !input.device().is_cpu() {
            let rows = input.reshape(((), self.weight.dim(0)?))?;
            let scale = ((rows.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?.recip())?;
            return Ok(rows.broadcast_mul(&scale)?.broadcast_mul(&self.weight)?.reshape(input.shape())?);
        }
        let mut out = with_values(input, <[f32]>::to_vec)?;
        with_values(&self.weight, |weight| {
            let norm = |rows: &mut [f32]| rms_norm(rows, weight, self.epsilon as f32);
            split_rows(&mut out, weight.len(), threads(), norm);
        })?;
        Ok(Tensor::from_vec(out, input.shape(), &Device::Cpu)?)
    }

    /// Normalizes rows that lie one after another, in place and on the calling thread.
    pub(super) fn on_values(&self, values: &mut [f32]) -> Result<()> {
        with_values(&self.weight, |weight| rms_norm(values, weight, self.epsilon as f32))
    }
}

fn rms_norm(rows: &mut [f32], weight: &[f32], epsilon: f32) {
    struct Work<'a>(&'a mut [f32], &'a [f32], f32);
    impl WithSimd for Work<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(rows, weight, epsilon) = self;
            for row in rows.chunks_exact_mut(weight.len().max(1)) {
                let mean = sum_of(row, |x| x * x) / weight.len() as f32;
                let scale = 1.0 / (mean + epsilon).sqrt();
                for (x, weight) in row.iter_mut().zip(weight) {
                    *x = *x * scale * *weight;
                }
            }
        }
    }
    Arch::new().dispatch(Work(rows, weight, epsilon));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_whatever_the_threads() {
        let input = random(0.0, 2.0, (5, 38));
        let weight = random(1.0, 0.3, 19);
        let norm = RmsNorm { weight: weight.clone(), epsilon: 1e-5 };
        let theirs = candle_nn::ops::rms_norm(&input.reshape((10, 19)).unwrap(), &weight, 1e-5).unwrap();
        let theirs = theirs.reshape((5, 38)).unwrap();
        let check = || {
            let difference = (norm.forward(&input).unwrap() - &theirs).unwrap().abs().unwrap();
            assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
    }
}
