//! Several residual streams of one width, of which a block works on one and corrects the others (alternating updates,
//! Baykal et al., 2023, arXiv 2301.13310), as Gemma 3n has them. Streams lie one after another, `(streams · rows, width)`.
//! On the processor loops over rows on the caller's threads; on an accelerator candle's operations.

use candle_core::{D, Device, Tensor};

use super::cpu::{split_rows_at, threads_for, with_values};
use super::rows::sum_of;
use crate::error::{Error, Result};

/// Least mean square that a row counts as having where it is divided by.
const LEAST: f32 = 1e-5;

/// Adds to each stream of a row all streams, each with a factor: `coefficients`, `(rows, streams · streams)`, has those of
/// the first stream first.
pub(crate) fn mix(streams: &Tensor, coefficients: &Tensor) -> Result<Tensor> {
    let (all, width) = streams.dims2()?;
    let (rows, square) = coefficients.dims2()?;
    let count = all.checked_div(rows).unwrap_or(0);
    if rows * count != all || square != count * count {
        return Err(misfit());
    }
    if !streams.device().is_cpu() {
        let each = streams.reshape((count, rows, width))?.transpose(0, 1)?.contiguous()?;
        let mixed = coefficients.reshape((rows, count, count))?.matmul(&each)?;
        return Ok((mixed + each)?.transpose(0, 1)?.contiguous()?.reshape((all, width))?);
    }
    let mut out = with_values(streams, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    with_values(streams, |streams| {
        with_values(coefficients, |coefficients| {
            split_rows_at(&mut out, width, threads, |first, outs| {
                for (place, out) in (first..).zip(outs.chunks_exact_mut(width)) {
                    let (stream, row) = (place / rows, place % rows);
                    let factors = &coefficients[row * square + stream * count..][..count];
                    for (seen, factor) in factors.iter().enumerate() {
                        let seen = &streams[(seen * rows + row) * width..][..width];
                        out.iter_mut().zip(seen).for_each(|(out, x)| *out += factor * x);
                    }
                }
            });
        })
    })??;
    Ok(Tensor::from_vec(out, (all, width), &Device::Cpu)?)
}

/// Adds to each stream the difference of `activated`, `(rows, width)`, to the stream `active`, with a factor for each row
/// and stream, `(rows, streams)`.
pub(crate) fn correct(
    streams: &Tensor,
    activated: &Tensor,
    factors: &Tensor,
    active: usize,
) -> Result<Tensor> {
    let (all, width) = streams.dims2()?;
    let (rows, count) = factors.dims2()?;
    if rows * count != all || activated.dims() != [rows, width] || active >= count {
        return Err(misfit());
    }
    if !streams.device().is_cpu() {
        let difference = (activated - streams.narrow(0, active * rows, rows)?)?;
        let factors = factors.t()?.contiguous()?.reshape((count, rows, 1))?;
        let added = difference.unsqueeze(0)?.broadcast_mul(&factors)?;
        return Ok((streams + added.reshape((all, width))?)?);
    }
    let mut out = with_values(streams, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    let factors = with_values(factors, <[f32]>::to_vec)?;
    with_values(streams, |streams| {
        with_values(activated, |activated| {
            split_rows_at(&mut out, width, threads, |first, outs| {
                for (place, out) in (first..).zip(outs.chunks_exact_mut(width)) {
                    let (stream, row) = (place / rows, place % rows);
                    let factor = factors[row * count + stream];
                    let old = &streams[(active * rows + row) * width..][..width];
                    let pairs = activated[row * width..][..width].iter().zip(old);
                    out.iter_mut().zip(pairs).for_each(|(out, (new, old))| *out += factor * (new - old));
                }
            });
        })
    })??;
    Ok(Tensor::from_vec(out, (all, width), &Device::Cpu)?)
}

/// Scales each row to the root mean square of the same row of `model`.
pub(crate) fn with_magnitude(rows: &Tensor, model: &Tensor) -> Result<Tensor> {
    let (_, width) = rows.dims2()?;
    if rows.shape() != model.shape() {
        return Err(misfit());
    }
    if !rows.device().is_cpu() {
        let squares = |rows: &Tensor| rows.sqr()?.mean_keepdim(D::Minus1);
        let factor = (squares(model)? / squares(rows)?.maximum(LEAST)?)?.sqrt()?;
        return Ok(rows.broadcast_mul(&factor)?);
    }
    let mut out = with_values(rows, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    with_values(model, |model| {
        split_rows_at(&mut out, width, threads, |first, rows| {
            for (row, model) in rows.chunks_exact_mut(width).zip(model[first * width..].chunks_exact(width)) {
                let squares = |row: &[f32]| sum_of(row, |x| x * x) / width as f32;
                let factor = (squares(model) / squares(row).max(LEAST)).sqrt();
                row.iter_mut().for_each(|x| *x *= factor);
            }
        });
    })?;
    Ok(Tensor::from_vec(out, rows.shape(), &Device::Cpu)?)
}

/// Multiplies tensors of one shape, or each row by the same numbers.
pub(crate) fn multiply(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    if !left.device().is_cpu() {
        return Ok(left.broadcast_mul(right)?);
    }
    let fits = left.shape() == right.shape() || right.dims() == [left.dim(D::Minus1)?];
    if !fits {
        return Err(misfit());
    }
    let mut out = with_values(left, <[f32]>::to_vec)?;
    let threads = threads_for(out.len());
    with_values(right, |right| {
        let width = right.len().max(1);
        split_rows_at(&mut out, 1, threads, |first, part| {
            let factors = right.iter().cycle().skip(first % width);
            part.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        });
    })?;
    Ok(Tensor::from_vec(out, left.shape(), &Device::Cpu)?)
}

fn misfit() -> Error {
    Error::compute("residual streams: sizes do not fit the rows")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    fn agree(ours: &Tensor, theirs: &Tensor) {
        let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
    }

    /// Three streams of 200 rows, so that several threads take part.
    #[test]
    fn they_are_candles_operations_whatever_the_threads() {
        let (streams, coefficients) = (random(0.0, 1.0, (600, 70)), random(0.0, 1.0, (200, 9)));
        let (activated, factors) = (random(0.0, 1.0, (200, 70)), random(1.0, 1.0, (200, 3)));
        let each: Vec<Tensor> = (0..3).map(|index| streams.narrow(0, index * 200, 200).unwrap()).collect();
        let column = |tensor: &Tensor, index| tensor.narrow(1, index, 1).unwrap();
        let mixed = |out: usize| {
            (0..3).fold(each[out].clone(), |sum, seen| {
                let factor = column(&coefficients, out * 3 + seen);
                (sum + each[seen].broadcast_mul(&factor).unwrap()).unwrap()
            })
        };
        let mixed = Tensor::cat(&[mixed(0), mixed(1), mixed(2)], 0).unwrap();
        let difference = (&activated - &each[1]).unwrap();
        let corrected =
            |out: usize| (&each[out] + difference.broadcast_mul(&column(&factors, out)).unwrap()).unwrap();
        let corrected = Tensor::cat(&[corrected(0), corrected(1), corrected(2)], 0).unwrap();
        let root = |rows: &Tensor| rows.sqr().unwrap().mean_keepdim(1).unwrap().sqrt().unwrap();
        let scaled = activated.broadcast_mul(&(root(&each[2]) / root(&activated)).unwrap()).unwrap();
        let vector = random(0.0, 1.0, 70);
        let check = || {
            agree(&mix(&streams, &coefficients).unwrap(), &mixed);
            agree(&correct(&streams, &activated, &factors, 1).unwrap(), &corrected);
            agree(&with_magnitude(&activated, &each[2].contiguous().unwrap()).unwrap(), &scaled);
            agree(&multiply(&streams, &vector).unwrap(), &streams.broadcast_mul(&vector).unwrap());
            agree(&multiply(&streams, &corrected).unwrap(), &(&streams * &corrected).unwrap());
        };
        check();
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(check);
        assert!(mix(&streams, &factors).is_err() && correct(&streams, &activated, &factors, 3).is_err());
        assert!(with_magnitude(&streams, &activated).is_err() && multiply(&vector, &streams).is_err());
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let zeros = Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let scaled = with_magnitude(&zeros, &random(0.0, 1.0, (2, 5))).unwrap();
        assert_eq!(scaled.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0; 10]);
    }
}
