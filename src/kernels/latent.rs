//! Attention of rows to a fixed set of keys and values that all rows share: what a text's tokens ask a model's latent
//! vectors. No row sees another, so that where one text ends and the next begins plays no part.

use candle_core::{D, Device, Tensor};

use super::{Matrix, Output, multiply, rows, with_values};
use crate::error::{Error, Result};

/// Rows of scores that are in memory at a time.
const BLOCK: usize = 256;

/// `query` is `(rows, heads · size)`, `keys` and `values` `(latents, heads · size)`. Gives `(rows, heads · size)`.
pub(crate) fn latent_attention(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
) -> Result<Tensor> {
    let ((count, width), (latents, key_width)) = (query.dims2()?, keys.dims2()?);
    let fits = heads > 0 && width.is_multiple_of(heads) && width == key_width && latents > 0;
    if !fits || values.dims2()? != (latents, width) {
        let reason = "latent attention: the heads do not fit the rows";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    if !query.device().is_cpu() {
        return on_any(query, keys, values, heads);
    }
    let size = width / heads;
    let scale = 1.0 / (size as f32).sqrt();
    let mut out = vec![0.0; count * width];
    with_values(query, |query| {
        with_values(keys, |keys| {
            with_values(values, |values| {
                let mut scores = vec![0.0; count.min(BLOCK) * latents];
                for (query, out) in query.chunks(BLOCK * width).zip(out.chunks_mut(BLOCK * width)) {
                    let count = query.len() / width;
                    let scores = &mut scores[..count * latents];
                    for head in 0..heads {
                        let at = head * size;
                        let asked = Matrix::rows(&query[at..], count, size, width);
                        let key = Matrix::rows(&keys[at..], latents, size, width).transposed();
                        multiply((scores, latents), Output::Replace, asked, key, scale, 1);
                        rows::softmax(scores, latents);
                        let weights = Matrix::rows(scores, count, latents, latents);
                        let value = Matrix::rows(&values[at..], latents, size, width);
                        multiply((&mut out[at..], width), Output::Replace, weights, value, 1.0, 1);
                    }
                }
            })
        })
    })???;
    Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
}

fn on_any(query: &Tensor, keys: &Tensor, values: &Tensor, heads: usize) -> Result<Tensor> {
    let (count, width) = query.dims2()?;
    let size = width / heads;
    let split = |rows: &Tensor| -> Result<Tensor> {
        Ok(rows.reshape((rows.dim(0)?, heads, size))?.transpose(0, 1)?.contiguous()?)
    };
    let scores = (split(query)?.matmul(&split(keys)?.t()?)? * (1.0 / (size as f64).sqrt()))?;
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&split(values)?)?;
    Ok(mixed.transpose(0, 1)?.contiguous()?.reshape((count, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree() {
        let random = |rows| Tensor::randn(0.0f32, 1.0, (rows, 24), &Device::Cpu).unwrap();
        let (query, keys, values) = (random(300), random(7), random(7));
        let ours = latent_attention(&query, &keys, &values, 3).unwrap();
        let theirs = on_any(&query, &keys, &values, 3).unwrap();
        let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
        assert!(latent_attention(&query, &keys, &values, 5).is_err());
        assert!(latent_attention(&query, &keys, &random(8), 3).is_err());
    }
}
