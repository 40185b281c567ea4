//! Gated linear unit of feed-forward layers (Shazeer, 2020, arXiv 2002.05202): SwiGLU, GeGLU and the like. On
//! the processor a loop over rows on the caller's threads; on an accelerator candle's operations.

use candle_core::{Device, Tensor};

use super::activation::Activation;
use super::cpu::{split_rows_at, threads_for, with_values};
use super::rows::sum_of;
use crate::error::Result;

/// Form of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum GluForm {
    /// `activation(gate) · up`.
    Plain,
    /// `activation(gate) · (up + 1)`, of a gate that is at most the limit, and an up that is as near to 0 (GPT-OSS).
    Clamped { limit: f32 },
    /// `activation(gate) · up`, of a gate less its row's mean and so many standard deviations, and at least 0 (Gemma 3n).
    Sparse { deviations: f32 },
}

/// Takes the mean and so many standard deviations off a row. What is below 0 then is 0.
fn cut(row: &mut [f32], deviations: f32) {
    let count = row.len().max(1) as f32;
    let mean = sum_of(row, |x| x) / count;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / count;
    let least = mean + deviations * variance.sqrt();
    row.iter_mut().for_each(|x| *x = (*x - least).max(0.0));
}

/// Gated linear unit: each row of `gate_up`, `(rows, 2 · width)`, is the gate and
/// then as many numbers of up. Gives `(rows, width)`.
pub(crate) fn glu(gate_up: &Tensor, activation: Activation, form: GluForm) -> Result<Tensor> {
    let (count, double) = gate_up.dims2()?;
    let width = double / 2;
    if !gate_up.device().is_cpu() {
        let (gate, up) = (gate_up.narrow(1, 0, width)?.contiguous()?, gate_up.narrow(1, width, width)?);
        let (gate, up) = match form {
            GluForm::Plain => (gate, up),
            GluForm::Clamped { limit } => (gate.minimum(limit)?, (up.clamp(-limit, limit)? + 1.0)?),
            GluForm::Sparse { deviations } => {
                let mean = gate.mean_keepdim(1)?;
                let variance = gate.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
                let least = (mean + (variance.sqrt()? * f64::from(deviations))?)?;
                (gate.broadcast_sub(&least)?.relu()?, up)
            }
        };
        return Ok((activation.on_tensor(gate)? * up)?);
    }
    let mut out = vec![0.0; count * width];
    let threads = threads_for(out.len());
    with_values(gate_up, |gate_up| {
        split_rows_at(&mut out, width, threads, |first, rows| {
            let inputs = gate_up[first * double..].chunks_exact(double.max(1));
            for (out, input) in rows.chunks_exact_mut(width.max(1)).zip(inputs) {
                let (gate, up) = input.split_at(width);
                match form {
                    GluForm::Plain => out.copy_from_slice(gate),
                    GluForm::Clamped { limit } => {
                        out.iter_mut().zip(gate).for_each(|(out, x)| *out = x.min(limit));
                    }
                    GluForm::Sparse { deviations } => {
                        out.copy_from_slice(gate);
                        cut(out, deviations);
                    }
                }
                activation.on_values(out);
                for (x, up) in out.iter_mut().zip(up) {
                    *x *= match form {
                        GluForm::Plain | GluForm::Sparse { .. } => *up,
                        GluForm::Clamped { limit } => up.max(-limit).min(limit) + 1.0,
                    };
                }
            }
        });
    })?;
    Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_operations() {
        let input = random(0.0, 2.0, (5, 38));
        let ours = glu(&input, Activation::Silu, GluForm::Plain).unwrap();
        let (gate, up) = (input.narrow(1, 0, 19).unwrap(), input.narrow(1, 19, 19).unwrap());
        let difference = (ours - (gate.silu().unwrap() * &up).unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        let ours = glu(&input, Activation::GeluTanh, GluForm::Sparse { deviations: 0.5 }).unwrap();
        let mean = gate.mean_keepdim(1).unwrap();
        let off = gate.broadcast_sub(&mean).unwrap();
        let deviation = off.sqr().unwrap().mean_keepdim(1).unwrap().sqrt().unwrap();
        let least = (deviation * 0.5).unwrap();
        let sparse = off.broadcast_sub(&least).unwrap().relu().unwrap().gelu().unwrap();
        let difference = (ours - (sparse * &up).unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        let ours = glu(&input, Activation::QuickGelu, GluForm::Clamped { limit: 1.0 }).unwrap();
        let gate = gate.contiguous().unwrap().minimum(1.0).unwrap();
        let up = (up.clamp(-1.0, 1.0).unwrap() + 1.0).unwrap();
        let theirs = (Activation::QuickGelu.on_tensor(gate).unwrap() * up).unwrap();
        let difference = (ours - theirs).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    }
}
