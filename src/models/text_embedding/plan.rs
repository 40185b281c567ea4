//! An embedding model as its small files describe it, before its weights are read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use model_actors::{Bytes, Footprint, LoadContext, LoadStage, ModelFacts, TextEmbedding};
use serde::Deserialize;
use serde_json::Value;

use super::bge_m3::TokenOutputs;
use super::late_interaction::{LateInteraction, LateInteractionConfig};
use super::static_embedding::StaticEmbedding;
use super::{Architecture, CAPABILITY, FAMILIES, LoadedModel, Task};
use crate::architecture::{self, parse, refuse_listed};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::loader::{self, GenerationSettings, beside};
use crate::models::config_file;
use crate::models::passes::{PASS_ROWS, THREAD_SCRATCH};
use crate::models::peft::PeftAdapter;
use crate::pooling::{Head, Modules};
use crate::source::{Files, Unread, read_json};
use crate::tokens::{TokenizerFiles, Tokens};
use crate::weights::WeightFiles;

/// Files in which sentence-transformers has put the settings of its first module, the newest first.
const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// One of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::models) struct SentenceConfig {
    pub(in crate::models) max_seq_length: Option<usize>,
    pub(in crate::models) do_lower_case: Option<bool>,
    /// Settings that the tokenizer is made with.
    #[serde(alias = "tokenizer_args")]
    processor_kwargs: ProcessorSettings,
}

/// Settings of a tokenizer in such a file, which go before those of its own files.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProcessorSettings {
    model_max_length: Option<usize>,
}

/// Settings of such a file that change the vectors and are not read; each with the value that has no effect.
const SENTENCE_NOT_READ: [(&str, &str); 9] = [
    ("transformer_task", "\"feature-extraction\""),
    ("modality_config", r#"{"text": {"method": "forward", "method_output_name": "last_hidden_state"}}"#),
    ("module_output_name", "\"token_embeddings\""),
    ("processing_kwargs", "{}"),
    ("query_length", "null"),
    ("document_length", "null"),
    ("query_expansion", "null"),
    ("config_args", "{}"),
    ("config_kwargs", "{}"),
];

/// Tables of such a file whose settings are not read, but for those that are listed: the others of these have no effect.
const SENTENCE_TABLES: [(&str, &[&str]); 4] = [
    ("processor_kwargs", &["model_max_length", "use_fast", "trust_remote_code", "revision"]),
    ("tokenizer_args", &["model_max_length", "use_fast", "trust_remote_code", "revision"]),
    ("model_kwargs", MODEL_SETTINGS),
    ("model_args", MODEL_SETTINGS),
];
const MODEL_SETTINGS: &[&str] = &[
    "trust_remote_code",
    "revision",
    "code_revision",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "add_pooling_layer",
    "use_safetensors",
    "low_cpu_mem_usage",
    "unpad_inputs",
    "use_memory_efficient_attention",
];

/// Refuses a setting in one of these tables that is not listed.
fn refuse_tables(file: &Path, config: &Value) -> Result<()> {
    for (name, listed) in SENTENCE_TABLES {
        let table = config.get(name).and_then(Value::as_object);
        let other = table.into_iter().flatten().find(|(setting, _)| !listed.contains(&setting.as_str()));
        if let Some((setting, value)) = other {
            let setting = format!("{name}.{setting}");
            return Err(Error::UnreadSetting { file: file.to_owned(), setting, found: value.to_string() });
        }
    }
    Ok(())
}

impl SentenceConfig {
    /// Length that texts are cut to.
    pub(in crate::models) fn longest(&self) -> Option<usize> {
        self.processor_kwargs.model_max_length.or(self.max_seq_length)
    }

    /// Reads the file of a folder. A setting of `not_read` is refused unless it has the value beside it.
    pub(in crate::models) fn read(
        files: &Files,
        folder: &str,
        not_read: &[(&str, &str)],
        context: &LoadContext,
    ) -> Result<Self> {
        for name in SENTENCE_CONFIGS {
            if let Some(path) = files.optional(&format!("{folder}{name}"), context)? {
                let config: Value = read_json(&path)?;
                if files.unread == Unread::Refused {
                    refuse_listed(&path, &config, not_read)?;
                    refuse_tables(&path, &config)?;
                }
                return parse(&path, &config);
            }
        }
        Ok(Self::default())
    }
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::models) struct TokenizerConfig {
    /// "None" is written as a number beyond any integer.
    model_max_length: Option<f64>,
    /// True if each text ends with the end token.
    add_eos_token: Option<bool>,
    eos_token: Option<Token>,
    auto_map: Option<AutoMap>,
}

/// Code of a repository's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AutoMap {
    #[serde(rename = "AutoTokenizer")]
    tokenizer: Option<Value>,
}

