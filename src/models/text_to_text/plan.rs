//! A text to text model as its small files describe it, before its weights are read.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use model_actors::{Bytes, Footprint, GenerateText, LoadContext, LoadStage, Prompt, TextToText};

use super::LoadedModel;
use crate::architecture;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generation::{self, ChatTemplate, SpecialTokens};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::limits::GenerationLimits;
use crate::loader::{self, GenerationSettings};
use crate::models::config_file;
use crate::models::continuous_batching;
use crate::models::decoder::{DecoderConfig, FAMILIES};
use crate::models::generation_config::GenerationConfig;
use crate::models::passes::{PROMPT_ROWS, THREAD_SCRATCH};
use crate::source::{Files, read_json};
use crate::tokens::{TokenizerFiles, Tokens, special_names};
use crate::weights::WeightFiles;

/// The capability's name in errors.
const CAPABILITY: &str = "text to text";

/// Memory that tokenizing takes for each token that there is room for: prompts of a few more are tokenized whole, in some
/// fifty bytes for each of theirs.
const TOKENIZING: u64 = 512;

/// A model as its small files describe it.
pub(crate) struct TextToTextPlan {
    files: Files,
    config: DecoderConfig,
    kind: Kind,
    template: Option<ChatTemplate>,
    special: SpecialTokens,
    /// The ends that a GGUF file names.
    end_tokens: Vec<u32>,
    settings: GenerationConfig,
    generation: GenerationSettings,
    /// Of the tokenizer, once it is loaded.
    bytes_per_token: OnceLock<Option<usize>>,
}

/// Kinds of files that a model is in.
enum Kind {
    /// `config.json`, `tokenizer.json` and safetensors.
    Folder { tokenizer: TokenizerFiles },
    /// One file with everything, unless a directory or repository was named that has a `tokenizer.json` too.
    Gguf { file: GgufFile, tokenizer: Option<TokenizerFiles> },
}

impl loader::LoadPlan for TextToTextPlan {
    type Capability = TextToText;
    type Loaded = LoadedModel;
    const CONTINUOUS: bool = true;
    const EIGHT_BIT: bool = true;

    fn read(files: Files, context: &LoadContext) -> Result<Self> {
        match files.gguf(context)? {
            Some(path) => Self::read_gguf(files, &path, context),
            None => Self::read_folder(files, context),
        }
    }

