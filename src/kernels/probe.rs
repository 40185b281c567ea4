//! Attention by one learned query over each sequence: how SigLIP makes one vector of an image's patches.

use candle_core::{Device, Tensor};

use super::{Matrix, Output, multiply, rows, with_values};
use crate::error::{Error, Result};

/// `query` is `(1, width)`, the same for all sequences. `mixed` is `(tokens, 2 · width)`, each row a token's key and
/// value; the sequences lie one after another with these `lengths`, none of which is 0. Gives `(sequences, width)`.
pub(crate) fn probe_attention(
    query: &Tensor,
    mixed: &Tensor,
    lengths: &[usize],
    heads: usize,
) -> Result<Tensor> {
    let ((one, width), (tokens, double)) = (query.dims2()?, mixed.dims2()?);
    let fits = one == 1 && double == 2 * width && heads > 0 && width % heads == 0;
    if !fits || lengths.iter().sum::<usize>() != tokens || lengths.contains(&0) {
        let reason = "probe attention: lengths and heads do not fit the tokens";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    if !mixed.device().is_cpu() {
        return on_any(query, mixed, lengths, heads);
    }
    let mut out = vec![0.0; lengths.len() * width];
    with_values(query, |query| {
        with_values(mixed, |mixed| {
            let mut first = 0;
            for (out, &length) in out.chunks_exact_mut(width).zip(lengths) {
                attend(query, &mixed[first * 2 * width..], out, length, heads);
                first += length;
            }
        })
    })??;
    Ok(Tensor::from_vec(out, (lengths.len(), width), &Device::Cpu)?)
}

fn attend(query: &[f32], mixed: &[f32], out: &mut [f32], length: usize, heads: usize) {
    let width = out.len();
    let size = width / heads;
    let scale = 1.0 / (size as f32).sqrt();
    let mut scores = vec![0.0; length];
    for head in 0..heads {
        let at = head * size;
        let part = |which: usize| Matrix::rows(&mixed[which * width + at..], length, size, 2 * width);
        let question = Matrix::rows(&query[at..], 1, size, width);
        multiply((&mut scores, length), Output::Replace, question, part(0).transposed(), scale, 1);
        rows::softmax(&mut scores, length);
        let weights = Matrix::rows(&scores, 1, length, length);
        multiply((&mut out[at..], width), Output::Replace, weights, part(1), 1.0, 1);
    }
}

/// The same on any device, sequence by sequence.
fn on_any(query: &Tensor, mixed: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
    let width = query.dim(1)?;
    let size = width / heads;
    let query = (query.reshape((heads, 1, size))? * (1.0 / (size as f64).sqrt()))?;
    let (mut vectors, mut first) = (Vec::with_capacity(lengths.len()), 0);
    for &length in lengths {
        let parts = mixed.narrow(0, first, length)?.reshape((length, 2, heads, size))?;
        let parts = parts.permute((1, 2, 0, 3))?.contiguous()?;
        let scores = query.matmul(&parts.get(0)?.t()?.contiguous()?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        vectors.push(weights.matmul(&parts.get(1)?)?.reshape((1, width))?);
        first += length;
    }
    Ok(Tensor::cat(&vectors, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree() {
        let query = Tensor::randn(0.0f32, 1.0, (1, 32), &Device::Cpu).unwrap();
        let mixed = Tensor::randn(0.0f32, 1.0, (12, 64), &Device::Cpu).unwrap();
        let ours = probe_attention(&query, &mixed, &[5, 1, 6], 4).unwrap();
        let theirs = on_any(&query, &mixed, &[5, 1, 6], 4).unwrap();
        let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
        assert!(probe_attention(&query, &mixed, &[12, 0], 4).is_err());
        assert!(probe_attention(&query, &mixed, &[12], 5).is_err());
    }
}
