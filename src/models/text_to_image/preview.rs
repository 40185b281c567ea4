//! What a picture under way looks like: the model's own decoder, over the picture behind the noise, which is averaged to
//! few latents first. That suits every variant without factors of its own, and costs little: decoding takes time in
//! proportion to the pixels, so that a preview of a picture of 512 x 512 pixels costs a sixteenth of decoding it.

use candle_core::{Device, Tensor};
use model_actors::Picture;

use super::painting::picture;
use super::{Pipeline, Watch};
use crate::error::Result;

/// Pixels of a preview's longer side, at most, unless a single latent has more.
const SIDE: usize = 128;

/// The picture of latents, small; each has `scale` pixels along a side.
pub(super) fn preview(
    pipeline: &dyn Pipeline,
    latents: &Tensor,
    scale: usize,
    watch: &Watch<'_>,
) -> Result<Picture> {
    let (_, _, height, width) = latents.dims4()?;
    let (most, longer) = ((SIDE / scale.max(1)).max(1), height.max(width).max(1));
    if longer <= most {
        return picture(&pipeline.decode(latents, watch)?);
    }
    let side = |side: usize| (side * most).div_ceil(longer).max(1);
    let down = averages(height, side(height), latents.device())?;
    let across = averages(width, side(width), latents.device())?.t()?;
    let small = down.broadcast_matmul(&latents.broadcast_matmul(&across)?)?;
    picture(&pipeline.decode(&small, watch)?)
}

/// The matrix `(to, from)` that averages `from` numbers in `to` parts.
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
    use candle_core::DType;

    use super::super::TextToImageModel;
    use super::*;
    use crate::kernels::random;
    use crate::source::Source;

    /// Latents of one colour for each part of a picture are shown as these parts are, each by one latent.
    #[test]
    fn a_preview_shows_what_the_latents_show_on_average() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text_to_image/sd15");
        let model = TextToImageModel::load(Source::directory(folder)).unwrap();
        let (pipeline, watch) = (model.shared.pipeline.as_ref(), Watch(&|| true));
        let parts = random(0.0, 1.0, (1, 4, 12, 16));
        let large = parts.upsample_nearest2d(36, 48).unwrap().to_dtype(DType::F32).unwrap();
        let shown = preview(pipeline, &large, 8, &watch).unwrap();
        let alone = picture(&pipeline.decode(&parts, &watch).unwrap()).unwrap();
        assert_eq!((shown.width, shown.height), (128, 96));
        let most = shown.rgb.iter().zip(&alone.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "{most:?}");
        // As many latents as are shown are shown as they are.
        assert_eq!(preview(pipeline, &parts, 8, &watch).unwrap(), alone);
    }

    #[test]
    fn averages_weigh_every_number_and_sum_to_one() {
        let halves = averages(4, 2, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(halves, [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]);
        let uneven = averages(5, 2, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(uneven, [[third, third, third, 0.0, 0.0], [0.0, 0.0, third, third, third]]);
    }
}
