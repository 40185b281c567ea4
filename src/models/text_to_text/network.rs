//! The network of a text to text model, whichever computes it: the decoder of this crate, which runs many texts in one pass,
//! or a model of candle-transformers, whose texts take turns. Everything around it is the same for both.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, LoadStage, PartInUse};

use crate::architecture;
use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::Arithmetic;
use crate::language_model::{Described, TextsPerWorker, TransformersFamily};
use crate::limits::GenerationLimits;
use crate::models::config_file;
use crate::models::continuous_batching::{Logits, Part};
use crate::models::decoder::{Decoder, DecoderConfig, FAMILIES};
use crate::models::passes::PROMPT_ROWS;
use crate::models::peft::PeftAdapter;
use crate::models::transformer::{Adapter, Cache, Segment, is_buffer};
use crate::models::transformers::{self, Loaded, Text, with_library};
use crate::source::{Files, OpenAdapters, Unread, read_json};
use crate::weights::WeightFiles;

use super::prefix::{BLOCK, Prefix, Prefixes, piece};

/// The capability's name in errors.
const CAPABILITY: &str = "text to text";

/// A network that is not loaded.
pub(super) enum NetworkConfig {
    Own(DecoderConfig),
    Library { described: Described, file: PathBuf },
}

impl NetworkConfig {
    /// The network that `config.json` describes: one of `family` if that is given, else of whichever family has its name.
    pub(super) fn read(
        files: &Files,
        family: Option<TransformersFamily>,
        context: &LoadContext,
    ) -> Result<Self> {
        let file =
            config_file::find(files, "config.json", FAMILIES, CAPABILITY, context).map_err(with_library)?;
        let json = read_json(&file)?;
        if let Some(found) = architecture::with_other_head(&json) {
            return Err(with_library(architecture::unsupported(FAMILIES, CAPABILITY, found)));
        }
        let described = match family {
            Some(family) => {
                architecture::find_whole(&[(family.family)()], CAPABILITY, &file, &json, files.unread)?
            }
            None => match architecture::find_whole(FAMILIES, CAPABILITY, &file, &json, files.unread) {
                Err(unknown @ Error::UnsupportedArchitecture { .. }) => {
                    let list = transformers::FAMILIES;
                    match architecture::find_whole(list, CAPABILITY, &file, &json, files.unread) {
                        Err(Error::UnsupportedArchitecture { .. }) => return Err(with_library(unknown)),
                        found => found?,
                    }
                }
                found => return Ok(Self::Own(found?)),
            },
        };
        transformers::check(&file, &described)?;
        if files.eight_bit {
            let reason =
                "candle-transformers, which computes this model, multiplies no quantised matrices here";
            return Err(Error::InvalidSetting { setting: "eight_bit".into(), reason: reason.to_owned() });
        }
        Ok(Self::Library { described, file })
    }

    /// The network that the metadata of a GGUF file describe.
    pub(super) fn read_gguf(file: &GgufFile) -> Result<Self> {
        #[cfg(feature = "transformers")]
        if let Some(described) = transformers::gguf::describe(file)? {
            return Ok(Self::Library { described, file: file.path().to_owned() });
        }
        let config = DecoderConfig::from_gguf(file);
        #[cfg(feature = "transformers")]
        let config = config.map_err(transformers::gguf::with_architectures);
        config.map(Self::Own)
    }

    /// Bytes of the weights of a GGUF file in memory.
    pub(super) fn gguf_bytes(&self, file: &GgufFile) -> Bytes {
        match self {
            #[cfg(feature = "transformers")]
            Self::Library { described, .. } => {
                transformers::gguf::bytes(file) + Bytes(described.shape.table_bytes())
            }
            _ => file.bytes(),
        }
    }

    /// Number of tokens that it knows.
    pub(super) fn vocabulary(&self) -> usize {
        match self {
            Self::Own(config) => config.vocabulary,
            Self::Library { described, .. } => described.shape.vocabulary,
        }
    }

    /// Maximum number of tokens of a sequence.
    pub(super) fn context(&self) -> usize {
        match self {
            Self::Own(config) => config.context,
            Self::Library { described, .. } => described.shape.context,
        }
    }

    /// Tokens that end a text, as `config.json` has them.
    pub(super) fn end_tokens(&self) -> &[u32] {
        match self {
            Self::Own(config) => &config.end_tokens,
            Self::Library { described, .. } => &described.end_tokens,
        }
    }

