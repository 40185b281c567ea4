//! Everything about a text to image model that its small files tell, before its weights are read, and the check of
//! requests against it.

use std::sync::Arc;

use model_actors::{Footprint, LoadContext, LoadStage, PaintImage, TextToImage};
use serde_json::json;

use super::{
    Architecture, CAPABILITY, FAMILIES, LoadedModel, PartWeights, Repository, Settings, SharedModel,
    THREAD_SCRATCH,
};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::families;
use crate::limits::{MAX_GUIDANCE, MAX_PAINTED_PIXELS, MAX_QUESTION_BYTES};
use crate::loader;
use crate::source::Files;

/// Everything about a model that its small files tell.
pub(crate) struct TextToImagePlan {
    files: Files,
    pub(super) architecture: Box<dyn Architecture>,
}

impl loader::LoadPlan for TextToImagePlan {
    type Capability = TextToImage;
    type Loaded = SharedModel;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let repository = Repository::open(&files, context)?;
        let class = json!({"model_type": repository.class()?});
        let read = families::find(FAMILIES, CAPABILITY, &repository.path, &class)?;
        let architecture = read(&repository)?;
        Ok(Self { files, architecture })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(&self.weights(context)?))
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<SharedModel> {
        let weights = self.weights(context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk());
        Ok(SharedModel(Arc::new(LoadedModel {
            pipeline: self.architecture.load(&weights, &device, context)?,
            device,
            compute: compute.clone(),
            footprint: compute.counted(self.footprint_of(&weights)),
            plan: Arc::clone(self),
        })))
    }
}

impl TextToImagePlan {
    fn weights(&self, context: &LoadContext) -> Result<PartWeights> {
        PartWeights::open(self.architecture.parts(), &self.files, context)
    }

    fn footprint_of(&self, weights: &PartWeights) -> Footprint {
        let per_worker = self.architecture.scratch(self.largest()) + THREAD_SCRATCH;
        Footprint::new(weights.bytes_in_memory(), per_worker)
    }

    /// Most pixels of a picture: what a worker is charged for depends on it.
    fn largest(&self) -> usize {
        let defaults = self.architecture.defaults();
        let own = defaults.width.saturating_mul(defaults.height);
        own.saturating_add(own / 2).max(MAX_PAINTED_PIXELS)
    }

    /// The request with the model's own values where it has none.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for what the model cannot paint.
    pub(super) fn settings(&self, request: &PaintImage) -> Result<Settings> {
        let (defaults, canvas) = (self.architecture.defaults(), self.architecture.canvas());
        let (width, height) = request.size.unwrap_or((defaults.width, defaults.height));
        let multiple = canvas.multiple;
        let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
        if !fits(width) || !fits(height) {
            let reason =
                format!("the size {width}x{height} is asked for; the sides of this model's pictures");
            return Err(Error::InvalidInput(format!("{reason} are multiples of {multiple} pixels")));
        }
        let (pixels, largest) = (width.saturating_mul(height), self.largest());
        if pixels > largest {
            let reason = format!("the size {width}x{height} has {pixels} pixels");
            return Err(Error::InvalidInput(format!("{reason}; this model paints at most {largest}")));
        }
        let bytes = request.negative_prompt.as_ref().map_or(0, String::len);
        if bytes > MAX_QUESTION_BYTES {
            let reason =
                format!("the negative prompt has {bytes} bytes; at most {MAX_QUESTION_BYTES} are allowed");
            return Err(Error::InvalidInput(reason));
        }
        let guidance = request.guidance.map_or(defaults.guidance, f64::from);
        if !(0.0..=f64::from(MAX_GUIDANCE)).contains(&guidance) {
            let reason = format!("the guidance {guidance} is asked for; 0 to {MAX_GUIDANCE} are allowed");
            return Err(Error::InvalidInput(reason));
        }
        Ok(Settings {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            width,
            height,
            steps: request.steps.unwrap_or(defaults.steps).max(1),
            guidance,
            scheduler: request.scheduler.clone(),
            preview: request.preview,
        })
    }
}
