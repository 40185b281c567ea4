//! A text to image model before its weights are read: its configuration, its memory, the check of requests
//! against it, and the load.

use std::sync::Arc;

use candle_core::Device;
use model_actors::{
    Bytes, Capability as _, Footprint, ImageSource, LoadContext, LoadStage, PaintImage, Picture, TextToImage,
};
use serde_json::json;

use super::pipeline::{Architecture, FirstImage, Pipeline, Settings};
use super::repository::{ComponentWeights, Repository};
use super::{CAPABILITY, FAMILIES};
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::limits::MAX_PAINTED_PIXELS;
use crate::loader::{self, GenerationSettings};
use crate::preprocessing::{Filter, resize};
use crate::source::Files;

/// Memory that gemm, the patches of convolutions and the allocator keep for a worker.
const WORKER_SCRATCH: Bytes = Bytes::mib(16);

/// The part of the steps that are taken from an image, unless a request says otherwise.
const STRENGTH: f32 = 0.8;

/// A text to image model whose weights are not loaded.
pub(crate) struct TextToImagePlan {
    files: Files,
    pub(super) architecture: Box<dyn Architecture>,
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    pub(super) pipeline: Box<dyn Pipeline>,
    pub(super) device: Device,
    pub(super) compute: Compute,
    pub(super) footprint: Footprint,
    pub(super) plan: Arc<TextToImagePlan>,
}

impl loader::LoadPlan for TextToImagePlan {
    type Capability = TextToImage;
    type Loaded = LoadedModel;

    fn read(files: Files, _: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let repository = Repository::open(&files, FAMILIES, CAPABILITY, context)?;
        let class = json!({"model_type": repository.class()?});
        let read = architecture::find(FAMILIES, CAPABILITY, &repository.path, &class)?;
        let architecture = read(&repository)?;
        Ok(Self { files, architecture })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, _: &Compute, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(&self.weights(context)?))
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let weights = self.weights(context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk());
        let pipeline = self.architecture.load(&weights, &device, context)?;
        weights.check_all_read()?;
        Ok(LoadedModel {
            pipeline,
            device,
            compute: compute.clone(),
            footprint: compute.counted(self.footprint_of(&weights)),
            plan: Arc::clone(self),
        })
    }
}

impl TextToImagePlan {
    fn weights(&self, context: &LoadContext) -> Result<ComponentWeights> {
        ComponentWeights::open(self.architecture.components(), &self.files, context)
    }

    fn footprint_of(&self, weights: &ComponentWeights) -> Footprint {
        let per_worker = self.architecture.scratch(self.max_pixels()) + WORKER_SCRATCH;
        Footprint::new(weights.bytes_in_memory(), per_worker)
    }

    /// Maximum number of pixels of an image, on which the memory that a worker is charged for depends.
    fn max_pixels(&self) -> usize {
        let defaults = self.architecture.defaults();
        let own = defaults.width.saturating_mul(defaults.height);
        own.saturating_add(own / 2).max(MAX_PAINTED_PIXELS)
    }

    /// Checks a request and fills in the model's defaults.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a request that the model cannot serve.
    pub(super) fn settings(&self, request: &PaintImage) -> Result<Settings> {
        TextToImage::check(request).map_err(Error::from)?;
        let defaults = self.architecture.defaults();
        let space = self.architecture.latent_space();
        let image = request.image.as_ref().map(pixels).transpose()?;
        let own =
            image.map(|it| (it.width - it.width % space.multiple, it.height - it.height % space.multiple));
        let (width, height) = request.size.or(own).unwrap_or((defaults.width, defaults.height));
        self.check_size(width, height)?;
        let mask = request.mask.as_ref().map(pixels).transpose()?;
        let mask = mask.map(|mask| mask_of(mask, (width, height))).transpose()?;
        let strength = request.strength.unwrap_or(if mask.is_some() { 1.0 } else { STRENGTH });
        let first_image = |image| {
            let picture = resize(image, width, height, Filter::Lanczos)?;
            Ok::<_, Error>(FirstImage { picture, strength: f64::from(strength), mask })
        };
        Ok(Settings {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            width,
            height,
            steps: request.steps.unwrap_or(defaults.steps).max(1),
            guidance: request.guidance.map_or(defaults.guidance, f64::from),
            scheduler: request.scheduler.clone(),
            preview: request.preview,
            image: image.map(first_image).transpose()?,
        })
    }

    fn check_size(&self, width: usize, height: usize) -> Result<()> {
        let multiple = self.architecture.latent_space().multiple;
        let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
        if !fits(width) || !fits(height) {
            let reason =
                format!("the size {width}x{height} is asked for; the sides of this model's pictures");
            return Err(Error::InvalidInput(format!("{reason} are multiples of {multiple} pixels")));
        }
        let (pixels, most) = (width.saturating_mul(height), self.max_pixels());
        if pixels > most {
            let reason = format!("the size {width}x{height} has {pixels} pixels");
            return Err(Error::InvalidInput(format!("{reason}; this model paints at most {most}")));
        }
        Ok(())
    }
}

/// The pixels of an image that the caller's handle has decoded.
fn pixels(image: &ImageSource) -> Result<&Picture> {
    let undecoded = || Error::InvalidInput("the image is not decoded yet: give its pixels".to_owned());
    image.pixels().ok_or_else(undecoded)
}

/// The mask of the picture's size. A pixel counts as white, to be painted anew, from the middle on.
fn mask_of(mask: &Picture, (width, height): (usize, usize)) -> Result<Vec<bool>> {
    let mask = resize(mask, width, height, Filter::Lanczos)?;
    Ok(mask.rgb.chunks_exact(3).map(|rgb| luma(rgb) >= 128).collect())
}

/// Brightness of a pixel, as Pillow's mode `L` has it.
fn luma(rgb: &[u8]) -> u32 {
    let weights = [19_595, 38_470, 7_471];
    (rgb.iter().zip(weights).map(|(byte, weight)| u32::from(*byte) * weight).sum::<u32>() + 0x8000) >> 16
}