    /// These limits, as far as the network can keep to them.
    pub(super) fn limited(&self, limits: GenerationLimits) -> GenerationLimits {
        match self {
            Self::Library { described, .. } if described.texts == TextsPerWorker::One => {
                limits.with_max_sequences(1)
            }
            _ => limits,
        }
    }

    /// Bytes of the weights in memory, from the headers of their files.
    pub(super) fn weight_bytes(&self, weights: &WeightFiles, compute: &Compute) -> Bytes {
        match self {
            Self::Own(config) => weights.bytes_in_memory(
                |tensor| config.uses(tensor),
                |tensor| compute.packs() && config.packs(tensor),
            ),
            Self::Library { described, .. } => {
                let uses = |tensor: &str| !is_buffer(tensor) && !(described.has_no_effect)(tensor);
                weights.bytes_in_memory(uses, |_| false) + Bytes(described.shape.table_bytes())
            }
        }
    }

    /// Bytes of caches of so many tokens together, and of the scratch of a pass, with adapters or without; texts have at most
    /// `longest` each.
    pub(super) fn worker_bytes(
        &self,
        tokens: usize,
        limits: GenerationLimits,
        longest: usize,
        adapted: bool,
    ) -> Bytes {
        match self {
            Self::Own(config) => {
                let rows = PROMPT_ROWS + limits.max_sequences;
                // What adapters add to the widest layer.
                let added = if adapted { config.scratch(rows, 1) } else { Bytes::ZERO };
                config.cache_bytes(tokens, limits.max_sequences) + config.scratch(rows, longest) + added
            }
            Self::Library { described, .. } => {
                transformers::worker_bytes(described, tokens, limits.max_sequences, longest)
            }
        }
    }

