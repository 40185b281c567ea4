//! Settings of late interaction in a model's files: those of Stanford's ColBERT (`artifact.metadata` beside an encoder with a layer) and
//! those of PyLate (`config_sentence_transformers.json` beside modules). A setting that changes the result and is not read is
//! refused.

use std::path::{Path, PathBuf};

use model_actors::LoadContext;
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::{parse, refuse_unlisted};
use crate::error::{Error, Result};
use crate::models::config_file::{invalid, unsupported};
use crate::pooling::Modules;
use crate::source::{Files, Unread, read_json};
use crate::tokens::named_token;

/// A model of late interaction as its small files describe it.
pub(in super::super) struct LateInteractionConfig {
    pub(super) query: SideConfig,
    pub(super) document: SideConfig,
    /// Queries are filled up, with tokens that others attend to or not.
    pub(super) expansion: Option<bool>,
    pub(super) skipped: Skipped,
    pub(super) layers: Layers,
    pub(super) modules: Modules,
    /// Names of tokens: the one that fills queries up, the one for what is unknown, and the one at the end.
    pub(super) mask: Option<String>,
    pub(super) unknown: Option<String>,
    pub(super) end: Option<String>,
}

/// One side of a search.
pub(super) struct SideConfig {
    file: PathBuf,
    /// Token after the first; empty for none.
    pub(super) marker: String,
    /// Maximum number of tokens, and the number that queries are filled up to.
    pub(super) longest: usize,
}

/// Words of documents that get no vector.
pub(super) enum Skipped {
    /// Tokens by their entries in the vocabulary; one that is not there stands for what is unknown.
    Tokens(Vec<String>),
    /// The first token of each of these texts.
    FirstTokens(Vec<&'static str>),
}

/// Where the layers after the encoder are.
pub(super) enum Layers {
    /// Those of `modules.json`.
    Modules,
    /// One in the encoder's file, for vectors of this length if it is told.
    WithEncoder(Option<usize>),
}

/// `string.punctuation` of Python.
const PUNCTUATION: [&str; 32] = [
    "!", "\"", "#", "$", "%", "&", "'", "(", ")", "*", "+", ",", "-", ".", "/", ":", ";", "<", "=", ">", "?",
    "@", "[", "\\", "]", "^", "_", "`", "{", "|", "}", "~",
];
/// The length of queries, of documents as PyLate has it and as Stanford's ColBERT has it, where the files tell none.
const QUERY: usize = 32;
const DOCUMENT: usize = 180;
const DOCUMENT_OF_STANFORD: usize = 220;
/// Maximum number of tokens that each query is filled up to, however short it is: far more than any model has.
const MAX_QUERY_TOKENS: usize = 1024;
/// Name of the architecture in the files of Stanford's ColBERT.
const STANFORD: &str = "HF_ColBERT";
const METADATA: &str = "artifact.metadata";
const SENTENCES: &str = "config_sentence_transformers.json";

/// `artifact.metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    query_token_id: Option<String>,
    doc_token_id: Option<String>,
    query_maxlen: Option<usize>,
    doc_maxlen: Option<usize>,
    attend_to_mask_tokens: bool,
    mask_punctuation: Option<bool>,
    dim: Option<usize>,
    similarity: Option<String>,
    interaction: Option<String>,
}

const READ: [&str; 9] = [
    "query_token_id",
    "doc_token_id",
    "query_maxlen",
    "doc_maxlen",
    "attend_to_mask_tokens",
    "mask_punctuation",
    "dim",
    "similarity",
    "interaction",
];

/// Settings of training, indexes and searches, of which no vector depends on one; `relu` and its like do.
const NO_EFFECT: [(&str, &str); 49] = [
    ("query_token", "*"),
    ("doc_token", "*"),
    ("bsize", "*"),
    ("accumsteps", "*"),
    ("lr", "*"),
    ("maxsteps", "*"),
    ("save_every", "*"),
    ("resume", "*"),
    ("resume_optimizer", "*"),
    ("warmup", "*"),
    ("warmup_bert", "*"),
    ("nway", "*"),
    ("use_ib_negatives", "*"),
    ("distillation_alpha", "*"),
    ("ignore_scores", "*"),
    ("model_name", "*"),
    ("fixed_lr", "*"),
    ("schedule_free", "*"),
    ("schedule_free_wd", "*"),
    ("kldiv_loss", "*"),
    ("marginmse_loss", "*"),
    ("kldiv_weight", "*"),
    ("marginmse_weight", "*"),
    ("ib_loss_weight", "*"),
    ("normalise_training_scores", "*"),
    ("normalization_method", "*"),
    ("quant_aware", "*"),
    ("highest_quant_level", "*"),
    ("lowest_quant_level", "*"),
    ("index_path", "*"),
    ("index_bsize", "*"),
    ("nbits", "*"),
    ("kmeans_niters", "*"),
    ("pool_factor", "1"),
    ("clustering_mode", "*"),
    ("protected_tokens", "*"),
    ("ncells", "*"),
    ("centroid_score_threshold", "*"),
    ("ndocs", "*"),
    ("load_index_with_mmap", "*"),
    ("checkpoint", "*"),
    ("triples", "*"),
    ("collection", "*"),
    ("queries", "*"),
    ("index_name", "*"),
    ("meta", "*"),
    ("version", "*"),
    ("only_approx", "*"),
    ("avoid_fork_if_possible", "*"),
];

