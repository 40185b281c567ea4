//! The denoising loop of one image, which all families share: one step at a time, so that a worker can
//! interleave several images and look in between who still waits.

use candle_core::{DType, Device, Tensor};
use model_actors::{PaintStep, Picture};

use super::decode::{to_colours, to_picture};
use super::noise::Noise;
use super::pipeline::{Conditioning, FirstImage, LatentSpace, Pipeline, Scheduler, Settings, Watch};
use super::preview::preview;
use crate::error::{Error, Result};

/// State of the loop between two steps.
pub(super) struct DenoisingLoop {
    latents: Tensor,
    conditioning: Conditioning,
    scheduler: Box<dyn Scheduler>,
    noise: Noise,
    /// Calls of the network so far.
    calls: usize,
    /// Pixels along a side for each latent, if each step is to have a preview.
    preview_scale: Option<usize>,
    /// The part of the first image that stays, if any does.
    kept: Option<Kept>,
}

/// The part of an image that stays: its latents without noise, and the noise that they were given.
struct Kept {
    latents: Tensor,
    noise: Tensor,
    /// 1 for each latent that is painted anew, 0 for one that stays, `(1, 1, height, width)`.
    mask: Tensor,
}

impl Kept {
    /// Puts the image in place of the latents that stay, with the noise that there is when a call begins, or none after
    /// the last.
    fn put(&self, latents: &Tensor, call: usize, scheduler: &dyn Scheduler) -> Result<Tensor> {
        let own = match call < scheduler.timesteps().len() {
            true => scheduler.add_noise(call, &self.latents, &self.noise)?,
            false => self.latents.clone(),
        };
        let stays = (1.0 - &self.mask)?;
        Ok((own.broadcast_mul(&stays)? + latents.broadcast_mul(&self.mask)?)?)
    }
}

/// Result of one step of the loop.
pub(super) enum Progress {
    Step(PaintStep),
    Finished(Picture),
}

impl DenoisingLoop {
    /// Encodes the prompts, and the image to begin with, and draws the first latents.
    pub(super) fn start(
        pipeline: &dyn Pipeline,
        space: LatentSpace,
        settings: &Settings,
        mut noise: Noise,
        device: &Device,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        let scheduler = pipeline.scheduler(settings)?;
        let (rows, columns) = (settings.height / space.scale, settings.width / space.scale);
        let image = settings.image.as_ref();
        let paints_around = pipeline.takes_masked_images();
        let is_whole = |image: &FirstImage| image.strength == 1.0 && (paints_around || image.mask.is_some());
        let begins_anew = image.is_none_or(is_whole);
        // What stays is put back from the image, unless the network has it beside the latents.
        let encode = |image: &FirstImage| {
            let colours = to_colours(&image.picture, device)?;
            pipeline.encode(&colours, &mut noise, watch)
        };
        let own = image.filter(|_| !(begins_anew && paints_around)).map(encode).transpose()?;
        let drawn = noise.next(&[1, space.channels, rows, columns], device)?;
        let latents = match &own {
            Some(own) if !begins_anew => scheduler.add_noise(0, own, &drawn)?,
            _ => (&drawn * scheduler.init_noise_sigma())?,
        };
        let mask = image.and_then(|image| image.mask_of_latents(space.scale));
        let mask = mask.map(|mask| Tensor::from_vec(mask, (1, 1, rows, columns), device)).transpose()?;
        let beside = match paints_around {
            true => {
                let colours = masked_colours(settings, device)?;
                let around = pipeline.encode(&colours, &mut noise, watch)?;
                // Without a mask, all of it is painted.
                let anew = || Tensor::ones((1, 1, rows, columns), DType::F32, device);
                let mask = mask.as_ref().map_or_else(anew, |mask| Ok(mask.clone()))?;
                Some(Tensor::cat(&[&mask, &around], 1)?)
            }
            false => None,
        };
        let kept = match (own, mask) {
            (Some(latents), Some(mask)) if !paints_around => Some(Kept { latents, noise: drawn, mask }),
            _ => None,
        };
        let conditioning = Conditioning { beside, ..pipeline.encode_prompt(settings, watch)? };
        let preview_scale = settings.preview.then_some(space.scale);
        Ok(Self { latents, conditioning, scheduler, noise, calls: 0, preview_scale, kept })
    }

    /// Calls the network once, or the decoder after the last step.
    pub(super) fn advance(&mut self, pipeline: &dyn Pipeline, watch: &Watch<'_>) -> Result<Progress> {
        watch.check()?;
        let (call, timesteps) = (self.calls, self.scheduler.timesteps());
        let of = timesteps.len();
        let Some(timestep) = timesteps.get(call).copied() else {
            return Ok(Progress::Finished(to_picture(&pipeline.decode(&self.latents, watch)?)?));
        };
        let input = self.scheduler.scale_model_input(call, &self.latents)?;
        let prediction = pipeline.predict(&input, timestep, &self.conditioning, watch)?;
        let prediction = guide(&prediction, self.conditioning.guidance)?;
        let original = || self.scheduler.predict_original(call, &prediction, &self.latents);
        let original = self.preview_scale.map(|_| original()).transpose()?;
        self.latents = self.scheduler.step(call, &prediction, &self.latents, &mut self.noise)?;
        self.calls += 1;
        if let Some(kept) = &self.kept {
            self.latents = kept.put(&self.latents, self.calls, self.scheduler.as_ref())?;
        }
        // After the last step the latents have no noise left.
        let original = if self.calls == of { Some(&self.latents) } else { original.as_ref() };
        let preview = match (self.preview_scale, original) {
            // Early estimates may be beyond what the decoder was made for; the finished image need not be.
            (Some(scale), Some(original)) => match preview(pipeline, original, scale, watch) {
                Err(Error::NotFiniteOutput) => None,
                preview => Some(preview?),
            },
            _ => None,
        };
        Ok(Progress::Step(PaintStep::new(self.calls, of, preview)))
    }

    #[cfg(test)]
    pub(super) fn latents(&self) -> &Tensor {
        &self.latents
    }
}

/// Colours of the first image, grey where it is painted anew; without an image, all of it is.
fn masked_colours(settings: &Settings, device: &Device) -> Result<Tensor> {
    let Settings { width, height, .. } = *settings;
    let Some(FirstImage { picture, mask: Some(mask), .. }) = &settings.image else {
        return Ok(Tensor::zeros((1, 3, height, width), DType::F32, device)?);
    };
    let stays: Vec<f32> = mask.iter().map(|anew| f32::from(u8::from(!anew))).collect();
    let stays = Tensor::from_vec(stays, (1, 1, height, width), device)?;
    Ok(to_colours(picture, device)?.broadcast_mul(&stays)?)
}

/// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): `negative + guidance · (positive -
/// negative)` of two rows; one row is left as it is.
fn guide(prediction: &Tensor, guidance: f64) -> Result<Tensor> {
    if prediction.dim(0)? == 1 {
        return Ok(prediction.clone());
    }
    let (negative, positive) = (prediction.narrow(0, 0, 1)?, prediction.narrow(0, 1, 1)?);
    Ok((&negative + ((positive - &negative)? * guidance)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_extrapolates_from_the_negative_row_through_the_positive_one() {
        let prediction = Tensor::new(&[[1.0f32], [3.0]], &Device::Cpu).unwrap();
        assert_eq!(guide(&prediction, 2.0).unwrap().to_vec2::<f32>().unwrap(), [[5.0]]);
    }
}
