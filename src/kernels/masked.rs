//! Attention in which a token sees itself and what comes before it in its own text, without padding and without a
//! cache: what CLIP's text tower needs. Generation, with its caches, is left to the decoder's own kernels.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::{Matrix, Output, Padding, multiply, rows, threads, with_values};
use crate::error::{Error, Result};

/// `mixed` is `(tokens, 3 · width)`, each row a token's query, key and value; the texts lie one after another with
/// these `lengths`. Gives `(tokens, width)`.
pub(crate) fn causal_attention(mixed: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
    let (tokens, triple) = mixed.dims2()?;
    let width = triple / 3;
    if lengths.iter().sum::<usize>() != tokens || heads == 0 || triple % 3 != 0 || width % heads != 0 {
        let reason = "causal attention: lengths and heads do not fit the tokens";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    if !mixed.device().is_cpu() {
        return on_any(mixed, lengths, heads, width);
    }
    let mut out = vec![0.0; tokens * width];
    with_values(mixed, |mixed| {
        let mut texts = Vec::with_capacity(lengths.len());
        let (mut mixed, mut rest) = (mixed, out.as_mut_slice());
        for &length in lengths {
            let (out, others) = rest.split_at_mut(length * width);
            let (text, others_mixed) = mixed.split_at(length * 3 * width);
            texts.push((text, out, length));
            (mixed, rest) = (others_mixed, others);
        }
        match threads() {
            1 => texts.into_iter().for_each(|(text, out, length)| attend(text, out, length, heads)),
            _ => texts.into_par_iter().for_each(|(text, out, length)| attend(text, out, length, heads)),
        }
    })?;
    Ok(Tensor::from_vec(out, (tokens, width), &Device::Cpu)?)
}

/// One text, head by head. All scores are computed, because a product of half a square is no faster; the half that
/// nobody may see is then exactly 0.
fn attend(mixed: &[f32], out: &mut [f32], length: usize, heads: usize) {
    if length == 0 {
        return;
    }
    let width = out.len() / length;
    let size = width / heads;
    let scale = 1.0 / (size as f32).sqrt();
    let mut scores = vec![0.0; length * length];
    for head in 0..heads {
        let part = |which: usize| {
            let values = &mixed[which * width + head * size..];
            Matrix::rows(values, length, size, 3 * width)
        };
        multiply((&mut scores, length), Output::Replace, part(0), part(1).transposed(), scale, 1);
        for (place, row) in scores.chunks_exact_mut(length).enumerate() {
            let (seen, hidden) = row.split_at_mut(place + 1);
            rows::softmax(seen, place + 1);
            hidden.fill(0.0);
        }
        let weights = Matrix::rows(&scores, length, length, length);
        multiply((&mut out[head * size..], width), Output::Replace, weights, part(2), 1.0, 1);
    }
}

/// The same on any device: padded to the longest text, and the padding dropped again. The padding lies behind every
/// real token, so the causal mask alone hides it.
fn on_any(mixed: &Tensor, lengths: &[usize], heads: usize, width: usize) -> Result<Tensor> {
    let device = mixed.device();
    let layout = Padding::of(lengths);
    let (texts, longest, size) = (lengths.len(), layout.longest, width / heads);
    let padded = mixed.index_select(&Tensor::new(layout.source, device)?, 0)?;
    let padded = padded.reshape((texts, longest, 3, heads, size))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
    let (query, key, value) = (padded.get(0)?, padded.get(1)?, padded.get(2)?);
    let hidden = |index: usize| if index % longest > index / longest { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..longest * longest).map(hidden).collect();
    let mask = Tensor::from_vec(mask, (1, 1, longest, longest), device)?;
    let scores = (query.matmul(&key.t()?)? * (1.0 / (size as f64).sqrt()))?.broadcast_add(&mask)?;
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
    let rows = mixed.transpose(1, 2)?.contiguous()?.reshape((texts * longest, width))?;
    Ok(rows.index_select(&Tensor::new(layout.tokens, device)?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_and_nothing_depends_on_what_comes_later() {
        let lengths = [3, 1, 7, 4];
        let mixed = Tensor::randn(0.0f32, 1.0, (15, 96), &Device::Cpu).unwrap();
        let ours = causal_attention(&mixed, &lengths, 4).unwrap();
        let theirs = on_any(&mixed, &lengths, 4, 32).unwrap();
        let difference = (&ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);

        let first = causal_attention(&mixed.narrow(0, 0, 2).unwrap(), &[2], 4).unwrap();
        let cut = ours.narrow(0, 0, 2).unwrap();
        let difference = (first - cut).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        assert!(causal_attention(&mixed, &[3], 4).is_err());
        assert!(causal_attention(&mixed, &lengths, 0).is_err());
    }
}
