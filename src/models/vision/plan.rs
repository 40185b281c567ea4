//! A vision model as its small files describe it, before its weights are read.

use std::sync::Arc;

use model_actors::{Bytes, Footprint, LoadContext, LoadStage, Vision};

use super::request::room;
use super::{Architecture, CAPABILITY, FAMILIES, LoadedModel, WorkerMemory};
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::limits::GenerationLimits;
use crate::loader::{self, GenerationSettings};
use crate::models::config_file;
use crate::models::continuous_batching;
use crate::models::generation_config::GenerationConfig;
use crate::models::passes::{PROMPT_ROWS, THREAD_SCRATCH};
use crate::source::{Files, read_json};
use crate::structured::Grammars;
use crate::tokens::{TokenizerFiles, Tokens, special_names};
use crate::weights::WeightFiles;

pub(crate) struct VisionPlan {
    files: Files,
    architecture: Box<dyn Architecture>,
    tokenizer: TokenizerFiles,
    settings: GenerationConfig,
    generation: GenerationSettings,
}

impl loader::LoadPlan for VisionPlan {
    type Capability = Vision;
    type Loaded = LoadedModel;
    const CONTINUOUS: bool = true;

    fn read(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let config = config_file::find(&files, "config.json", FAMILIES, CAPABILITY, context)?;
        let mut architecture =
            architecture::find_whole(FAMILIES, CAPABILITY, &config, &read_json(&config)?, files.unread)?;
        architecture.complete(&files, context)?;
        let tokenizer = TokenizerFiles::find(&files, "", context)?;
        let settings = GenerationConfig::read(&files, context)?;
        Ok(Self { files, architecture, tokenizer, settings, generation })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(compute, &self.weights(context)?))
    }

    #[cfg(feature = "cluster")]
    fn ask_for_rest(&self, context: &LoadContext) -> Result<()> {
        special_names(&self.files, context).map(drop)
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let weights = self.weights(context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let tokens = Tokens::read_whole(&self.tokenizer)?.with_rows(self.architecture.vocabulary());
        let invalid = |reason| Error::InvalidTokenizer { file: self.tokenizer.path().to_owned(), reason };
        let named = special_names(&self.files, context)?;
        let split = self.generation.split_special_tokens;
        let tokens = tokens.splitting_special_tokens(split, &named).map_err(invalid)?;
        let network = self.architecture.load(&tokens, &weights, &device, context)?;
        weights.check_all_read(|tensor| self.architecture.has_no_effect(tensor))?;
        let grammars = Grammars::new(&tokens, network.ends(), self.architecture.vocabulary());
        Ok(LoadedModel {
            network,
            tokens,
            grammars,
            context: self.architecture.context(),
            apart: self.architecture.apart(),
            limits: self.generation.limits,
            settings: self.settings.clone(),
            steps: 0.into(),
            compute: compute.clone(),
            footprint: compute.counted(self.footprint_of(compute, &weights)),
        })
    }
}

impl VisionPlan {
    fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open(&self.files, "", context)
    }

    fn footprint_of(&self, compute: &Compute, weights: &WeightFiles) -> Footprint {
        let GenerationLimits { kv_cache_tokens, max_sequences, .. } = self.generation.limits;
        let (context, apart) = (self.architecture.context(), self.architecture.apart());
        let longest = context.min(kv_cache_tokens);
        // One that is alone has what it keeps apart, however little room there is.
        let held = continuous_batching::most_held(self.generation.limits, room(context, apart))
            .max(room(longest, apart));
        let room =
            WorkerMemory { held, sequences: max_sequences, longest, rows: PROMPT_ROWS.max(max_sequences) };
        // Logits are made as a tensor and handed on as vectors.
        let logits =
            Bytes((2 * 4 * max_sequences as u64).saturating_mul(self.architecture.vocabulary() as u64));
        let weights = weights.bytes_in_memory(
            |tensor| self.architecture.uses(tensor),
            |tensor| compute.packs() && self.architecture.packs(tensor),
        );
        Footprint::new(
            weights + Grammars::bytes(self.architecture.vocabulary()),
            self.architecture.per_worker(room) + logits + THREAD_SCRATCH,
        )
    }
}