    /// Refuses adapters that the network cannot have.
    pub(super) fn check_adapters(&self, adapters: &OpenAdapters) -> Result<()> {
        match self {
            Self::Library { .. } if !adapters.is_empty() => {
                let reason = "candle-transformers, which computes this model, takes no adapters";
                Err(Error::InvalidSetting { setting: "adapters".into(), reason: reason.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Reads an adapter.
    pub(super) fn load_adapter(
        &self,
        adapter: &PeftAdapter,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Adapter> {
        match self {
            Self::Own(config) => config.load_adapter(adapter, device, context),
            Self::Library { .. } => Err(Error::compute("candle-transformers takes no adapters")),
        }
    }

    /// Reads the weights of a GGUF file.
    pub(super) fn load_gguf(
        &self,
        file: &GgufFile,
        device: &Device,
        (arithmetic, isolated): (Arithmetic, bool),
        unread: Unread,
        context: &LoadContext,
    ) -> Result<Network> {
        match self {
            Self::Own(config) => {
                let decoder = config.load_gguf(file, device, arithmetic, context)?;
                file.check_all_read(unread, |tensor| config.has_no_effect(tensor))?;
                Ok(Network::Own(decoder))
            }
            #[cfg(feature = "transformers")]
            Self::Library { described, .. } => {
                transformers::gguf::check_process(arithmetic, isolated)?;
                transformers::gguf::load(described, file, unread, device, context).map(Network::Library)
            }
            #[cfg(not(feature = "transformers"))]
            Self::Library { .. } => {
                let _ = isolated;
                Err(Error::compute("this build is without candle-transformers"))
            }
        }
    }

    /// Reads the weights of safetensors.
    pub(super) fn load(
        &self,
        weights: WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Network> {
        match self {
            Self::Own(config) => {
                context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| config.uses(tensor)));
                let decoder = config.load(&weights, device, context)?;
                weights.check_all_read(|tensor| config.has_no_effect(tensor))?;
                Ok(Network::Own(decoder))
            }
            Self::Library { described, file } => {
                context.begin(LoadStage::Load, weights.bytes_on_disk(|_| true));
                let loaded = transformers::load(described, weights, file, device, context)?;
                Ok(Network::Library(loaded))
            }
        }
    }
}

/// A network in memory, which all workers share.
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub(super) enum Network {
    Own(Decoder),
    Library(Loaded),
}

/// The state of one text in a network.
pub(super) enum TextCache {
    Own(Cache),
    Library(Text),
}

impl TextCache {
    /// Number of tokens that were read.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Own(cache) => cache.length(),
            Self::Library(text) => text.length(),
        }
    }
}

/// An adapter in memory.
pub(super) struct LoadedAdapter {
    pub(super) adapter: Adapter,
    /// Numbers that tell it apart from the model's others, and from what its files had before they were changed. They are
    /// the same when it is loaded again, and never 0 for both.
    pub(super) identity: [u32; 2],
}

/// An adapter in memory, as long as a text holds it.
pub(super) type HeldAdapter = Arc<PartInUse<LoadedAdapter>>;

/// The state of one text, which a worker keeps.
pub(crate) struct State {
    pub(super) cache: TextCache,
    /// Of the prompt, and after it of the answer; those beyond the cache are not read yet.
    pub(super) tokens: Vec<u32>,
    /// The adapter that changes the decoder for the text.
    adapter: Option<HeldAdapter>,
    /// The part of it that the prefix cache has.
    prefix: Prefix,
    /// The step at which the text had its last turn, where texts take turns.
    turn: u64,
}

impl State {
    pub(super) fn new(
        network: &Network,
        prefixes: Option<&Prefixes>,
        tokens: Vec<u32>,
        adapter: Option<HeldAdapter>,
    ) -> Result<Self> {
        let (cache, prefix) = match network {
            Network::Own(decoder) => {
                let find = |prefixes: &Prefixes| {
                    prefixes.find(decoder, adapter.as_ref().map(|held| held.identity), &tokens)
                };
                (TextCache::Own(decoder.cache(tokens.len())?), prefixes.map(find))
            }
            Network::Library(model) => (TextCache::Library(model.begin()?), None),
        };
        Ok(Self { cache, tokens, adapter, prefix: prefix.unwrap_or_default(), turn: 0 })
    }

    /// The state of another text with the same prompt, of which nothing is read.
    pub(super) fn again(&self, network: &Network, prefixes: Option<&Prefixes>) -> Result<Self> {
        Self::new(network, prefixes, self.tokens.clone(), self.adapter.clone())
    }

    /// A copy of its own, where the network is this crate's: what a model of the library keeps may be shared by its copies.
    pub(super) fn fork(&self) -> Result<Option<Self>> {
        let TextCache::Own(cache) = &self.cache else { return Ok(None) };
        let cache = TextCache::Own(cache.fork()?);
        let (tokens, adapter) = (self.tokens.clone(), self.adapter.clone());
        Ok(Some(Self { cache, tokens, adapter, prefix: self.prefix.clone(), turn: self.turn }))
    }

    /// Number of tokens that are read, or in the prefix cache.
    fn read(&self) -> usize {
        self.cache.length().max(self.prefix.uncopied())
    }

    /// Number of tokens that are not read yet.
    pub(super) fn unread(&self) -> usize {
        self.tokens.len().saturating_sub(self.read())
    }

    /// Number of tokens of its next piece, `most` at most.
    pub(super) fn piece(&self, most: usize) -> usize {
        piece(self.read(), self.unread(), most)
    }

    /// Keeps what it has read in the prefix cache, of which a block took so long.
    fn keep(&mut self, decoder: &Decoder, prefixes: &Prefixes, took: Duration) {
        if let TextCache::Own(cache) = &self.cache {
            prefixes.keep(decoder, (&mut self.prefix, cache), &self.tokens, took);
        }
    }

    /// Number of tokens of its prompt that were in the prefix cache.
    pub(super) fn cached(&self) -> usize {
        self.prefix.cached()
    }
}

impl Network {
    pub(super) fn vocabulary(&self) -> usize {
        match self {
            Self::Own(decoder) => decoder.vocabulary(),
            Self::Library(model) => model.described().shape.vocabulary,
        }
    }

    pub(super) fn context(&self) -> usize {
        match self {
            Self::Own(decoder) => decoder.context(),
            Self::Library(model) => model.described().shape.context,
        }
    }

    /// Bytes of its weights, if they are known better now than from the headers of files.
    pub(super) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::Own(_) => None,
            Self::Library(model) => Some(model.bytes()),
        }
    }

    /// The decoder of this crate, if it is one.
    pub(super) fn decoder(&self) -> Option<&Decoder> {
        match self {
            Self::Own(decoder) => Some(decoder),
            Self::Library(_) => None,
        }
    }

    /// The threads on which a worker computes it.
    pub(super) fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        match self {
            Self::Own(_) => ComputeThreads::for_kernels(threads),
            Self::Library(_) => ComputeThreads::pool(threads),
        }
    }

