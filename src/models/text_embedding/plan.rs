//! Everything about an embedding model that its small files tell, before its weights are read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model_actors::{Footprint, LoadContext};
use serde::Deserialize;

use super::{Architecture, PASS_TOKENS, THREAD_SCRATCH, find_architecture};
use crate::error::Result;
use crate::pooling::Modules;
use crate::source::{Files, read_json};
use crate::weights::WeightFiles;

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

/// `tokenizer_config.json`, of which only the length matters; "none" is written as a number beyond any integer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PromptConfig {
    pub(super) prompts: BTreeMap<String, String>,
    pub(super) default_prompt_name: Option<String>,
}

/// Everything about a model that its small files tell.
pub(super) struct Plan {
    pub(super) files: Files,
    pub(super) architecture: Box<dyn Architecture>,
    pub(super) modules: Modules,
    pub(super) tokenizer: PathBuf,
    /// Most tokens of a text, special ones included.
    pub(super) longest: usize,
    pub(super) lowercase: bool,
    pub(super) prompts: PromptConfig,
}

impl Plan {
    pub(super) fn read(files: Files, context: &LoadContext) -> Result<Self> {
        let modules = Modules::read(&files, context)?;
        let folder = modules.transformer.clone();
        let config = files.required(&format!("{folder}config.json"), context)?;
        let architecture = find_architecture(&config, &read_json(&config)?)?;
        let sentence: SentenceConfig =
            files.optional_json(&format!("{folder}sentence_bert_config.json"), context)?.unwrap_or_default();
        let longest = match sentence.max_seq_length {
            Some(longest) => longest,
            None => {
                let file = format!("{folder}tokenizer_config.json");
                let tokenizer: TokenizerConfig = files.optional_json(&file, context)?.unwrap_or_default();
                // The cast saturates, so "none" becomes the largest number there is.
                tokenizer.model_max_length.map_or(usize::MAX, |length| length as usize)
            }
        };
        let tokenizer = files.required(&format!("{folder}tokenizer.json"), context)?;
        let prompts = files.optional_json("config_sentence_transformers.json", context)?.unwrap_or_default();
        let longest = longest.min(architecture.longest());
        Ok(Self {
            files,
            architecture,
            modules,
            tokenizer,
            longest,
            lowercase: sentence.do_lower_case,
            prompts,
        })
    }

    pub(super) fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open(&self.files, &self.modules.transformer, context)
    }

    pub(super) fn footprint(&self, weights: &WeightFiles) -> Footprint {
        let scratch = self.architecture.scratch(PASS_TOKENS.max(self.longest), self.longest);
        let shared = weights.bytes_in_memory(|tensor| self.architecture.uses(tensor));
        Footprint { shared, per_worker: scratch + THREAD_SCRATCH }
    }
}
