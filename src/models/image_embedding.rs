//! Image embedding: from a source's files to a model that answers batches. The list of families is here; what one family
//! computes is left to its file.

use std::sync::Arc;

use model_actors::{Failure, Footprint, ImageEmbedding, LoadContext, Model, Weights};

use crate::device::Compute;
use crate::error::Result;
use crate::families::{self, Family};
use crate::loader;
use crate::source::{Files, read_json};

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Unsupported>] = &[];

/// No family stands yet.
struct Unsupported {}

/// Everything about a model that its small files tell.
pub(crate) struct Plan {
    files: Files,
}

/// A model in memory, shared by its workers.
pub(crate) struct SharedModel {}

impl loader::Plan for Plan {
    type Capability = ImageEmbedding;
    type Loaded = SharedModel;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let config = files.required("config.json", context)?;
        families::find(FAMILIES, "image embedding", &config, &read_json(&config)?)?;
        Ok(Self { files })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, _: &LoadContext) -> Result<Footprint> {
        Ok(Footprint::default())
    }

    fn load(self: &Arc<Self>, _: &Compute, _: &LoadContext) -> Result<SharedModel> {
        Ok(SharedModel {})
    }
}

impl Weights<ImageEmbedding> for SharedModel {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<ImageEmbedding>>, Failure> {
        Err(Failure::stopped())
    }
}
