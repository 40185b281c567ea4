//! Gated linear unit of feed-forward layers (Shazeer, 2020, arXiv 2002.05202): SwiGLU, GeGLU and the like. On
//! the processor a loop over rows on the calling thread; on an accelerator candle's operations.

use candle_core::{Device, Tensor};

use super::activation::Activation;
use super::cpu::with_values;
use crate::error::Result;

/// Gated linear unit, `activation(gate) · up`: each row of `gate_up`, `(rows, 2 · width)`, is the gate and
/// then as many numbers of up. Gives `(rows, width)`.
pub(crate) fn glu(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let (count, double) = gate_up.dims2()?;
    let width = double / 2;
    if !gate_up.device().is_cpu() {
        let gate = activation.on_tensor(gate_up.narrow(1, 0, width)?.contiguous()?)?;
        return Ok((gate * gate_up.narrow(1, width, width)?)?);
    }
    let mut out = Vec::with_capacity(count * width);
    with_values(gate_up, |gate_up| {
        for row in gate_up.chunks_exact(double.max(1)) {
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
    fn it_agrees_with_candles_operations() {
        let input = random(0.0, 2.0, (5, 38));
        let ours = glu(&input, Activation::Silu).unwrap();
        let (gate, up) = (input.narrow(1, 0, 19).unwrap(), input.narrow(1, 19, 19).unwrap());
        let difference = (ours - (gate.silu().unwrap() * up).unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    }
}