/// Settings of a run of a program.
const OF_RUNS: [(&str, &str); 10] = [
    ("overwrite", "*"),
    ("root", "*"),
    ("experiment", "*"),
    ("index_root", "*"),
    ("name", "*"),
    ("rank", "*"),
    ("nranks", "*"),
    ("amp", "*"),
    ("total_visible_gpus", "*"),
    ("gpus", "*"),
];

/// `config_sentence_transformers.json` as PyLate writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PyLate {
    similarity_fn_name: Option<String>,
    query_prefix: Option<String>,
    document_prefix: Option<String>,
    query_length: Option<usize>,
    document_length: Option<usize>,
    attend_to_expansion_tokens: Option<bool>,
    do_query_expansion: Option<bool>,
    skiplist_words: Option<Vec<String>>,
}

const PYLATE_READ: [&str; 10] = [
    "similarity_fn_name",
    "query_prefix",
    "document_prefix",
    "query_length",
    "document_length",
    "attend_to_expansion_tokens",
    "do_query_expansion",
    "skiplist_words",
    "prompts",
    "default_prompt_name",
];

/// Refuses a setting that has another value.
fn only(file: &Path, name: &'static str, found: Option<&str>, value: &'static str) -> Result<()> {
    match found {
        Some(other) if other != value => Err(unsupported(file, name, other, value)),
        _ => Ok(()),
    }
}

impl SideConfig {
    fn checked(file: &Path, marker: String, longest: usize) -> Result<Self> {
        match longest {
            0 => Err(invalid(file, "a length of queries or documents is 0")),
            _ => Ok(Self { file: file.to_owned(), marker, longest }),
        }
    }

    /// The number of a token with which texts are read, which needs a row of the encoder's.
    pub(super) fn row(&self, number: Option<u32>, token: &str, rows: usize) -> Result<u32> {
        let reason = match number {
            Some(number) if usize::try_from(number).is_ok_and(|number| number < rows) => return Ok(number),
            Some(number) => format!("its number is {number}, and the model has {rows} rows"),
            None => "the tokenizer lacks it".to_owned(),
        };
        Err(invalid(&self.file, format!("texts are read with the token {token:?}: {reason}")))
    }

    /// The error for an encoder without the layer that makes vectors of its rows.
    pub(super) fn without_layer(&self) -> Error {
        invalid(&self.file, "the layer linear.weight makes vectors of no length")
    }
}

impl LateInteractionConfig {
    /// Reads what the files of a model say of late interaction; nothing of one that has none. `names` are the architectures
    /// of its configuration, and `longest` is the number of tokens that its encoder takes.
    pub(in super::super) fn read(
        files: &Files,
        modules: &Modules,
        names: &[String],
        longest: usize,
        context: &LoadContext,
    ) -> Result<Option<Self>> {
        let is_stanfords = names.first().is_some_and(|name| name == STANFORD);
        let path = files.optional(SENTENCES, context)?;
        let json: Value = path.as_deref().map(read_json).transpose()?.unwrap_or_default();
        let says_so = json.get("similarity_fn_name").and_then(Value::as_str) == Some("MaxSim");
        let is_pylates = modules.have_token_layers() || says_so && !modules.are_bare();
        if is_pylates && modules.is_static {
            return Err(unsupported(
                Path::new(SENTENCES),
                "late interaction",
                "over a table of tokens",
                "an encoder",
            ));
        }
        if says_so && modules.are_bare() && !is_stanfords {
            let layers = "with the layers of a modules.json, which is not there";
            return Err(unsupported(Path::new(SENTENCES), "similarity_fn_name", "MaxSim", layers));
        }
        let found = if is_pylates {
            let file = path.unwrap_or_else(|| PathBuf::from(SENTENCES));
            Self::of_pylate(files, &file, &json, modules)?
        } else if is_stanfords && modules.are_bare() {
            Self::of_stanford(files, modules, context)?
        } else {
            return Ok(None);
        };
        let token = |name| named_token(files, &modules.transformer, name, context);
        let (mask, unknown, end) = (token("mask_token")?, token("unk_token")?, token("eos_token")?);
        if found.expansion.is_some() {
            let file = PathBuf::from(format!("{}tokenizer_config.json", modules.transformer));
            only(&file, "padding_side", token("padding_side")?.as_deref(), "right")?;
        }
        let mut found = Self { mask, unknown, end, ..found };
        for side in [&mut found.query, &mut found.document] {
            side.longest = side.longest.min(longest);
        }
        if found.expansion.is_some() && found.query.longest > MAX_QUERY_TOKENS {
            let reason = format!(
                "queries are filled up to {} tokens; {MAX_QUERY_TOKENS} are the most",
                found.query.longest
            );
            return Err(invalid(&found.query.file, reason));
        }
        Ok(Some(found))
    }

