//! Everything about a vision model that its small files tell, before its weights are read.

use std::path::PathBuf;
use std::sync::Arc;

use model_actors::{Footprint, LoadContext, LoadStage, Vision};

use super::{Architecture, FAMILIES, LoadedModel, RESERVED_TOKENS, SharedModel, THREAD_SCRATCH};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::families;
use crate::limits::ImageLimits;
use crate::loader;
use crate::source::{Files, read_json};
use crate::tokens::Tokens;
use crate::weights::WeightFiles;

pub(crate) struct Plan {
    files: Files,
    architecture: Box<dyn Architecture>,
    tokenizer: PathBuf,
}

impl loader::Plan for Plan {
    type Capability = Vision;
    type Loaded = SharedModel;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let config = files.required("config.json", context)?;
        let mut architecture = families::find(FAMILIES, "vision", &config, &read_json(&config)?)?;
        architecture.complete(&files, context)?;
        let tokenizer = files.required("tokenizer.json", context)?;
        Ok(Self { files, architecture, tokenizer })
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
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let tokens = Tokens::read_whole(&self.tokenizer)?;
        if tokens.vocabulary() > self.architecture.vocabulary() {
            let (has, knows) = (tokens.vocabulary(), self.architecture.vocabulary());
            let reason = format!("it has {has} tokens; the model's vocab_size is {knows}");
            return Err(Error::InvalidTokenizer { file: self.tokenizer.clone(), reason });
        }
        Ok(SharedModel(Arc::new(LoadedModel {
            network: self.architecture.load(&tokens, &weights, &device, context)?,
            tokens,
            context: self.architecture.context(),
            limits: ImageLimits::default(),
            steps: 0.into(),
            compute: compute.clone(),
            footprint: self.footprint_of(&weights),
        })))
    }
}

impl Plan {
    fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open(&self.files, "", context)
    }

    fn footprint_of(&self, weights: &WeightFiles) -> Footprint {
        let tokens = RESERVED_TOKENS.min(self.architecture.context());
        Footprint {
            shared: weights.bytes_in_memory(|tensor| self.architecture.uses(tensor)),
            per_worker: self.architecture.per_worker(tokens) + THREAD_SCRATCH,
        }
    }
}
