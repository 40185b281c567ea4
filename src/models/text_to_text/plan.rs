//! A text to text model as its small files describe it, before its weights are read.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use candle_core::Device;
use model_actors::{Bytes, Footprint, GenerateText, LoadContext, LoadStage, Prompt, TextToText};

use super::LoadedModel;
use super::adapters::{self, Adapters};
use super::network::{Network, NetworkConfig};
use super::prefix::Prefixes;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generation::{self, ChatTemplate, PartMarks, SpecialTokens, TextSettings};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::limits::GenerationLimits;
use crate::loader::{self, GenerationSettings, beside};
use crate::models::continuous_batching;
use crate::models::generation_config::GenerationConfig;
use crate::models::gguf_text::{self, GgufText};
use crate::models::passes::THREAD_SCRATCH;
#[cfg(feature = "cluster")]
use crate::models::peft::PeftAdapter;
use crate::source::Files;
use crate::structured::Grammars;
use crate::tokens::{TokenizerFiles, Tokens, special_names};
use crate::weights::WeightFiles;

/// Memory that tokenizing takes for each token that there is room for: prompts of a few more are tokenized whole, in some
/// fifty bytes for each of theirs.
const TOKENIZING: u64 = 512;

/// A model as its small files describe it.
pub(crate) struct TextToTextPlan {
    files: Files,
    config: Arc<NetworkConfig>,
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
    const ADAPTERS: bool = true;

