//! Everything about an image embedding model that its small files tell, before its weights are read.

use std::sync::Arc;

use model_actors::{Footprint, ImageEmbedding, LoadContext, LoadStage};

use super::inputs::TextPlan;
use super::{Architecture, CAPABILITY, FAMILIES, LoadedModel, WORKER_SCRATCH};
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::limits::MAX_IMAGE_ROWS;
use crate::loader;
use crate::models::config_file;
use crate::models::passes::PASS_ROWS;
use crate::preprocessing::{MAX_SIDE, Preprocessing, Size};
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

/// A model as its small files describe it.
pub(crate) struct ImageEmbeddingPlan {
    files: Files,
    pub(super) architecture: Box<dyn Architecture>,
    preprocessing: Preprocessing,
    texts: Option<TextPlan>,
    /// Most rows of an image or a text.
    longest: usize,
}

impl loader::LoadPlan for ImageEmbeddingPlan {
    type Capability = ImageEmbedding;
    type Loaded = LoadedModel;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let config = config_file::find(&files, "config.json", FAMILIES, CAPABILITY, context)?;
        let architecture =
            architecture::find_whole(FAMILIES, CAPABILITY, &config, &read_json(&config)?, files.unread)?;
        let preprocessing = Preprocessing::open(&files, architecture.processor(), context)?;
        if let Some(side) = architecture.side()
            && preprocessing.exact() != Some((side, side))
        {
            let reason = format!(
                "the model takes images of {side}x{side} pixels; its preprocessor_config.json makes others"
            );
            return Err(Error::InvalidConfig { file: config, reason });
        }
        let side = architecture.texts();
        let texts = side.map(|side| TextPlan::read(&files, side, context)).transpose()?;
        let (width, height) = largest(&preprocessing);
        let rows = architecture.rows(width, height);
        if preprocessing.exact().is_some() && rows > MAX_IMAGE_ROWS {
            let reason = format!("an image becomes {rows} rows; at most {MAX_IMAGE_ROWS} are allowed");
            return Err(Error::InvalidConfig { file: config, reason });
        }
        // A larger image is refused when it comes.
        let longest = rows.min(MAX_IMAGE_ROWS).max(side.map_or(0, |side| side.longest));
        Ok(Self { files, architecture, preprocessing, texts, longest })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(&WeightFiles::open(&self.files, "", context)?))
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let weights = WeightFiles::open(&self.files, "", context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let texts = self.texts.as_ref().map(TextPlan::load).transpose()?;
        let encoder = self.architecture.load(&weights, &device, context)?;
        weights.check_all_read(|tensor| self.architecture.has_no_effect(tensor))?;
        Ok(LoadedModel {
            encoder,
            preprocessing: self.preprocessing.clone(),
            texts,
            compute: compute.clone(),
            device,
            footprint: compute.counted(self.footprint_of(&weights)),
            plan: Arc::clone(self),
        })
    }
}

/// The sides of the largest picture that can come out.
fn largest(preprocessing: &Preprocessing) -> (usize, usize) {
    match (preprocessing.exact(), preprocessing.resize) {
        (Some(sides), _) => sides,
        (None, Some((Size::Shortest(side), _))) => (side, MAX_SIDE),
        _ => (MAX_SIDE, MAX_SIDE),
    }
}

impl ImageEmbeddingPlan {
    fn footprint_of(&self, weights: &WeightFiles) -> Footprint {
        let scratch = self.architecture.scratch(PASS_ROWS.max(self.longest), self.longest);
        let shared = weights.bytes_in_memory(|tensor| self.architecture.uses(tensor));
        Footprint::new(shared, scratch + WORKER_SCRATCH)
    }
}
