//! Group norm (Wu and He, 2018, arXiv 1803.08494) over images whose channels are last, `(batch, height,
//! width, channels)`, with the activation that follows it. Sums are taken over pieces of a fixed size, so the
//! result does not depend on the number of threads.

use candle_core::{Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::activation::Activation;
use super::cpu::{threads, with_values};
use crate::error::{Error, Result};

/// Pixels whose sums are kept in 32 bits.
const PIECE: usize = 512;

/// Group norm: weight and bias `(channels)`.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// # Errors
    /// [`Error::Compute`] unless the groups, of which there is at least one, have the same number of channels.
    pub(crate) fn new(weight: Tensor, bias: Tensor, groups: usize, epsilon: f64) -> Result<Self> {
        if groups == 0 || !weight.dim(0)?.is_multiple_of(groups) || weight.dim(0)? == 0 {
            return Err(mismatch());
        }
        Ok(Self { weight, bias, groups, epsilon })
    }

    /// Computes `activation(norm(input))`, of the same shape.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        if input.device().is_cpu() { self.on_cpu(input, activation) } else { self.on_any(input, activation) }
    }

    fn on_any(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let (batch, height, width, channels) = input.dims4()?;
        let grouped = input.reshape((batch, height * width, self.groups, channels / self.groups))?;
        let mean = grouped.mean_keepdim((1, 3))?;
        let centred = grouped.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim((1, 3))?;
        let normal = centred.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?;
        let normal = normal.reshape((batch, height, width, channels))?;
        let scaled = normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?;
        Ok(activation.on_tensor(scaled)?)
    }

    fn on_cpu(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        let (batch, height, width, channels) = input.dims4()?;
        if channels != self.weight.dim(0)? {
            return Err(mismatch());
        }
        let mut out = with_values(input, <[f32]>::to_vec)?;
        with_values(&self.weight, |weight| {
            with_values(&self.bias, |bias| {
                for image in out.chunks_exact_mut((height * width * channels).max(1)) {
                    self.normalize(image, weight, bias, activation);
                }
            })
        })??;
        Ok(Tensor::from_vec(out, (batch, height, width, channels), &Device::Cpu)?)
    }

    fn normalize(&self, image: &mut [f32], weight: &[f32], bias: &[f32], activation: Activation) {
        let channels = weight.len();
        let count = (image.len() / self.groups) as f64;
        let zeros = vec![0.0; channels];
        let means: Vec<f64> =
            self.by_group(&sums(image, &zeros, Sum::Plain)).map(|sum| sum / count).collect();
        let size = channels / self.groups;
        let centres: Vec<f32> = (0..channels).map(|channel| means[channel / size] as f32).collect();
        let squares = sums(image, &centres, Sum::Squares);
        let scales: Vec<f64> =
            self.by_group(&squares).map(|sum| 1.0 / (sum / count + self.epsilon).sqrt()).collect();
        let scale: Vec<f32> = (0..channels)
            .map(|channel| (scales[channel / size] * f64::from(weight[channel])) as f32)
            .collect();
        let finish = |piece: &mut [f32]| {
            Arch::new().dispatch(Apply { rows: piece, centres: &centres, scale: &scale, bias });
            activation.on_values(piece);
        };
        match threads() {
            1 => image.chunks_mut(PIECE * channels).for_each(finish),
            _ => image.par_chunks_mut(PIECE * channels).for_each(finish),
        }
    }

    fn by_group<'a>(&self, sums: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        sums.chunks_exact(sums.len() / self.groups).map(|group| group.iter().sum())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Plain,
    Squares,
}

/// Sums each channel's values, or their squares, after `centres` are subtracted.
fn sums(image: &[f32], centres: &[f32], kind: Sum) -> Vec<f64> {
    let channels = centres.len();
    let of_piece = |piece: &[f32]| Arch::new().dispatch(Add { rows: piece, centres, kind });
    let pieces: Vec<Vec<f32>> = match threads() {
        1 => image.chunks(PIECE * channels).map(of_piece).collect(),
        _ => image.par_chunks(PIECE * channels).map(of_piece).collect(),
    };
    let mut totals = vec![0.0; channels];
    for piece in pieces {
        for (total, sum) in totals.iter_mut().zip(piece) {
            *total += f64::from(sum);
        }
    }
    totals
}

struct Add<'a> {
    rows: &'a [f32],
    centres: &'a [f32],
    kind: Sum,
}

impl WithSimd for Add<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let mut sums = vec![0.0f32; self.centres.len()];
        for row in self.rows.chunks_exact(self.centres.len()) {
            for ((sum, x), centre) in sums.iter_mut().zip(row).zip(self.centres) {
                let x = *x - *centre;
                *sum += if self.kind == Sum::Squares { x * x } else { x };
            }
        }
        sums
    }
}

struct Apply<'a> {
    rows: &'a mut [f32],
    centres: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows.chunks_exact_mut(self.centres.len()) {
            for (((x, centre), scale), bias) in
                row.iter_mut().zip(self.centres).zip(self.scale).zip(self.bias)
            {
                *x = (*x - *centre) * *scale + *bias;
            }
        }
    }
}

fn mismatch() -> Error {
    Error::compute("channels do not fit their group norm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_operations_whatever_the_threads() {
        let image = random(3.0, 2.0, (2, 37, 29, 12));
        let weight = random(1.0, 0.5, 12);
        let bias = random(0.0, 1.0, 12);
        let norm = GroupNorm::new(weight.clone(), bias.clone(), 4, 1e-5).unwrap();
        let theirs = norm.on_any(&image, Activation::Silu).unwrap();
        let check = || {
            let ours = norm.forward(&image, Activation::Silu).unwrap();
            let difference = (ours - &theirs).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
        assert!(GroupNorm::new(weight.clone(), bias.clone(), 5, 1e-5).is_err());
        assert!(GroupNorm::new(weight, bias, 0, 1e-5).is_err());
    }
}
