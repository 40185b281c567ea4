//! Patches of an image, so that a convolution whose stride is its kernel becomes a matrix product, as patch
//! embeddings are.

use candle_core::Tensor;

use super::cpu::with_values;
use crate::error::{Error, Result};

/// Cuts an image `(channels, height, width)` into patches. Gives `(patches, channels · patch · patch)`, the
/// patches row by row from the top, each with its channels one after another, as a convolution's weight has
/// them. Pixels at the right and at the bottom that fill no patch are dropped, as by a convolution.
pub(crate) fn patchify(image: &Tensor, patch: usize) -> Result<Tensor> {
    let (channels, height, width) = image.dims3()?;
    if patch == 0 || height < patch || width < patch {
        let reason = format!("an image of {width}x{height} has no patches of {patch}x{patch}");
        return Err(Error::compute(reason));
    }
    let (down, across) = (height / patch, width / patch);
    if !image.device().is_cpu() {
        return on_any(image, patch);
    }
    let mut rows = Vec::with_capacity(down * across * channels * patch * patch);
    with_values(image, |values| {
        for (top, left) in (0..down).flat_map(|top| (0..across).map(move |left| (top, left))) {
            for (channel, line) in
                (0..channels).flat_map(|channel| (0..patch).map(move |line| (channel, line)))
            {
                let begin = (channel * height + top * patch + line) * width + left * patch;
                rows.extend_from_slice(&values[begin..begin + patch]);
            }
        }
    })?;
    Ok(Tensor::from_vec(rows, (down * across, channels * patch * patch), image.device())?)
}

/// Computes the same with candle's operations.
fn on_any(image: &Tensor, patch: usize) -> Result<Tensor> {
    let (channels, height, width) = image.dims3()?;
    let (down, across) = (height / patch, width / patch);
    let image = image.narrow(1, 0, down * patch)?.narrow(2, 0, across * patch)?.contiguous()?;
    let image = image.reshape((channels, down, patch, across, patch))?;
    let image = image.permute((1, 3, 0, 2, 4))?.contiguous()?;
    Ok(image.reshape((down * across, channels * patch * patch))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::random;

    #[test]
    fn a_product_of_patches_is_the_convolution() {
        let image = random(0.0, 1.0, (3, 9, 13));
        let weight = random(0.0, 1.0, (5, 3, 4, 4));
        let theirs = image.unsqueeze(0).unwrap().conv2d(&weight, 0, 4, 1, 1).unwrap();
        let theirs = theirs.flatten_from(2).unwrap().get(0).unwrap().t().unwrap();
        let rows = patchify(&image, 4).unwrap();
        let same = on_any(&image, 4).unwrap();
        assert_eq!(rows.to_vec2::<f32>().unwrap(), same.to_vec2::<f32>().unwrap());
        let ours = rows.matmul(&weight.reshape((5, 48)).unwrap().t().unwrap()).unwrap();
        let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-4);
        assert!(patchify(&image, 0).is_err());
        assert!(patchify(&image, 10).is_err());
    }
}
