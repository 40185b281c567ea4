//! Everything about an image embedding model that its small files tell, before its weights are read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_actors::{Footprint, ImageEmbedding, LoadContext, LoadStage};

use super::inputs::TextPlan;
use super::{
    Architecture, CAPABILITY, FAMILIES, ImageSide, ImageSize, Images, LoadedModel, WORKER_SCRATCH, open_clip,
};
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::limits::MAX_IMAGE_ROWS;
use crate::loader::{self, GenerationSettings};
use crate::models::config_file;
use crate::models::passes::PASS_ROWS;
use crate::preprocessing::{MAX_SIDE, Preprocessing, Size};
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

/// A model as its small files describe it.
pub(crate) struct ImageEmbeddingPlan {
    files: Files,
    pub(super) architecture: Box<dyn Architecture>,
    images: Option<Images>,
    texts: Option<TextPlan>,
    /// Maximum number of rows of an image or a text.
    longest: usize,
}

impl loader::LoadPlan for ImageEmbeddingPlan {
    type Capability = ImageEmbedding;
    type Loaded = LoadedModel;

    fn read(files: Files, _: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let (config, architecture) = find(&files, context)?;
        let preprocessing = architecture.preprocessing();
        let images = architecture.images();
        let images =
            images.map(|side| images_of(&files, &config, side, preprocessing, context)).transpose()?;
        let side = architecture.texts();
        let texts = side.map(|side| TextPlan::read(&files, side, context)).transpose()?;
        // A larger image is refused when it comes.
        let rows = images.as_ref().map_or(0, Images::most_rows).min(MAX_IMAGE_ROWS);
        let longest = rows.max(side.map_or(0, |side| side.longest));
        Ok(Self { files, architecture, images, texts, longest })
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
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let texts = self.texts.as_ref().map(TextPlan::load).transpose()?;
        let encoder = self.architecture.load(&weights, &device, context)?;
        weights.check_all_read(|tensor| self.architecture.has_no_effect(tensor))?;
        Ok(LoadedModel {
            encoder,
            images: self.images.clone(),
            texts,
            compute: compute.clone(),
            device,
            footprint: compute.counted(self.footprint_of(&weights)),
            plan: Arc::clone(self),
        })
    }
}

/// The configuration of a model: that of transformers, or where there is none, that of OpenCLIP.
fn find(files: &Files, context: &LoadContext) -> Result<(PathBuf, Box<dyn Architecture>)> {
    let found = config_file::find(files, "config.json", FAMILIES, CAPABILITY, context);
    let file = match found {
        Err(Error::MissingFile { .. } | Error::PickleOnly { .. }) => {
            files.optional(open_clip::FILE, context)?
        }
        _ => None,
    };
    if let Some(file) = file {
        let found = architecture::read_whole(&open_clip::FAMILY, &file, &read_json(&file)?, files.unread)?;
        return Ok((file, found));
    }
    let file = found?;
    let found = architecture::find_whole(FAMILIES, CAPABILITY, &file, &read_json(&file)?, files.unread)?;
    Ok((file, found))
}

/// Reads the preprocessing of a model's images, unless it is known, which has to make such as the model takes.
fn images_of(
    files: &Files,
    config: &Path,
    side: ImageSide,
    known: Option<Preprocessing>,
    context: &LoadContext,
) -> Result<Images> {
    let preprocessing = match known {
        Some(preprocessing) => preprocessing,
        None => Preprocessing::open(files, side.processor, context)?,
    };
    let invalid = |reason: String| Err(Error::InvalidConfig { file: config.to_owned(), reason });
    let taken = match side.size {
        ImageSize::Square(side) if preprocessing.exact() != Some((side, side)) => {
            format!("images of {side}x{side} pixels")
        }
        ImageSize::WholePatches if preprocessing.patch() != Some(side.patch) => {
            format!("whole patches of {0}x{0} pixels", side.patch)
        }
        _ => String::new(),
    };
    if !taken.is_empty() {
        return invalid(format!("the model takes {taken}; its preprocessing makes others"));
    }
    let images = Images { side, preprocessing };
    let rows = images.most_rows();
    match images.preprocessing.exact().is_some() && rows > MAX_IMAGE_ROWS {
        true => invalid(format!("an image becomes {rows} rows; at most {MAX_IMAGE_ROWS} are allowed")),
        false => Ok(images),
    }
}

impl Images {
    /// Rows of the largest picture that can come out of the preprocessing.
    fn most_rows(&self) -> usize {
        let (width, height) = match (self.preprocessing.exact(), self.preprocessing.resize) {
            (Some(sides), _) => sides,
            (None, Some((Size::Shortest(side), _))) => (side, MAX_SIDE),
            (None, Some((Size::Patches { side, most }, _))) => (side, side.saturating_mul(most)),
            _ => (MAX_SIDE, MAX_SIDE),
        };
        self.side.rows(width, height)
    }
}

impl ImageEmbeddingPlan {
    fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open_named(&self.files, "", self.architecture.weights(), context)
    }

    fn footprint_of(&self, weights: &WeightFiles) -> Footprint {
        let scratch = self.architecture.scratch(PASS_ROWS.max(self.longest), self.longest);
        let shared = weights.bytes_in_memory(|tensor| self.architecture.uses(tensor), |_| false);
        Footprint::new(shared, scratch + WORKER_SCRATCH)
    }
}
