//! A reranking model as its small files describe it, before its weights are read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use model_actors::{Footprint, LoadContext, LoadStage, ModelFacts, Reranking};
use serde::Deserialize;

use super::{Architecture, CAPABILITY, FAMILIES, LoadedModel, PairEncoder, PairForm, ScoreActivation};
use crate::architecture::{self, parse};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::loader::{self, GenerationSettings};
use crate::models::config_file::{self, unsupported};
use crate::models::passes::{PASS_ROWS, THREAD_SCRATCH};
use crate::models::text_embedding::{SentenceConfig, TokenizerConfig};
use crate::source::{Files, read_json};
use crate::tokens::{TokenizerFiles, Tokens, special_names};
use crate::weights::WeightFiles;

/// Settings of the transformer's file of sentence-transformers that change the scores and are not read; each with the value
/// that has no effect.
const NOT_READ: [(&str, &str); 9] = [
    ("transformer_task", "\"sequence-classification\""),
    ("modality_config", r#"{"text": {"method": "forward", "method_output_name": "logits"}}"#),
    ("module_output_name", "\"scores\""),
    ("processing_kwargs", "{}"),
    ("query_length", "null"),
    ("document_length", "null"),
    ("query_expansion", "null"),
    ("config_args", "{}"),
    ("config_kwargs", "{}"),
];

/// Where a model's activation is named: in `config.json`, by sentence-transformers since version 4 or before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnActivation {
    sentence_transformers: Option<Named>,
    sbert_ce_default_activation_function: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    activation_fn: Option<String>,
}

const PROMPTS: &str = "config_sentence_transformers.json";

/// The file of that name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Prompts {
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
    activation_fn: Option<String>,
}

/// An entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// A model as its small files describe it.
pub(crate) struct RerankingPlan {
    files: Files,
    architecture: Box<dyn Architecture>,
    tokenizer: TokenizerFiles,
    /// Maximum number of tokens of a pair, special ones included.
    longest: usize,
    lowercase: bool,
    prompts: Prompts,
    instruction: Option<String>,
    /// Kind of the model, as its files call it.
    family: String,
    activation: ScoreActivation,
    split_special_tokens: bool,
}

impl loader::LoadPlan for RerankingPlan {
    type Capability = Reranking;
    type Loaded = LoadedModel;

    fn read(files: Files, settings: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let has_modules = has_modules(&files, context)?;
        let config = config_file::find(&files, "config.json", FAMILIES, CAPABILITY, context)?;
        let json = read_json(&config)?;
        let architecture = architecture::find_named(FAMILIES, CAPABILITY, &config, &json, files.unread)?;
        let own: OwnActivation = parse(&config, &json)?;
        // Without modules, sentence-transformers reads neither of the two.
        let (prompts, sentence) = match has_modules {
            true => (
                files.optional_json(PROMPTS, context)?.unwrap_or_default(),
                SentenceConfig::read(&files, "", &NOT_READ, context)?,
            ),
            false => (Prompts::default(), SentenceConfig::default()),
        };
        let names: TokenizerConfig =
            files.optional_json("tokenizer_config.json", context)?.unwrap_or_default();
        let longest = sentence.longest().unwrap_or(names.longest()).min(architecture.longest());
        Ok(Self {
            activation: activation(&config, prompts.activation_fn.as_deref(), &own)?,
            instruction: instruction(&prompts)?,
            prompts,
            family: architecture::name_in(&json),
            architecture,
            tokenizer: TokenizerFiles::find(&files, "", context)?,
            files,
            longest,
            lowercase: sentence.do_lower_case.unwrap_or(false),
            split_special_tokens: settings.split_special_tokens,
        })
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn facts(&self) -> Option<ModelFacts> {
        let facts = ModelFacts::new(self.family.as_str()).with_context(self.longest);
        Some(
            facts
                .with_prompts(self.prompts.prompts.clone())
                .with_default_prompt(self.prompts.default_prompt_name.clone()),
        )
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        Ok(self.footprint_of(compute, &WeightFiles::open(&self.files, "", context)?))
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let weights = WeightFiles::open(&self.files, "", context)?;
        let device = compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| self.architecture.uses(tensor)));
        let tokens = self.tokens(context)?.with_rows(self.architecture.vocabulary());
        let id = |token: &str| {
            let missing = || self.invalid(format!("it lacks the token {token:?}, an answer of the model"));
            tokens.id(token).ok_or_else(missing)
        };
        let scorer = self.architecture.load(&weights, &id, &device, context)?;
        weights.check_all_read(|tensor| self.architecture.has_no_effect(tensor))?;
        let (form, instruction) = (self.architecture.form(), self.instruction.clone());
        let pairs = PairEncoder::new(tokens, form, instruction, self.longest);
        Ok(LoadedModel {
            scorer,
            pairs: pairs.map_err(|reason| self.invalid(reason))?,
            activation: self.activation,
            compute: compute.clone(),
            footprint: compute.counted(self.footprint_of(compute, &weights)),
            longest: self.longest,
        })
    }
}

