//! Attention between two sequences of one batch: queries of one, keys and values of the other or the same. On the
//! processor some queries are looked at at a time, head by head where they lie, so that the scores of a large image
//! are never in memory together.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::matmul::{Matrix, Output, multiply};
use super::{rows, threads, with_values};
use crate::error::{Error, Result};

/// Queries at a time.
const QUERIES: usize = 128;

/// `softmax(scale · query · keyᵀ) · value` for each head: `(batch, rows, heads · size)` of the query, `(batch, others,
/// heads · size)` of key and value, to the query's shape.
pub(crate) fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
) -> Result<Tensor> {
    attend_to(query, key, value, heads, scale, None)
}

/// The same with a number added to each score, `(heads, rows, others)`.
pub(crate) fn attend_with_bias(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    bias: &Tensor,
) -> Result<Tensor> {
    if bias.dims() != [heads, query.dim(1)?, key.dim(1)?] {
        let reason = "the bias does not fit the queries and keys";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    attend_to(query, key, value, heads, scale, Some(bias))
}

fn attend_to(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, _, width) = query.dims3()?;
    let others = key.dim(1)?;
    let fits = heads > 0 && width > 0 && width.is_multiple_of(heads.max(1)) && others > 0;
    if !fits || key.dims() != [batch, others, width] || value.dims() != key.dims() {
        let reason = "queries, keys and values do not fit together";
        return Err(Error::Compute(candle_core::Error::msg(reason)));
    }
    if !query.device().is_cpu() {
        return on_any(query, key, value, heads, scale, bias);
    }
    if let Some(bias) = bias {
        return with_values(bias, |bias| on_cpu(query, key, value, heads, scale, Some(bias)))?;
    }
    on_cpu(query, key, value, heads, scale, None)
}

fn on_cpu(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&[f32]>,
) -> Result<Tensor> {
    let (batch, count, width) = query.dims3()?;
    let others = key.dim(1)?;
    let mut out = vec![0.0; batch * count * width];
    let shape = Shape { count, others, heads, width, scale: scale as f32 };
    with_values(query, |query| {
        with_values(key, |key| {
            with_values(value, |value| {
                for (index, out) in out.chunks_exact_mut((count * width).max(1)).enumerate() {
                    let query = &query[index * count * width..][..count * width];
                    let others = index * others * width..(index + 1) * others * width;
                    let (key, value) = (&key[others.clone()], &value[others]);
                    let run = |(piece, out): (usize, &mut [f32])| {
                        let first = piece * QUERIES;
                        shape.attend(
                            &query[first * width..],
                            key,
                            value,
                            bias.map(|bias| (bias, first)),
                            out,
                        );
                    };
                    match threads() {
                        1 => out.chunks_mut(QUERIES * width).enumerate().for_each(run),
                        _ => out.par_chunks_mut(QUERIES * width).enumerate().for_each(run),
                    }
                }
            })
        })
    })???;
    Ok(Tensor::from_vec(out, (batch, count, width), &Device::Cpu)?)
}

#[derive(Clone, Copy)]
struct Shape {
    count: usize,
    others: usize,
    heads: usize,
    width: usize,
    scale: f32,
}

impl Shape {
    /// As many queries as there is room in `out`; a bias comes with the number of the first of them.
    fn attend(
        self,
        query: &[f32],
        key: &[f32],
        value: &[f32],
        bias: Option<(&[f32], usize)>,
        out: &mut [f32],
    ) {
        let Self { others, heads, width, scale, .. } = self;
        let (size, count) = (width / heads, (out.len() / width).min(self.count));
        let mut scores = vec![0.0; count * others];
        for head in 0..heads {
            let first = head * size;
            let queries = Matrix::rows(&query[first..], count, size, width);
            let keys = Matrix::rows(&key[first..], others, size, width);
            let mut kind = Output::Replace;
            if let Some((bias, row)) = bias {
                scores.copy_from_slice(&bias[(head * self.count + row) * others..][..count * others]);
                kind = Output::Add;
            }
            multiply((&mut scores, others), kind, queries, keys.transposed(), scale, 1);
            rows::softmax(&mut scores, others);
            let weights = Matrix::rows(&scores, count, others, others);
            let values = Matrix::rows(&value[first..], others, size, width);
            multiply((&mut out[first..], width), Output::Replace, weights, values, 1.0, 1);
        }
    }
}

fn on_any(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, count, width) = query.dims3()?;
    let split = |tensor: &Tensor| -> candle_core::Result<Tensor> {
        let rows = tensor.dim(1)?;
        tensor.reshape((batch, rows, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let mut scores = (split(query)?.matmul(&split(key)?.t()?)? * scale)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&split(value)?)?;
    Ok(mixed.transpose(1, 2)?.contiguous()?.reshape((batch, count, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_candles_operations_whatever_the_threads() {
        let device = Device::Cpu;
        let random = |rows| Tensor::randn(0.0f32, 1.0, (2, rows, 24), &device).unwrap();
        for (count, others) in [(1, 5), (300, 300), (130, 7)] {
            let (query, key, value) = (random(count), random(others), random(others));
            let bias = Tensor::randn(0.0f32, 1.0, (3, count, others), &device).unwrap();
            let theirs = on_any(&query, &key, &value, 3, 0.4, None).unwrap();
            let their_biased = on_any(&query, &key, &value, 3, 0.4, Some(&bias)).unwrap();
            let check = || {
                let ours = attend(&query, &key, &value, 3, 0.4).unwrap();
                let biased = attend_with_bias(&query, &key, &value, 3, 0.4, &bias).unwrap();
                for (ours, theirs) in [(ours, &theirs), (biased, &their_biased)] {
                    let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
                }
            };
            check();
            rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let zeros =
            |rows, width| Tensor::zeros((1, rows, width), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(attend(&zeros(3, 8), &zeros(2, 8), &zeros(2, 8), 3, 1.0).is_err());
        assert!(attend(&zeros(3, 8), &zeros(2, 4), &zeros(2, 4), 2, 1.0).is_err());
        assert!(attend(&zeros(3, 8), &zeros(0, 8), &zeros(0, 8), 2, 1.0).is_err());
        assert!(attend(&zeros(3, 8), &zeros(2, 8), &zeros(2, 8), 0, 1.0).is_err());
    }
}
