//! Scaled dot-product attention between two sequences of each batch row: queries of one, keys and values of
//! the other, or of the same. The computation on the processor is left to `flash`.

use candle_core::{D, Device, Tensor};

use super::cpu::with_values;
use super::flash::{AttentionMask, FlashAttention, Rows, Sequence};
use crate::error::{Error, Result};

/// Scaled dot-product attention, `softmax(scale · query · keyᵀ + bias) · value` for each head. Query `(batch,
/// rows, heads · size)`, key and value `(batch, others, heads · size)`, the optional bias `(heads, rows,
/// others)`; the result has the query's shape.
pub(crate) fn scaled_dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, count, width) = query.dims3()?;
    let others = key.dim(1)?;
    let fits = heads > 0 && width > 0 && width.is_multiple_of(heads.max(1)) && others > 0;
    if !fits || key.dims() != [batch, others, width] || value.dims() != key.dims() {
        return Err(misfit("queries, keys and values do not fit together"));
    }
    if bias.is_some_and(|bias| bias.dims() != [heads, count, others]) {
        return Err(misfit("the bias does not fit the queries and keys"));
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
    let attention =
        FlashAttention { heads, size: width / heads, scale: scale as f32, mask: AttentionMask::Full };
    with_values(query, |query| {
        with_values(key, |key| {
            with_values(value, |value| {
                let rows = |values, index, count| {
                    let values: &[f32] = values;
                    Rows { values: &values[index * count * width..], count, stride: width }
                };
                let sequences = (0..batch).map(|index| Sequence {
                    queries: rows(query, index, count),
                    keys: rows(key, index, others),
                    values: rows(value, index, others),
                });
                let sequences: Vec<Sequence<'_>> = sequences.collect();
                attention.forward(&sequences, &mut out, |_, head, query, key, scores| {
                    if let Some(bias) = bias {
                        let bias = &bias[(head * count + query) * others + key..];
                        scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
                    }
                });
            })
        })
    })???;
    Ok(Tensor::from_vec(out, (batch, count, width), &Device::Cpu)?)
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
    let out = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&split(value)?)?;
    Ok(out.transpose(1, 2)?.contiguous()?.reshape((batch, count, width))?)
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("attention: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn it_agrees_with_candles_operations_whatever_the_threads() {
        let rows_of = |rows| random(0.0, 1.0, (2, rows, 24));
        for (count, others) in [(1, 5), (300, 600), (130, 7)] {
            let (query, key, value) = (rows_of(count), rows_of(others), rows_of(others));
            let bias = random(0.0, 1.0, (3, count, others));
            let theirs = on_any(&query, &key, &value, 3, 0.4, None).unwrap();
            let their_biased = on_any(&query, &key, &value, 3, 0.4, Some(&bias)).unwrap();
            let attention = |bias| scaled_dot_product_attention(&query, &key, &value, 3, 0.4, bias).unwrap();
            let check = || {
                let ours = attention(None);
                let biased = attention(Some(&bias));
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
        let attention = |(others, width), heads| {
            let key = zeros(others, width);
            scaled_dot_product_attention(&zeros(3, 8), &key, &key, heads, 1.0, None)
        };
        assert!(attention((2, 8), 2).is_ok());
        for (key, heads) in [((2, 8), 3), ((2, 4), 2), ((0, 8), 2), ((2, 8), 0)] {
            assert!(attention(key, heads).is_err());
        }
        let bias = Tensor::zeros((2, 3, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let key = zeros(2, 8);
        assert!(scaled_dot_product_attention(&zeros(3, 8), &key, &key, 2, 1.0, Some(&bias)).is_err());
    }
}
