//! A vision model as its small files describe it, before its weights are read.

use std::path::Path;
use std::sync::Arc;

use model_actors::{Bytes, Footprint, LoadContext, LoadStage, Vision};

use super::gguf::InFiles;
use super::request::room;
use super::small_files::SmallFiles;
use super::{Architecture, CAPABILITY, FAMILIES, LoadedModel, WorkerMemory, misfit};
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::limits::GenerationLimits;
use crate::loader::{self, GenerationSettings};
use crate::models::config_file;
use crate::models::continuous_batching;
use crate::models::generation_config::GenerationConfig;
use crate::models::gguf_text::{self, GgufText};
use crate::models::passes::{PROMPT_ROWS, THREAD_SCRATCH};
use crate::source::{Files, read_json};
use crate::structured::Grammars;
use crate::tokens::{TokenizerFiles, Tokens, special_names};
use crate::weights::WeightFiles;

pub(crate) struct VisionPlan {
    files: Files,
    architecture: Box<dyn Architecture>,
    kind: Kind,
    settings: GenerationConfig,
    generation: GenerationSettings,
}

/// Kinds of files that a model is in.
enum Kind {
    /// `config.json`, a tokenizer and safetensors.
    Folder { tokenizer: TokenizerFiles },
    /// Two GGUF files, unless a tokenizer is beside them.
    Gguf { weights: Box<WeightFiles>, tokenizer: Option<TokenizerFiles> },
}

impl loader::LoadPlan for VisionPlan {
    type Capability = Vision;
    type Loaded = LoadedModel;
    const CONTINUOUS: bool = true;

    fn read(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self> {
        match files.gguf(context)? {
            Some(path) if is_whole(&files, &path, context)? => {
                Self::read_gguf(files, &path, generation, context)
            }
            _ => Self::read_folder(files, generation, context),
        }
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        match &self.kind {
            Kind::Folder { .. } => {
                Ok(self.footprint_of(compute, &WeightFiles::open(&self.files, "", context)?))
            }
            Kind::Gguf { weights, .. } => Ok(self.footprint_of(compute, weights)),
        }
    }

    #[cfg(feature = "cluster")]
    fn ask_for_rest(&self, context: &LoadContext) -> Result<()> {
        special_names(&self.files, context).map(drop)
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let opened;
        let weights: &WeightFiles = match &self.kind {
            Kind::Folder { .. } => {
                opened = WeightFiles::open(&self.files, "", context)?;
                &opened
            }
            Kind::Gguf { weights, .. } => weights,
        };
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let (tokens, path, named) = match &self.kind {
            Kind::Folder { tokenizer } => {
                (Tokens::read_whole(tokenizer)?, tokenizer.path(), special_names(&self.files, context)?)
            }
            Kind::Gguf { weights, tokenizer } => {
                let (file, _) = weights.gguf().ok_or_else(misfit)?.text();
                let (beside, path) =
                    (tokenizer.as_ref(), gguf_text::tokenizer_path(tokenizer.as_ref(), file));
                (gguf_text::tokens(beside, file)?, path, gguf_text::names(beside, &self.files, context)?)
            }
        };
        let tokens = tokens.with_rows(self.architecture.vocabulary());
        let invalid = |reason| Error::InvalidTokenizer { file: path.to_owned(), reason };
        let split = self.generation.split_special_tokens;
        let tokens = tokens.splitting_special_tokens(split, &named).map_err(invalid)?;
        let network = self.architecture.load(&tokens, weights, &device, context)?;
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
            footprint: compute.counted(self.footprint_of(compute, weights)),
        })
    }
}

impl VisionPlan {
    fn read_folder(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let config = config_file::find(&files, "config.json", FAMILIES, CAPABILITY, context)?;
        let mut architecture =
            architecture::find_whole(FAMILIES, CAPABILITY, &config, &read_json(&config)?, files.unread)?;
        architecture.complete(&SmallFiles::Folder(&files), context)?;
        let kind = Kind::Folder { tokenizer: TokenizerFiles::find(&files, "", context)? };
        let settings = GenerationConfig::read(&files, context)?;
        Ok(Self { files, architecture, kind, settings, generation })
    }

    fn read_gguf(
        files: Files,
        path: &Path,
        generation: GenerationSettings,
        context: &LoadContext,
    ) -> Result<Self> {
        let tower = GgufFile::open(&files.projector(path, context)?)?;
        let file = GgufFile::open(path)?.with_parts(|name| files.gguf_part(path, name, context))?;
        let text = GgufText::read(&files, &file, context)?;
        let arithmetic = Arithmetic::of(generation.exact_products);
        let InFiles { mut architecture, weights, small } =
            InFiles::read((file, arithmetic), tower, &text, files.unread)?;
        architecture.complete(&SmallFiles::Gguf(&files, &small), context)?;
        let kind = Kind::Gguf { weights: Box::new(weights), tokenizer: text.tokenizer };
        Ok(Self { files, architecture, kind, settings: GenerationConfig::default(), generation })
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

/// True if a model's GGUF files are meant: without a `config.json`, or where the vision tower is one of them.
fn is_whole(files: &Files, path: &Path, context: &LoadContext) -> Result<bool> {
    if files.is_gguf() || files.optional("config.json", context)?.is_none() {
        return Ok(true);
    }
    match files.projector(path, context) {
        Ok(_) => Ok(true),
        Err(Error::MissingFile { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
