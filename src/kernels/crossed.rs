//! Attention of a text over an image: every row of the one sees every row of the other.

use candle_core::{D, Device, Tensor};

use super::{Matrix, Output, multiply, rows, with_values};
use crate::error::{Error, Result};

/// `query` is `(rows, width)`. `mixed` is `(seen, 2 · width)`, each row a key and a value. Gives `(rows, width)`.
pub(crate) fn crossed_attention(query: &Tensor, mixed: &Tensor, heads: usize) -> Result<Tensor> {
    let ((count, width), (seen, double)) = (query.dims2()?, mixed.dims2()?);
    if double != 2 * width || heads == 0 || width % heads != 0 || seen == 0 {
        let reason = "crossed attention: heads and widths do not fit the rows";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    if !query.device().is_cpu() {
        return on_any(query, mixed, heads);
    }
    let mut out = vec![0.0; count * width];
    with_values(query, |query| {
        with_values(mixed, |mixed| attend(query, mixed, &mut out, (count, seen, width), heads))
    })??;
    Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
}

fn attend(
    query: &[f32],
    mixed: &[f32],
    out: &mut [f32],
    (count, seen, width): (usize, usize, usize),
    heads: usize,
) {
    let size = width / heads;
    let scale = 1.0 / (size as f32).sqrt();
    let mut scores = vec![0.0; count * seen];
    for head in 0..heads {
        let at = head * size;
        let part = |which: usize| Matrix::rows(&mixed[which * width + at..], seen, size, 2 * width);
        let questions = Matrix::rows(&query[at..], count, size, width);
        multiply((&mut scores, seen), Output::Replace, questions, part(0).transposed(), scale, 1);
        rows::softmax(&mut scores, seen);
        let weights = Matrix::rows(&scores, count, seen, seen);
        multiply((&mut out[at..], width), Output::Replace, weights, part(1), 1.0, 1);
    }
}

/// The same on any device.
fn on_any(query: &Tensor, mixed: &Tensor, heads: usize) -> Result<Tensor> {
    let ((count, width), seen) = (query.dims2()?, mixed.dim(0)?);
    let size = width / heads;
    let query = (query.reshape((count, heads, size))? * (1.0 / (size as f64).sqrt()))?;
    let parts = mixed.reshape((seen, 2, heads, size))?.permute((1, 2, 0, 3))?.contiguous()?;
    let query = query.transpose(0, 1)?.contiguous()?;
    let weights = candle_nn::ops::softmax(&query.matmul(&parts.get(0)?.t()?)?, D::Minus1)?;
    Ok(weights.matmul(&parts.get(1)?)?.transpose(0, 1)?.contiguous()?.reshape((count, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_and_sizes_that_do_not_fit_are_refused() {
        let query = Tensor::randn(0.0f32, 1.0, (3, 24), &Device::Cpu).unwrap();
        let mixed = Tensor::randn(0.0f32, 1.0, (7, 48), &Device::Cpu).unwrap();
        let ours = crossed_attention(&query, &mixed, 4).unwrap();
        let difference = (ours - on_any(&query, &mixed, 4).unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        assert!(crossed_attention(&query, &mixed, 5).is_err());
        assert!(crossed_attention(&query, &query, 4).is_err());
    }
}