impl RerankingPlan {
    fn invalid(&self, reason: String) -> Error {
        Error::InvalidTokenizer { file: self.tokenizer.path().to_owned(), reason }
    }

    fn tokens(&self, context: &LoadContext) -> Result<Tokens> {
        match self.architecture.form() {
            PairForm::Texts => Tokens::read(&self.tokenizer, self.longest, self.lowercase),
            PairForm::Prompt(_) => {
                let named = special_names(&self.files, context)?;
                let tokens = Tokens::read_whole(&self.tokenizer)?;
                let tokens = tokens.splitting_special_tokens(self.split_special_tokens, &named);
                tokens.map_err(|reason| self.invalid(reason))
            }
        }
    }

    fn footprint_of(&self, compute: &Compute, weights: &WeightFiles) -> Footprint {
        let scratch = self.architecture.scratch(PASS_ROWS.max(self.longest), self.longest);
        let shared = weights.bytes_in_memory(
            |tensor| self.architecture.uses(tensor),
            |tensor| compute.packs() && self.architecture.packs(tensor),
        );
        Footprint::new(shared, scratch + THREAD_SCRATCH)
    }
}

/// The activation of a model with one label, as sentence-transformers chooses it.
fn activation(config: &Path, newest: Option<&str>, own: &OwnActivation) -> Result<ScoreActivation> {
    let named = own.sentence_transformers.as_ref().and_then(|own| own.activation_fn.as_deref());
    let name = newest.or(named).or(own.sbert_ce_default_activation_function.as_deref());
    let Some(name) = name else { return Ok(ScoreActivation::Sigmoid) };
    let class = name.strip_prefix("torch.").and_then(|class| class.rsplit('.').next());
    match class {
        Some("Sigmoid") => Ok(ScoreActivation::Sigmoid),
        Some("Identity") => Ok(ScoreActivation::Identity),
        _ => Err(unsupported(config, "activation_fn", name, "Sigmoid and Identity of torch.nn.modules")),
    }
}

/// The prompt before each query.
fn instruction(prompts: &Prompts) -> Result<Option<String>> {
    let Some(name) = &prompts.default_prompt_name else { return Ok(None) };
    match prompts.prompts.get(name) {
        Some(prompt) => Ok(Some(prompt.clone())),
        None => Err(config_file::invalid(
            Path::new(PROMPTS),
            format!("it has no prompt {name:?}, which is to be the default"),
        )),
    }
}

/// True for a model that sentence-transformers has saved.
///
/// # Errors
/// [`Error::UnsupportedSetting`] for one with parts after the transformer.
fn has_modules(files: &Files, context: &LoadContext) -> Result<bool> {
    let Some(modules) = files.optional_json::<Vec<Module>>("modules.json", context)? else {
        return Ok(false);
    };
    let is_own = |module: &Module| {
        module.kind.ends_with(".Transformer") && matches!(module.path.trim_end_matches('/'), "" | ".")
    };
    match modules.iter().position(|module| !is_own(module)) {
        None if modules.len() == 1 => Ok(true),
        place => {
            let found = modules.get(place.unwrap_or(0)).map_or("none", |module| module.kind.as_str());
            let supported = "one Transformer in the model's folder";
            Err(unsupported(Path::new("modules.json"), "the module", found, supported))
        }
    }
}
