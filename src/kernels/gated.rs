//! Two small steps of decoder layers: the root-mean-square norm, and the product of an activated gate with what it
//! lets through. On the processor they are loops over rows on the calling thread; on an accelerator candle's
//! operations.

use candle_core::{D, Device, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::rows::sum_of;
use super::{Activation, with_values};
use crate::error::Result;

/// A norm by the root of the mean square (Zhang and Sennrich, 2019): weight `(width)`.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// `(rows, width)` to `(rows, width)`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if !input.device().is_cpu() {
            let scale = ((input.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?.recip())?;
            return Ok(input.broadcast_mul(&scale)?.broadcast_mul(&self.weight)?);
        }
        let mut out = with_values(input, <[f32]>::to_vec)?;
        self.on_values(&mut out)?;
        Ok(Tensor::from_vec(out, input.shape(), &Device::Cpu)?)
    }

    /// Rows that lie one after another, in place.
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

/// `activation(gate) · up`, where each row of `mixed` is the gate and then as many numbers of up:
/// `(rows, 2 · width)` to `(rows, width)`.
pub(crate) fn gated(mixed: &Tensor, activation: Activation) -> Result<Tensor> {
    let (count, double) = mixed.dims2()?;
    let width = double / 2;
    if !mixed.device().is_cpu() {
        let gate = activation.on_tensor(mixed.narrow(1, 0, width)?.contiguous()?)?;
        return Ok((gate * mixed.narrow(1, width, width)?)?);
    }
    let mut out = Vec::with_capacity(count * width);
    with_values(mixed, |mixed| {
        for row in mixed.chunks_exact(double.max(1)) {
            let (gate, up) = row.split_at(width);
            let begin = out.len();
            out.extend_from_slice(gate);
            activation.on_values(&mut out[begin..]);
            for (x, up) in out[begin..].iter_mut().zip(up) {
                *x *= *up;
            }
        }
    })?;
    Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn both_are_what_candle_makes_of_them() {
        let input = random(0.0, 2.0, (5, 38));
        let weight = random(1.0, 0.3, 38);
        let difference = |left: Tensor, right: Tensor| {
            (left - right).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let norm = RmsNorm { weight: weight.clone(), epsilon: 1e-5 };
        let theirs = candle_nn::ops::rms_norm(&input, &weight, 1e-5).unwrap();
        assert!(difference(norm.forward(&input).unwrap(), theirs) < 1e-5);
        let ours = gated(&input, Activation::Silu).unwrap();
        let (gate, up) = (input.narrow(1, 0, 19).unwrap(), input.narrow(1, 19, 19).unwrap());
        assert!(difference(ours, (gate.silu().unwrap() * up).unwrap()) < 1e-5);
    }
}
