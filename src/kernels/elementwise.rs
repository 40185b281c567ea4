//! Sums, factors and soft caps of whole tensors. On the processor they are loops on the caller's threads: candle's own
//! operations on 65,536 numbers and more go through one pool of the process, whose lock all workers share and a panic
//! poisons. On an accelerator they are candle's.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::cpu::{split_rows, threads_for, with_values};
use super::rows;
use crate::error::{Error, Result};

/// `left + right`, of one shape.
pub(crate) fn add(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    if !left.device().is_cpu() {
        return Ok((left + right)?);
    }
    if left.shape() != right.shape() {
        return Err(Error::compute("a sum of tensors of two shapes"));
    }
    let sum = with_values(left, |left| {
        with_values(right, |right| match threads_for(left.len()) {
            1 => left.iter().zip(right).map(|(x, y)| x + y).collect::<Vec<f32>>(),
            _ => left.par_iter().zip(right).with_min_len(left.len() / 64).map(|(x, y)| x + y).collect(),
        })
    })??;
    Ok(Tensor::from_vec(sum, left.shape(), &Device::Cpu)?)
}

/// Numbers, `(rows, columns)`, that belong to the rows and columns of a larger tensor from a place on.
pub(crate) struct Placed {
    pub(crate) values: Tensor,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// `whole`, `(rows, columns)`, with each of the parts added in its place.
pub(crate) fn add_parts(whole: &Tensor, parts: &[Placed]) -> Result<Tensor> {
    let (rows, columns) = whole.dims2()?;
    for Placed { values, row, column } in parts {
        let (high, wide) = values.dims2()?;
        if row.saturating_add(high) > rows || column.saturating_add(wide) > columns {
            return Err(Error::compute("a part of a sum that is not in the whole"));
        }
    }
    if !whole.device().is_cpu() {
        return parts.iter().try_fold(whole.clone(), |sum, Placed { values, row, column }| {
            let (high, wide) = values.dims2()?;
            let values = values.pad_with_zeros(0, *row, rows - row - high)?;
            Ok((sum + values.pad_with_zeros(1, *column, columns - column - wide)?)?)
        });
    }
    let mut sum = with_values(whole, <[f32]>::to_vec)?;
    for Placed { values, row, column } in parts {
        let wide = values.dim(1)?.max(1);
        with_values(values, |values| {
            let rows = sum.chunks_exact_mut(columns.max(1)).skip(*row);
            for (sum, values) in rows.zip(values.chunks_exact(wide)) {
                sum[*column..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        })?;
    }
    Ok(Tensor::from_vec(sum, (rows, columns), &Device::Cpu)?)
}

/// Each number times a factor.
pub(crate) fn scale(values: Tensor, factor: f32) -> Result<Tensor> {
    if !values.device().is_cpu() {
        return Ok((values * f64::from(factor))?);
    }
    each(&values, |part| part.iter_mut().for_each(|value| *value *= factor))
}

/// `cap · tanh(x / cap)` of each number.
pub(crate) fn soft_cap(values: Tensor, cap: f32) -> Result<Tensor> {
    if !values.device().is_cpu() {
        return Ok(((values / f64::from(cap))?.tanh()? * f64::from(cap))?);
    }
    each(&values, |part| {
        part.iter_mut().for_each(|value| *value /= cap);
        rows::tanh(part);
        part.iter_mut().for_each(|value| *value *= cap);
    })
}

/// Has the threads change parts of a tensor's numbers.
pub(super) fn each(values: &Tensor, work: impl Fn(&mut [f32]) + Sync + Send) -> Result<Tensor> {
    let mut out = with_values(values, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    split_rows(&mut out, 1, threads, work);
    Ok(Tensor::from_vec(out, values.shape(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn parts_are_added_in_their_places() {
        let whole = random(0.0, 1.0, (5, 7));
        let parts = [(2, 3, random(0.0, 1.0, (2, 4))), (3, 0, random(0.0, 1.0, (1, 7)))];
        let placed = parts.each_ref().map(|(row, column, values)| {
            let values = values.clone();
            Placed { values, row: *row, column: *column }
        });
        let mut expected = whole.to_vec2::<f32>().unwrap();
        for (row, column, values) in &parts {
            for (sum, values) in expected[*row..].iter_mut().zip(values.to_vec2::<f32>().unwrap()) {
                sum[*column..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        assert_eq!(add_parts(&whole, &placed).unwrap().to_vec2::<f32>().unwrap(), expected);
        let beyond = Placed { values: random(0.0, 1.0, (2, 4)), row: 4, column: 0 };
        assert!(add_parts(&whole, &[beyond]).is_err());
    }

    #[test]
    fn they_are_candles_operations_whatever_the_threads() {
        let (left, right) = (random(0.0, 3.0, (700, 150)), random(0.0, 3.0, (700, 150)));
        let check = || {
            for (ours, theirs) in [
                (add(&left, &right).unwrap(), (&left + &right).unwrap()),
                (scale(left.clone(), 0.3).unwrap(), (&left * f64::from(0.3f32)).unwrap()),
                (
                    soft_cap(left.clone(), 2.0).unwrap(),
                    ((&left / 2.0).unwrap().tanh().unwrap() * 2.0).unwrap(),
                ),
            ] {
                let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
            }
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
        assert!(add(&left, &random(0.0, 1.0, (150, 700))).is_err());
    }
}