    fn of_pylate(files: &Files, file: &Path, json: &Value, modules: &Modules) -> Result<Self> {
        if files.unread == Unread::Refused {
            let no_effect = [("__version__", "*"), ("model_type", "*")];
            refuse_unlisted(file, json, &PYLATE_READ, &no_effect)?;
        }
        let config: PyLate = match json {
            Value::Null => PyLate::default(),
            json => parse(file, json)?,
        };
        only(file, "similarity_fn_name", config.similarity_fn_name.as_deref(), "MaxSim")?;
        let query = config.query_prefix.unwrap_or_else(|| "[Q] ".to_owned());
        let document = config.document_prefix.unwrap_or_else(|| "[D] ".to_owned());
        let is_seen = config.attend_to_expansion_tokens.unwrap_or(false);
        let words = || PUNCTUATION.map(str::to_owned).to_vec();
        Ok(Self {
            query: SideConfig::checked(file, query, config.query_length.unwrap_or(QUERY))?,
            document: SideConfig::checked(file, document, config.document_length.unwrap_or(DOCUMENT))?,
            expansion: config.do_query_expansion.unwrap_or(true).then_some(is_seen),
            skipped: Skipped::Tokens(config.skiplist_words.unwrap_or_else(words)),
            layers: Layers::Modules,
            modules: modules.clone(),
            mask: None,
            unknown: None,
            end: None,
        })
    }

    fn of_stanford(files: &Files, modules: &Modules, context: &LoadContext) -> Result<Self> {
        let (config, file) = match files.optional(METADATA, context)? {
            Some(path) => {
                let json: Value = read_json(&path)?;
                if files.unread == Unread::Refused {
                    refuse_unlisted(&path, &json, &READ, &[&NO_EFFECT[..], &OF_RUNS[..]].concat())?;
                }
                (parse(&path, &json)?, path)
            }
            None => (Metadata::default(), PathBuf::from(METADATA)),
        };
        let file = file.as_path();
        only(file, "similarity", config.similarity.as_deref(), "cosine")?;
        only(file, "interaction", config.interaction.as_deref(), "colbert")?;
        let query = config.query_token_id.unwrap_or_else(|| "[unused0]".to_owned());
        let document = config.doc_token_id.unwrap_or_else(|| "[unused1]".to_owned());
        let skips = config.mask_punctuation.unwrap_or(true);
        Ok(Self {
            query: SideConfig::checked(file, query, config.query_maxlen.unwrap_or(QUERY))?,
            document: SideConfig::checked(file, document, config.doc_maxlen.unwrap_or(DOCUMENT_OF_STANFORD))?,
            expansion: Some(config.attend_to_mask_tokens),
            skipped: Skipped::FirstTokens(if skips { PUNCTUATION.to_vec() } else { Vec::new() }),
            layers: Layers::WithEncoder(config.dim),
            modules: modules.clone(),
            mask: None,
            unknown: None,
            end: None,
        })
    }

    /// Maximum number of tokens of any text.
    pub(in super::super) fn longest(&self) -> usize {
        self.query.longest.max(self.document.longest)
    }

    /// Refuses queries filled up with tokens that none attends to, for an encoder that cannot leave them out.
    pub(in super::super) fn check_encoder(&self, hides_tokens: bool) -> Result<()> {
        match self.expansion {
            Some(false) if !hides_tokens => {
                let what = "attend_to_expansion_tokens or attend_to_mask_tokens";
                Err(unsupported(&self.query.file, what, "false", "true, for this kind of model"))
            }
            _ => Ok(()),
        }
    }
}
