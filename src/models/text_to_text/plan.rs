//! Everything about a text to text model that its small files tell, before its weights are read.

use std::path::PathBuf;
use std::sync::Arc;

use model_actors::{Bytes, Footprint, LoadContext, LoadStage, TextToText};
use serde::Deserialize;

use super::{CACHE_TOKENS, LoadedModel, SharedModel};
use crate::device::Compute;
use crate::error::Result;
use crate::families;
use crate::generation::{self, ChatTemplate, SpecialTokens};
use crate::loader;
use crate::models::decoder::{DecoderConfig, FAMILIES};
use crate::models::streams::PROMPT_ROWS;
use crate::source::{Files, read_json};
use crate::tokens::Tokens;
use crate::weights::WeightFiles;

/// Texts that one worker is expected to write at a time.
const TEXTS: usize = 32;
/// What gemm, the tokenizer and the allocator keep for each thread, as measured for text embedding.
const THREAD_SCRATCH: Bytes = Bytes::mib(4);

/// One token or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenList {
    One(u32),
    Several(Vec<u32>),
}

/// `generation_config.json`, of which only the ends matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    eos_token_id: Option<TokenList>,
}

/// Everything about a model that its small files tell.
pub(crate) struct Plan {
    files: Files,
    config: DecoderConfig,
    tokenizer: PathBuf,
    template: Option<ChatTemplate>,
    special: SpecialTokens,
    end_tokens: Vec<u32>,
}

impl loader::Plan for Plan {
    type Capability = TextToText;
    type Loaded = SharedModel;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let file = files.required("config.json", context)?;
        let config = families::find(FAMILIES, "text to text", &file, &read_json(&file)?)?;
        let settings: GenerationConfig =
            files.optional_json("generation_config.json", context)?.unwrap_or_default();
        let mut end_tokens = config.end_tokens.clone();
        match settings.eos_token_id {
            Some(TokenList::One(token)) => end_tokens.push(token),
            Some(TokenList::Several(tokens)) => end_tokens.extend(tokens),
            None => {}
        }
        let tokenizer = files.required("tokenizer.json", context)?;
        let (template, special) = generation::read_chat_template(&files, context)?;
        Ok(Self { files, config, tokenizer, template, special, end_tokens })
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
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.config.uses(tensor)));
        let tokens = Tokens::read_whole(&self.tokenizer)?;
        Ok(SharedModel(Arc::new(LoadedModel {
            decoder: self.config.load(&weights, &device, context)?,
            template: self.template.clone(),
            end_tokens: self.ends(&tokens),
            tokens,
            compute: compute.clone(),
            footprint: self.footprint_of(&weights),
            steps: 0.into(),
        })))
    }
}

impl Plan {
    fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open(&self.files, "", context)
    }

    /// Every token that any of the files calls the end.
    fn ends(&self, tokens: &Tokens) -> Vec<u32> {
        let named = self.special.eos.as_deref().and_then(|name| tokens.id(name));
        let mut ends: Vec<u32> = self.end_tokens.iter().copied().chain(named).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    fn footprint_of(&self, weights: &WeightFiles) -> Footprint {
        let config = &self.config;
        let rows = PROMPT_ROWS + TEXTS;
        // Logits are made as a tensor and handed on as vectors.
        let logits = Bytes((2 * 4 * TEXTS as u64).saturating_mul(config.vocabulary as u64));
        let scratch = config.scratch(rows, config.context.min(CACHE_TOKENS)) + logits + THREAD_SCRATCH;
        let caches = config.cache_bytes(CACHE_TOKENS.min(config.context.saturating_mul(TEXTS)));
        Footprint {
            shared: weights.bytes_in_memory(|tensor| config.uses(tensor)),
            per_worker: caches + scratch,
        }
    }
}
