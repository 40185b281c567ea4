//! One picture under way: the loop of steps that all families share, one step at a time, so that a worker can take
//! turns between pictures and look in between at who has gone.

use candle_core::{D, Device, IndexOp as _, Tensor};
use model_actors::{PaintStep, Picture};

use super::preview::preview;
use super::{Conditioning, LoadedModel, Noise, Pipeline, Scheduler, Settings, Watch};
use crate::error::{Error, Result};

/// A picture between two steps.
pub(super) struct Painting {
    latents: Tensor,
    conditioning: Conditioning,
    scheduler: Box<dyn Scheduler>,
    noise: Noise,
    /// Calls of the model so far.
    calls: usize,
    /// Pixels along a side for each latent, if each step is to be shown.
    shown: Option<usize>,
}

/// What came of a turn.
pub(super) enum Advance {
    Step(PaintStep),
    Finished(Picture),
}

impl Painting {
    /// Encodes the prompts and makes the starting noise.
    pub(super) fn begin(
        model: &LoadedModel,
        settings: &Settings,
        mut noise: Noise,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        let canvas = model.plan.architecture.canvas();
        let scheduler = model.pipeline.scheduler(settings)?;
        let shape = [1, canvas.channels, settings.height / canvas.scale, settings.width / canvas.scale];
        let latents = (noise.next(&shape, &model.device)? * scheduler.initial_scale())?;
        let conditioning = model.pipeline.condition(settings, watch)?;
        let shown = settings.preview.then_some(canvas.scale);
        Ok(Self { latents, conditioning, scheduler, noise, calls: 0, shown })
    }

    /// One call of the model, or the decoder after the last.
    pub(super) fn advance(&mut self, pipeline: &dyn Pipeline, watch: &Watch<'_>) -> Result<Advance> {
        watch.check()?;
        let (call, timesteps) = (self.calls, self.scheduler.timesteps());
        let of = timesteps.len();
        let Some(timestep) = timesteps.get(call).copied() else {
            return Ok(Advance::Finished(picture(&pipeline.decode(&self.latents, watch)?)?));
        };
        let input = self.scheduler.scale_input(call, &self.latents)?;
        let output = pipeline.predict(&input, timestep, &self.conditioning, watch)?;
        let output = guided(&output, self.conditioning.guidance)?;
        let behind = self.shown.map(|_| self.scheduler.picture(call, &output, &self.latents)).transpose()?;
        self.latents = self.scheduler.step(call, &output, &self.latents, &mut self.noise)?;
        self.calls += 1;
        // After the last step the latents are the picture itself.
        let seen = if self.calls == of { Some(&self.latents) } else { behind.as_ref() };
        let preview = match (self.shown, seen) {
            // Early guesses may be beyond what the decoder was made for; the picture itself need not be.
            (Some(scale), Some(seen)) => match preview(pipeline, seen, scale, watch) {
                Err(Error::NotFiniteOutput) => None,
                preview => Some(preview?),
            },
            _ => None,
        };
        Ok(Advance::Step(PaintStep::new(self.calls, of, preview)))
    }

    #[cfg(test)]
    pub(super) fn latents(&self) -> &Tensor {
        &self.latents
    }
}

/// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): away from the prediction without the prompt.
fn guided(output: &Tensor, guidance: f64) -> Result<Tensor> {
    if output.dim(0)? == 1 {
        return Ok(output.clone());
    }
    let (without, with) = (output.narrow(0, 0, 1)?, output.narrow(0, 1, 1)?);
    Ok((&without + ((with - &without)? * guidance)?)?)
}

/// Colours `(1, 3, height, width)` from -1 to 1 to bytes.
pub(super) fn picture(colours: &Tensor) -> Result<Picture> {
    let (_, _, height, width) = colours.dims4()?;
    let colours = colours.i(0)?.permute((1, 2, 0))?.contiguous()?.to_device(&Device::Cpu)?;
    let values: Vec<f32> = colours.flatten(0, D::Minus1)?.to_vec1()?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::NotFiniteOutput);
    }
    let byte = |value: &f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(Picture { width, height, rgb: values.iter().map(byte).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_beyond_what_can_be_shown_are_cut_off_and_none_may_be_infinite() {
        let colours = Tensor::new(&[[[[-3.0f32, -1.0]], [[0.0, 1.0]], [[0.5, 9.0]]]], &Device::Cpu).unwrap();
        let shown = picture(&colours).unwrap();
        assert_eq!((shown.width, shown.height, shown.rgb), (2, 1, vec![0, 128, 191, 0, 255, 255]));
        let infinite = (colours / 0.0).unwrap();
        assert!(matches!(picture(&infinite), Err(Error::NotFiniteOutput)));
    }

    #[test]
    fn guidance_goes_from_the_first_row_through_the_second() {
        let output = Tensor::new(&[[1.0f32], [3.0]], &Device::Cpu).unwrap();
        assert_eq!(guided(&output, 2.0).unwrap().to_vec2::<f32>().unwrap(), [[5.0]]);
    }
}