/// A token, or a table of its properties.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Token {
    Written(String),
    Described { content: String },
}

impl TokenizerConfig {
    /// The length that texts are cut to.
    pub(in crate::models) fn longest(&self) -> usize {
        // The cast saturates, so "none" becomes the largest number there is.
        self.model_max_length.map_or(usize::MAX, |length| length as usize)
    }

    /// The token that ends each text beside what the tokenizer's own file says. transformers reads `add_eos_token` only
    /// where there is no `tokenizer.json`; a tokenizer of the repository's own code reads it in any case.
    fn closing(self, has_file: bool) -> Option<String> {
        let is_own = self.auto_map.is_some_and(|code| code.tokenizer.is_some());
        let adds = self.add_eos_token == Some(true) && (is_own || !has_file);
        self.eos_token.filter(|_| adds).map(|token| match token {
            Token::Written(content) | Token::Described { content } => content,
        })
    }
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PromptConfig {
    pub(super) prompts: BTreeMap<String, String>,
    pub(super) default_prompt_name: Option<String>,
    /// Dimensions that are kept unless others are asked for.
    pub(super) truncate_dim: Option<usize>,
}

/// Settings of `config.json` that every family may have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shared {
    /// Dimensions of shorter vectors.
    matryoshka_dimensions: Option<Vec<usize>>,
    /// The length to which texts are cut where no other file names one, also of models that take longer ones.
    max_position_embeddings: Option<usize>,
    architectures: Option<Vec<String>>,
}

/// A model as its small files describe it.
pub(crate) struct TextEmbeddingPlan {
    pub(super) files: Files,
    pub(super) architecture: Box<dyn Architecture>,
    pub(super) modules: Modules,
    pub(super) tokenizer: TokenizerFiles,
    /// The token that ends each text.
    pub(super) closing: Option<String>,
    /// Maximum number of tokens of a text, special ones included.
    pub(super) longest: usize,
    pub(super) lowercase: bool,
    pub(super) prompts: PromptConfig,
    /// The dimensions that vectors may be shortened to, if the model lists them.
    pub(super) shorter: Option<Vec<usize>>,
    late_interaction: Option<LateInteractionConfig>,
    /// Kind of the model, as its files call it.
    family: String,
    /// Of a model that has been loaded.
    facts: OnceLock<ModelFacts>,
}

impl loader::LoadPlan for TextEmbeddingPlan {
    type Capability = TextEmbedding;
    type Loaded = LoadedModel;
    const EIGHT_BIT: bool = true;