    fn read(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self> {
        match files.gguf(context)? {
            Some(path) => Self::read_gguf(files, &path, generation, context),
            None => Self::read_folder(files, generation, context),
        }
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn adapter(request: &GenerateText) -> Option<&str> {
        request.adapter.as_deref()
    }

    fn check(&self, request: &GenerateText) -> Result<()> {
        TextSettings::of(request, self.config.vocabulary())?;
        match (&request.prompt, self.bytes_per_token.get()) {
            // A template may leave out what it likes of messages.
            (Prompt::Raw(text), Some(Some(bytes))) => {
                let least = text.len().div_ceil(*bytes.max(&1));
                self.generation.limits.room_after(least, self.config.context()).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn footprint(&self, compute: &Compute, context: &LoadContext) -> Result<Footprint> {
        self.footprint_now(compute, context)
    }

    #[cfg(feature = "cluster")]
    fn ask_for_rest(&self, context: &LoadContext) -> Result<()> {
        special_names(&self.files, context).map(drop)
    }

    #[cfg(feature = "cluster")]
    fn ask_for_adapter(files: &Files, context: &LoadContext) -> Result<()> {
        PeftAdapter::open(files, "", context).map(drop)
    }

    fn load(self: &Arc<Self>, compute: &Compute, context: &LoadContext) -> Result<LoadedModel> {
        let device = compute.open()?;
        let named = match &self.kind {
            Kind::Folder { .. } => special_names(&self.files, context)?,
            Kind::Gguf { tokenizer, .. } => gguf_text::names(tokenizer.as_ref(), &self.files, context)?,
        };
        // A large vocabulary takes about as long as the weights of a small model.
        let (tokens, network) = beside(|| self.tokens(&named), || self.network(&device, context))?;
        self.bytes_per_token.get_or_init(|| tokens.bytes_per_token());
        let Footprint { shared, per_worker, .. } = self.footprint_now(compute, context)?;
        let trie = Grammars::bytes(self.config.vocabulary());
        let weights = network.bytes().map_or(shared, |weights| weights + trie);
        let footprint = compute.counted(Footprint::new(weights, per_worker));
        let limits = self.config.limited(self.generation.limits);
        let prefixes = network.decoder().and_then(|decoder| Prefixes::of(decoder, limits, context));
        let end_tokens = self.ends(&tokens);
        let grammars = Grammars::new(&tokens, &end_tokens, self.config.vocabulary());
        Ok(LoadedModel {
            network,
            prefixes,
            template: self.template.clone(),
            end_tokens,
            grammars,
            adapters: Adapters::new(self.files.adapters.clone(), self.config.clone(), device, context),
            marks: self.template.as_ref().map(|one| PartMarks::of_template(one.text())).unwrap_or_default(),
            settings: self.settings.clone(),
            tokens,
            limits,
            compute: compute.clone(),
            footprint,
            steps: 0.into(),
        })
    }
}

impl TextToTextPlan {
    fn read_folder(files: Files, generation: GenerationSettings, context: &LoadContext) -> Result<Self> {
        let config = Arc::new(NetworkConfig::read(&files, generation.family, context)?);
        config.check_adapters(&files.adapters)?;
        let settings = GenerationConfig::read(&files, context)?;
        let tokenizer = TokenizerFiles::find(&files, "", context)?;
        let (template, special) = generation::read_chat_template(&files, context)?;
        let kind = Kind::Folder { tokenizer };
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

    fn read_gguf(
        files: Files,
        path: &Path,
        generation: GenerationSettings,
        context: &LoadContext,
    ) -> Result<Self> {
        let part = |name: &str| files.gguf_part(path, name, context);
        let file = GgufFile::open(path)?.with_parts(part)?;
        let config = NetworkConfig::read_gguf(&file)?;
        config.check_adapters(&files.adapters)?;
        let GgufText { tokenizer, template, special, ends } = GgufText::read(&files, &file, context)?;
        let end_tokens = config.end_tokens().iter().copied().chain(ends).collect();
        let (kind, config) = (Kind::Gguf { file, tokenizer }, Arc::new(config));
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

    fn network(&self, device: &Device, context: &LoadContext) -> Result<Network> {
        match &self.kind {
            Kind::Folder { .. } => {
                let weights = WeightFiles::open(&self.files, "", context)?;
                self.config.load(weights, device, context)
            }
            Kind::Gguf { file, .. } => {
                context.begin(LoadStage::Load, file.bytes());
                let GenerationSettings { exact_products, isolated, .. } = self.generation;
                let way = (Arithmetic::of(exact_products), isolated);
                self.config.load_gguf(file, device, way, self.files.unread, context)
            }
        }
    }

    /// The tokenizer, whose settings call these tokens special.
    fn tokens(&self, named: &[String]) -> Result<Tokens> {
        let began = Instant::now();
        let invalid = |reason| Error::InvalidTokenizer { file: self.tokenizer_file().to_owned(), reason };
        let tokens = match &self.kind {
            Kind::Folder { tokenizer } => Tokens::read_whole(tokenizer)?,
            Kind::Gguf { file, tokenizer } => gguf_text::tokens(tokenizer.as_ref(), file)?,
        };
        let split = self.generation.split_special_tokens;
        let tokens = tokens.splitting_special_tokens(split, named).map_err(invalid)?;
        tracing::debug!(seconds = began.elapsed().as_secs_f64(), "the tokenizer is read");
        Ok(tokens)
    }

    /// The file that has the tokenizer.
    fn tokenizer_file(&self) -> &Path {
        match &self.kind {
            Kind::Folder { tokenizer } => tokenizer.path(),
            Kind::Gguf { file, tokenizer } => gguf_text::tokenizer_path(tokenizer.as_ref(), file),
        }
    }

    /// The tokens that end a text; of a GGUF file, every one that any of the files calls the end.
    fn ends(&self, tokens: &Tokens) -> Vec<u32> {
        let named = self.special.eos.as_deref().and_then(|name| tokens.id(name));
        match &self.kind {
            Kind::Folder { .. } => self.settings.ends(self.config.end_tokens(), named),
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
                config.weight_bytes(&weights, compute)
            }
            Kind::Gguf { file, .. } => config.gguf_bytes(file),
        };
        let limits = config.limited(self.generation.limits);
        let GenerationLimits { kv_cache_tokens, max_sequences, .. } = limits;
        // Logits are made as a tensor and handed on as vectors.
        let logits = Bytes((2 * 4 * max_sequences as u64).saturating_mul(config.vocabulary() as u64));
        let longest = config.context().min(kv_cache_tokens);
        let held = continuous_batching::most_held(limits, config.context());
        let adapted = !self.files.adapters.is_empty();
        // With the numbers of the tokens themselves.
        let computing = config.worker_bytes(held, limits, longest, adapted) + Bytes(4 * held as u64);
        let tokenizing = Bytes(TOKENIZING.saturating_mul(longest as u64));
        // Where they are charged by themselves, they are none of the model's.
        let adapters = match context.has_cache_memory() {
            true => Bytes::ZERO,
            false => adapters::bytes(&self.files.adapters, context)?,
        };
        let shared = shared + Grammars::bytes(config.vocabulary()) + adapters;
        Ok(Footprint::new(shared, computing + logits + tokenizing + THREAD_SCRATCH))
    }
}