    /// One step over several texts. The decoder takes all in one pass; of a model of the library, whose passes take one
    /// text, it is the turn of the text that has waited longest.
    pub(super) fn step(
        &self,
        prefixes: Option<&Prefixes>,
        texts: &mut [Part<'_, State>],
        step: u64,
    ) -> Result<Vec<Logits>> {
        match self {
            Self::Own(decoder) => Ok(pass(decoder, prefixes, texts)?.into_iter().map(Ok).collect()),
            Self::Library(model) => {
                let next = texts.iter().enumerate().min_by_key(|(_, part)| part.state.turn);
                let next = next.map(|(index, _)| index);
                let turn = |(index, part): (usize, &mut Part<'_, State>)| {
                    if Some(index) != next {
                        return Ok(None);
                    }
                    part.state.turn = step;
                    read(model, part.state, part.rows)
                };
                Ok(texts.iter_mut().enumerate().map(turn).collect())
            }
        }
    }

    /// The logits after each of these tokens.
    pub(super) fn logits(&self, tokens: &[u32], adapter: Option<&Adapter>) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Own(decoder) => {
                let mut cache = decoder.cache(tokens.len())?;
                let segment = Segment { cache: &mut cache, length: tokens.len(), positions: None, adapter };
                let hidden = decoder.forward(&decoder.embed(tokens)?, &mut [segment])?;
                Ok(decoder.logits(&hidden)?.to_vec2()?)
            }
            Self::Library(model) => {
                let mut text = model.begin()?;
                let mut after = |token: &u32| model.read(&mut text, std::slice::from_ref(token), 1);
                tokens.iter().filter_map(|token| after(token).transpose()).collect()
            }
        }
    }

    /// Notes that a token was chosen.
    pub(super) fn chosen(&self, state: &mut State, token: u32) {
        state.tokens.push(token);
        if let (Self::Own(decoder), TextCache::Own(cache)) = (self, &mut state.cache)
            && decoder.outgrows(cache, state.tokens.len())
        {
            cache.restart(state.tokens.len());
            state.prefix.close();
        }
    }
}

/// Reads the next tokens of a text of the library.
fn read(model: &Loaded, state: &mut State, rows: usize) -> Logits {
    let State { cache: TextCache::Library(text), tokens, .. } = state else {
        return Err(Error::compute("the text belongs to another model"));
    };
    model.read(text, tokens.get(text.length()..).unwrap_or_default(), rows)
}

/// One pass through the decoder for all texts. Logits of those that have read all.
fn pass(
    decoder: &Decoder,
    prefixes: Option<&Prefixes>,
    texts: &mut [Part<'_, State>],
) -> Result<Vec<Option<Vec<f32>>>> {
    let began = Instant::now();
    let (mut tokens, mut asked) = (Vec::new(), Vec::new());
    let mut logits = vec![None; texts.len()];
    let mut segments = Vec::with_capacity(texts.len());
    // The rows of one adapter lie together, so that its matrices are read once.
    let mut ordered: Vec<(usize, &mut Part<'_, State>)> = texts.iter_mut().enumerate().collect();
    ordered.sort_by_key(|(_, part)| part.state.adapter.as_ref().map(Arc::as_ptr));
    for (index, Part { state, rows }) in ordered {
        let unread = state.unread();
        let State { cache: TextCache::Own(cache), tokens: all, adapter, prefix, .. } = &mut **state else {
            return Err(Error::compute("the text belongs to another model"));
        };
        prefix.copy(decoder, cache)?;
        prefix.read(cache.length(), cache.length() + *rows);
        tokens.extend(all.iter().skip(cache.length()).take(*rows));
        if unread == *rows {
            asked.push((index, tokens.len().saturating_sub(1) as u32));
        }
        let adapter = adapter.as_ref().map(|held| &held.adapter);
        segments.push(Segment { cache, length: *rows, positions: None, adapter });
    }
    let hidden = decoder.forward(&decoder.embed(&tokens)?, &mut segments)?;
    drop(segments);
    if let Some(prefixes) = prefixes {
        let took = began.elapsed().mul_f64(BLOCK as f64 / tokens.len().max(1) as f64);
        texts.iter_mut().for_each(|part| part.state.keep(decoder, prefixes, took));
    }
    if asked.is_empty() {
        return Ok(logits);
    }
    let (places, rows): (Vec<usize>, Vec<u32>) = asked.into_iter().unzip();
    let rows = Tensor::new(rows, hidden.device())?;
    let made: Vec<Vec<f32>> = decoder.logits(&hidden.index_select(&rows, 0)?)?.to_vec2()?;
    for (place, made) in places.into_iter().zip(made) {
        if let Some(logits) = logits.get_mut(place) {
            *logits = Some(made);
        }
    }
    Ok(logits)
}
