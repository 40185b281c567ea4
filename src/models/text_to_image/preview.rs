//! Previews of an image that is being denoised: the model's own decoder, or a tiny one where its repository has one for
//! them, over the estimate of the latents without noise, averaged down to few latents first. That suits every variant without factors of its own,
//! and costs little: decoding takes time in proportion to the pixels, so a preview of 512 x 512 pixels costs
//! a sixteenth of decoding them.

use candle_core::{Device, Tensor};
use model_actors::Picture;

use super::decode::to_picture;
use super::pipeline::{Pipeline, Watch};
use crate::error::Result;

/// Maximum number of pixels along the longer side of a preview, unless a single latent has more.
const SIDE: usize = 128;

/// Decodes latents `(1, channels, height, width)` at a low resolution; each has `scale` pixels along a side.
pub(super) fn preview(
    pipeline: &dyn Pipeline,
    latents: &Tensor,
    scale: usize,
    watch: &Watch<'_>,
) -> Result<Picture> {
    let (_, _, height, width) = latents.dims4()?;
    let (most, longer) = ((SIDE / scale.max(1)).max(1), height.max(width).max(1));
    if longer <= most {
        return to_picture(&pipeline.decode_preview(latents, watch)?);
    }
    let side = |side: usize| (side * most).div_ceil(longer).max(1);
    let down = averages(height, side(height), latents.device())?;
    let across = averages(width, side(width), latents.device())?.t()?;
    let small = down.broadcast_matmul(&latents.broadcast_matmul(&across)?)?;
    to_picture(&pipeline.decode_preview(&small, watch)?)
}

/// Builds the matrix `(to, from)` that averages `from` numbers in `to` parts.
fn averages(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0.0f32; from * to];
    for (part, row) in weights.chunks_mut(from).enumerate() {
        let (start, end) = (part * from / to, ((part + 1) * from).div_ceil(to));
        row[start..end].fill(1.0 / (end - start) as f32);
    }
    Ok(Tensor::from_vec(weights, (to, from), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_weigh_every_number_and_sum_to_one() {
        let halves = averages(4, 2, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(halves, [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]);
        let uneven = averages(5, 2, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(uneven, [[third, third, third, 0.0, 0.0], [0.0, 0.0, third, third, third]]);
    }
}