    fn read(files: Files, _: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let modules = Modules::read(&files, context)?;
        let folder = modules.transformer.clone();
        let (architecture, shared, family) = read_architecture(&files, &modules, context)?;
        let modules = match architecture.own_pooling() {
            Some(pooling) => modules.pooled_by_own_code(pooling),
            None => modules,
        };
        let Shared { matryoshka_dimensions: shorter, max_position_embeddings: places, architectures } =
            shared;
        let sentence = SentenceConfig::read(&files, &folder, &SENTENCE_NOT_READ, context)?;
        let names: TokenizerConfig =
            files.optional_json(&format!("{folder}tokenizer_config.json"), context)?.unwrap_or_default();
        let longest = sentence.longest().unwrap_or(names.longest().min(places.unwrap_or(usize::MAX)));
        let (tokenizer, longest) = match modules.is_static {
            true => {
                // The reference implementation reads this file alone, whatever the others say.
                let file = files.required(&format!("{folder}tokenizer.json"), context)?;
                let tokenizer = TokenizerFiles::from(file);
                let longest = tokenizer.own_longest()?.unwrap_or(usize::MAX);
                (tokenizer, longest)
            }
            false => (TokenizerFiles::find(&files, &folder, context)?, longest),
        };
        let has_file = files.optional(&format!("{folder}tokenizer.json"), context)?.is_some();
        let mut prompts: PromptConfig =
            files.optional_json("config_sentence_transformers.json", context)?.unwrap_or_default();
        for Task { name, instruction, .. } in architecture.tasks() {
            if let Some(instruction) = instruction {
                prompts.prompts.entry(name.clone()).or_insert_with(|| instruction.clone());
            }
        }
        let classes = architectures.unwrap_or_default();
        let late_interaction =
            LateInteractionConfig::read(&files, &modules, &classes, architecture.longest(), context)?;
        let longest = match &late_interaction {
            Some(late) => {
                late.check_encoder(architecture.hides_tokens())?;
                late.longest()
            }
            None => longest.min(architecture.longest()),
        };
        Ok(Self {
            files,
            architecture,
            modules,
            tokenizer,
            closing: names.closing(has_file),
            longest,
            lowercase: sentence.do_lower_case.unwrap_or(false),
            prompts,
            shorter,
            late_interaction,
            family,
            facts: OnceLock::new(),
        })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn facts(&self) -> Option<ModelFacts> {
        self.facts.get().cloned()
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(compute, &self.weights(context)?, &self.adapters(context)?))
    }

    #[cfg(feature = "cluster")]
    fn ask_for_rest(&self, context: &LoadContext) -> Result<()> {
        match &self.late_interaction {
            Some(_) => drop(self.modules.token_layers(&self.files, self.architecture.width(), context)?),
            None => drop(self.modules.head(&self.files, self.architecture.width(), context)?),
        }
        TokenOutputs::ask_for(&self.files, &self.modules.transformer, context)
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let weights = self.weights(context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let adapters = self.adapters(context)?;
        let encoder = || self.architecture.load_adapted(&weights, &adapters, &device, context);
        let (tokens, encoder) = beside(|| self.tokens(self.longest), encoder)?;
        adapters.iter().try_for_each(|adapter| adapter.check_all_read(|_| false))?;
        let late_interaction = self.late_interaction(&weights, context)?;
        let is_layer = |tensor: &str| late_interaction.is_some() && LateInteraction::is_layer(tensor);
        weights.check_all_read(|tensor| is_layer(tensor) || self.architecture.has_no_effect(tensor))?;
        let (head, token_outputs) = match &late_interaction {
            Some(_) => (Head::bare(self.architecture.width()), None),
            None => {
                let head = self.modules.head(&self.files, self.architecture.width(), context)?;
                (head, self.token_outputs(&tokens, context)?)
            }
        };
        self.facts.get_or_init(|| self.facts_with(&head, late_interaction.as_ref()));
        let beside = token_outputs.as_ref().map_or(Bytes(0), TokenOutputs::bytes)
            + late_interaction.as_ref().map_or(Bytes(0), LateInteraction::bytes);
        let footprint = self.footprint_of(compute, &weights, &adapters);
        let footprint = Footprint::new(footprint.shared + beside, footprint.per_worker);
        Ok(LoadedModel {
            head,
            token_outputs,
            late_interaction,
            encoder,
            ending: self.ending(&tokens)?,
            tokens,
            compute: compute.clone(),
            footprint: compute.counted(footprint),
            plan: Arc::clone(self),
        })
    }
}

/// The architecture, and the settings that every family may have.
fn read_architecture(
    files: &Files,
    modules: &Modules,
    context: &LoadContext,
) -> Result<(Box<dyn Architecture>, Shared, String)> {
    let folder = &modules.transformer;
    if modules.is_static {
        let table = Box::new(StaticEmbedding::read(files, folder, context)?);
        return Ok((table, Shared::default(), "static".to_owned()));
    }
    let config = config_file::find(files, &format!("{folder}config.json"), FAMILIES, CAPABILITY, context)?;
    let json = read_json(&config)?;
    let architecture = architecture::find_whole(FAMILIES, CAPABILITY, &config, &json, files.unread)?;
    Ok((architecture, parse(&config, &json)?, architecture::name_in(&json)))
}

impl TextEmbeddingPlan {
    /// The tokenizer, which cuts texts to so many tokens.
    fn tokens(&self, longest: usize) -> Result<Tokens> {
        let tokens = match (self.architecture.takes_bare_texts(), &self.closing) {
            (true, _) => Tokens::read_bare(&self.tokenizer, longest)?,
            (false, closing) => {
                let tokens = Tokens::read(&self.tokenizer, longest, self.lowercase)?;
                match closing {
                    Some(closing) => tokens.closed_by(closing, self.tokenizer.path())?,
                    None => tokens,
                }
            }
        };
        Ok(tokens.with_rows(self.architecture.vocabulary()))
    }

