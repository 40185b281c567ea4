//! Output gates of attention (Qiu et al., 2025, arXiv 2505.06708), as Qwen3-Next has them: the query projection gives for
//! each head its query and then its gate, whose sigmoid the head's output is multiplied by. On the processor loops over
//! rows on the caller's threads; on an accelerator candle's operations.

use candle_core::{Device, Tensor};

use super::cpu::{split_rows_at, threads_for, with_values};
use super::rows;
use crate::error::{Error, Result};

/// Takes the gates out of rows of `heads` queries with a gate each, and whatever comes after them: gives the rows without
/// gates, and the gates, `(rows, heads · size)`.
pub(crate) fn split_gates(rows: &Tensor, heads: usize, size: usize) -> Result<(Tensor, Tensor)> {
    let (count, width) = rows.dims2()?;
    let gates = heads * size;
    if width < 2 * gates {
        return Err(Error::compute("rows that have no gate for each query"));
    }
    if !rows.device().is_cpu() {
        let pairs = rows.narrow(1, 0, 2 * gates)?.contiguous()?.reshape((count, heads, 2 * size))?;
        let half = |first| pairs.narrow(2, first, size)?.contiguous()?.reshape((count, gates));
        let rest = rows.narrow(1, 2 * gates, width - 2 * gates)?.contiguous()?;
        return Ok((Tensor::cat(&[&half(0)?, &rest], 1)?, half(size)?));
    }
    let (mut plain, mut gate) =
        (Vec::with_capacity(count * (width - gates)), Vec::with_capacity(count * gates));
    with_values(rows, |rows| {
        for row in rows.chunks_exact(width) {
            let (pairs, rest) = row.split_at(2 * gates);
            for pair in pairs.chunks_exact(2 * size) {
                let (query, own) = pair.split_at(size);
                plain.extend_from_slice(query);
                gate.extend_from_slice(own);
            }
            plain.extend_from_slice(rest);
        }
    })?;
    let plain = Tensor::from_vec(plain, (count, width - gates), &Device::Cpu)?;
    Ok((plain, Tensor::from_vec(gate, (count, gates), &Device::Cpu)?))
}

/// `output · sigmoid(gate)`, of one shape.
pub(crate) fn gated(output: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if !output.device().is_cpu() {
        return Ok((output * candle_nn::ops::sigmoid(gate)?)?);
    }
    if output.shape() != gate.shape() {
        return Err(Error::compute("gates of another shape than the output"));
    }
    let mut out = with_values(gate, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    with_values(output, |output| {
        split_rows_at(&mut out, 1, threads, |first, out| {
            rows::sigmoid(out);
            out.iter_mut().zip(&output[first..]).for_each(|(out, x)| *out *= x);
        });
    })?;
    Ok(Tensor::from_vec(out, output.shape(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn each_head_has_its_query_and_then_its_gate() {
        let rows = Tensor::arange(0f32, 2.0 * 14.0, &Device::Cpu).unwrap().reshape((2, 14)).unwrap();
        let (plain, gates) = split_gates(&rows, 3, 2).unwrap();
        let second = |values: [f32; 8]| values.map(|value| value + 14.0);
        let first = [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0];
        assert_eq!(plain.to_vec2::<f32>().unwrap(), [first, second(first)]);
        let first = [2.0f32, 3.0, 6.0, 7.0, 10.0, 11.0];
        assert_eq!(gates.to_vec2::<f32>().unwrap(), [first, first.map(|value| value + 14.0)]);
        assert!(split_gates(&rows, 4, 2).is_err());
    }

    #[test]
    fn it_agrees_with_candles_operations() {
        let (output, gate) = (random(0.0, 2.0, (300, 131)), random(0.0, 3.0, (300, 131)));
        let theirs = (&output * candle_nn::ops::sigmoid(&gate).unwrap()).unwrap();
        let check = || {
            let difference = (gated(&output, &gate).unwrap() - &theirs).unwrap().abs().unwrap();
            assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
        assert!(gated(&output, &random(0.0, 1.0, (131, 300))).is_err());
    }
}