    fn with_generation(self, generation: GenerationSettings) -> Self {
        Self { generation, ..self }
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn check(&self, request: &GenerateText) -> Result<()> {
        match (&request.prompt, self.bytes_per_token.get()) {
            // A template may leave out what it likes of messages.
            (Prompt::Raw(text), Some(Some(bytes))) => {
                let least = text.len().div_ceil(*bytes.max(&1));
                self.generation.limits.room_after(least, self.config.context).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        self.footprint_now(compute, context)
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let device = compute.open()?;
        let (decoder, tokens) = match &self.kind {
            Kind::Folder { tokenizer } => {
                let weights = WeightFiles::open(&self.files, "", context)?;
                let bytes = weights.bytes_on_disk(|tensor| self.config.uses(tensor));
                context.begin(LoadStage::Load, bytes);
                let tokens = Tokens::read_whole(tokenizer)?;
                let decoder = self.config.load(&weights, &device, context)?;
                weights.check_all_read(|tensor| self.config.has_no_effect(tensor))?;
                (decoder, tokens)
            }
            Kind::Gguf { file, tokenizer } => {
                context.begin(LoadStage::Load, file.bytes());
                let tokens = match tokenizer {
                    Some(files) => Tokens::read_whole(files)?,
                    None => generation::tokens_of(&file.tokenizer()?)
                        .map_err(|reason| Error::InvalidTokenizer { file: file.path().to_owned(), reason })?,
                };
                let arithmetic = match self.generation.exact_products {
                    true => Arithmetic::Exact,
                    false => Arithmetic::EightBit,
                };
                let decoder = self.config.load_gguf(file, &device, arithmetic, context)?;
                file.check_all_read(self.files.unread, |tensor| self.config.has_no_effect(tensor))?;
                (decoder, tokens)
            }
        };
        let invalid = |reason| Error::InvalidTokenizer { file: self.tokenizer_file().to_owned(), reason };
        let named = match &self.kind {
            Kind::Gguf { tokenizer: None, .. } => Vec::new(),
            _ => special_names(&self.files, context)?,
        };
        let split = self.generation.split_special_tokens;
        let tokens = tokens.splitting_special_tokens(split, &named).map_err(invalid)?;
        self.bytes_per_token.get_or_init(|| tokens.bytes_per_token());
        Ok(LoadedModel {
            decoder,
            template: self.template.clone(),
            end_tokens: self.ends(&tokens),
            settings: self.settings.clone(),
            tokens,
            limits: self.generation.limits,
            compute: compute.clone(),
            footprint: compute.counted(self.footprint_now(compute, context)?),
            steps: 0.into(),
        })
    }
}

impl TextToTextPlan {
    fn read_folder(files: Files, context: &LoadContext) -> Result<Self> {
        let file = config_file::find(&files, "config.json", FAMILIES, CAPABILITY, context)?;
        let json = read_json(&file)?;
        if let Some(found) = architecture::with_other_head(&json) {
            return Err(architecture::unsupported(FAMILIES, CAPABILITY, found));
        }
        let config = architecture::find_whole(FAMILIES, CAPABILITY, &file, &json, files.unread)?;
        let settings = GenerationConfig::read(&files, context)?;
        let tokenizer = TokenizerFiles::find(&files, "", context)?;
        let (template, special) = generation::read_chat_template(&files, context)?;
        let (kind, generation) = (Kind::Folder { tokenizer }, GenerationSettings::default());
        Ok(Self {
            files,
            config,
            kind,
            template,
            special,
            end_tokens: Vec::new(),
            settings,
            generation,
            bytes_per_token: OnceLock::new(),
        })
    }

    fn read_gguf(files: Files, path: &Path, context: &LoadContext) -> Result<Self> {
        let part = |name: &str| files.gguf_part(path, name, context);
        let file = GgufFile::open(path)?.with_parts(part)?;
        let config = DecoderConfig::from_gguf(&file)?;
        let tokenizer = TokenizerFiles::whole(&files, context)?;
        let (mut template, mut special) = generation::read_chat_template(&files, context)?;
        let mut end_tokens = config.end_tokens.clone();
        // A file may come without a tokenizer where there is one beside it.
        let own = match (file.tokenizer(), &tokenizer) {
            (Ok(own), _) => Some(own),
            (Err(_), Some(_)) => None,
            (Err(Error::InvalidGguf { file, reason }), None) => {
                let reason = format!(
                    "{reason}; take a file that has one, or load a directory that holds this file and the model's \
                     tokenizer.json"
                );
                return Err(Error::InvalidGguf { file, reason });
            }
            (Err(error), None) => return Err(error),
        };
        if let Some(own) = own {
            end_tokens.extend(own.ends());
            if special == SpecialTokens::default() {
                special = generation::special_tokens_of(&own);
            }
            if let (None, Some(source)) = (&template, &own.chat_template) {
                template = Some(ChatTemplate::new(source, special.clone(), path)?);
            }
        }
        let (kind, generation) = (Kind::Gguf { file, tokenizer }, GenerationSettings::default());
        Ok(Self {
            files,
            config,
            kind,
            template,
            special,
            end_tokens,
            settings: GenerationConfig::default(),
            generation,
            bytes_per_token: OnceLock::new(),
        })
    }

    /// The file that has the tokenizer.
    fn tokenizer_file(&self) -> &Path {
        match &self.kind {
            Kind::Folder { tokenizer } | Kind::Gguf { tokenizer: Some(tokenizer), .. } => tokenizer.path(),
            Kind::Gguf { file, tokenizer: None } => file.path(),
        }
    }

    /// The tokens that end a text; of a GGUF file, every one that any of the files calls the end.
    fn ends(&self, tokens: &Tokens) -> Vec<u32> {
        let named = self.special.eos.as_deref().and_then(|name| tokens.id(name));
        match &self.kind {
            Kind::Folder { .. } => self.settings.ends(&self.config.end_tokens, named),
            Kind::Gguf { .. } => {
                let mut ends: Vec<u32> = self.end_tokens.iter().copied().chain(named).collect();
                ends.sort_unstable();
                ends.dedup();
                ends
            }
        }
    }

    fn footprint_now(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        let config = &self.config;
        let shared = match &self.kind {
            Kind::Folder { .. } => {
                let weights = WeightFiles::open(&self.files, "", context)?;
                weights.bytes_in_memory(
                    |tensor| config.uses(tensor),
                    |tensor| compute.packs() && config.packs(tensor),
                )
            }
            Kind::Gguf { file, .. } => file.bytes(),
        };
        let GenerationLimits { kv_cache_tokens, max_sequences } = self.generation.limits;
        // Logits are made as a tensor and handed on as vectors.
        let logits = Bytes((2 * 4 * max_sequences as u64).saturating_mul(config.vocabulary as u64));
        let scratch = config.scratch(PROMPT_ROWS + max_sequences, config.context.min(kv_cache_tokens));
        let held = continuous_batching::most_held(self.generation.limits, config.context);
        // With the numbers of the tokens themselves.
        let caches = config.cache_bytes(held, max_sequences) + Bytes(4 * held as u64);
        let tokenizing = Bytes(TOKENIZING.saturating_mul(config.context.min(kv_cache_tokens) as u64));
        Ok(Footprint::new(shared, caches + scratch + logits + tokenizing + THREAD_SCRATCH))
    }
}
