//! Rotary position embedding (Su et al., 2021, arXiv 2104.09864) of interleaved pairs, neighbouring numbers,
//! as FLUX has it. The angles are left to the model; pairs that lie half a head apart are in `rotary`.

use candle_core::{D, Device, Tensor};

use super::cpu::{split_rows_at, threads, with_values};
use crate::error::{Error, Result};

/// Rotates each head of `(rows, heads · size)`; a row has the cosines and sines of its pairs in the `(rows,
/// size / 2)` of `cosines` and `sines`.
pub(crate) fn rotate_interleaved(input: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let (count, width) = input.dims2()?;
    let (rows, pairs) = cosines.dims2()?;
    if rows != count || pairs == 0 || !width.is_multiple_of(2 * pairs) || sines.dims() != cosines.dims() {
        let reason = "rotary embedding: cosines and sines do not fit the heads";
        return Err(Error::compute(reason));
    }
    if !input.device().is_cpu() {
        return on_any(input, cosines, sines);
    }
    let mut out = with_values(input, <[f32]>::to_vec)?;
    with_values(cosines, |cosines| {
        with_values(sines, |sines| {
            split_rows_at(&mut out, width, threads(), |first, rows| {
                for (row, values) in rows.chunks_exact_mut(width).enumerate() {
                    let at = (first + row) * pairs;
                    rotate_row(values, &cosines[at..at + pairs], &sines[at..at + pairs]);
                }
            });
        })
    })??;
    Ok(Tensor::from_vec(out, (count, width), &Device::Cpu)?)
}

fn rotate_row(row: &mut [f32], cosines: &[f32], sines: &[f32]) {
    for head in row.chunks_exact_mut(2 * cosines.len()) {
        for (pair, (cosine, sine)) in head.as_chunks_mut().0.iter_mut().zip(cosines.iter().zip(sines)) {
            let [x, y] = *pair;
            *pair = [x * cosine - y * sine, y * cosine + x * sine];
        }
    }
}

fn on_any(input: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let (count, width) = input.dims2()?;
    let pairs = cosines.dim(1)?;
    let heads = input.reshape((count, width / (2 * pairs), pairs, 2))?;
    let (x, y) = (heads.narrow(3, 0, 1)?.squeeze(3)?, heads.narrow(3, 1, 1)?.squeeze(3)?);
    let (cosines, sines) = (cosines.unsqueeze(1)?, sines.unsqueeze(1)?);
    let left = (x.broadcast_mul(&cosines)? - y.broadcast_mul(&sines)?)?;
    let right = (y.broadcast_mul(&cosines)? + x.broadcast_mul(&sines)?)?;
    Ok(Tensor::stack(&[left, right], D::Minus1)?.reshape((count, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn both_ways_agree_and_keep_lengths() {
        let input = random(0.0, 1.0, (5, 24));
        let angles = random(0.0, 2.0, (5, 4));
        let (cosines, sines) = (angles.cos().unwrap(), angles.sin().unwrap());
        let ours = rotate_interleaved(&input, &cosines, &sines).unwrap();
        let theirs = on_any(&input, &cosines, &sines).unwrap();
        let largest = |tensor: Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest((&ours - theirs).unwrap()) < 1e-6);
        let squares = |tensor: &Tensor| tensor.sqr().unwrap().sum(1).unwrap();
        assert!(largest((squares(&ours) - squares(&input)).unwrap()) < 1e-4);
        assert!(largest((&ours - &input).unwrap()) > 0.1);
        assert!(rotate_interleaved(&input, &cosines.narrow(0, 0, 4).unwrap(), &sines).is_err());
    }
}