    fn late_interaction(
        &self,
        weights: &WeightFiles,
        context: &LoadContext,
    ) -> Result<Option<LateInteraction>> {
        let Some(config) = &self.late_interaction else { return Ok(None) };
        let sizes = (self.architecture.width(), self.architecture.vocabulary());
        let cut = |longest| self.tokens(longest);
        LateInteraction::read(config, (&self.files, weights), sizes, cut, context).map(Some)
    }

    fn facts_with(&self, head: &Head, late: Option<&LateInteraction>) -> ModelFacts {
        let dimensions = match late {
            Some(late) => late.width(),
            None => self.prompts.truncate_dim.unwrap_or(head.width()),
        };
        ModelFacts::new(self.family.as_str())
            .with_context(self.longest)
            .with_dimensions(dimensions)
            .with_shorter_dimensions(self.shorter.clone().unwrap_or_default())
            .with_prompts(self.prompts.prompts.clone())
            .with_default_prompt(self.prompts.default_prompt_name.clone())
            .with_pooling(head.poolings())
    }

    /// The text that the architecture wants written after each text.
    fn ending(&self, tokens: &Tokens) -> Result<String> {
        let Some(token) = self.architecture.ending() else { return Ok(String::new()) };
        tokens.written(token).ok_or_else(|| {
            let reason = format!("it lacks the token {token}, which is to end each text");
            Error::InvalidTokenizer { file: self.tokenizer.path().to_owned(), reason }
        })
    }

    /// The outputs of BGE-M3, whose files lie beside those of any model of its kind.
    fn token_outputs(&self, tokens: &Tokens, context: &LoadContext) -> Result<Option<TokenOutputs>> {
        match self.family.as_str() {
            "xlm-roberta" => {
                let (folder, width) = (&self.modules.transformer, self.architecture.width());
                TokenOutputs::read(&self.files, folder, width, tokens, context)
            }
            _ => Ok(None),
        }
    }

    fn weights(&self, context: &LoadContext) -> Result<WeightFiles> {
        WeightFiles::open(&self.files, &self.modules.transformer, context)
    }

    /// The adapters that lie in folders of their own.
    fn adapters(&self, context: &LoadContext) -> Result<Vec<PeftAdapter>> {
        let folders = self.architecture.tasks().iter().filter_map(|task| task.folder.as_ref());
        let folder = &self.modules.transformer;
        folders.map(|own| PeftAdapter::open(&self.files, &format!("{folder}{own}"), context)).collect()
    }

    fn footprint_of(&self, compute: &Compute, weights: &WeightFiles, adapters: &[PeftAdapter]) -> Footprint {
        let scratch = self.architecture.scratch(PASS_ROWS.max(self.longest), self.longest);
        let eight_bit = self.files.eight_bit;
        let shared = weights.bytes_in_memory(
            |tensor| self.architecture.uses(tensor),
            |tensor| compute.packs() && self.architecture.packs(tensor, eight_bit),
        );
        let shared = adapters.iter().fold(shared, |sum, adapter| sum + adapter.bytes());
        Footprint::new(shared, scratch + THREAD_SCRATCH)
    }
}
