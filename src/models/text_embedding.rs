//! Text embedding: from a source's files to a model that answers batches. The list of families is here, and what
//! they share: configuration, tokenizer, prompts, packing texts into passes, pooling, and the three roles of the
//! actors' model contract. What one family computes is left to its file.

mod bert;
mod pack;
mod plan;
mod worker;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use model_actors::{
    Bytes, EmbedTexts, Failure, Footprint, LoadContext, LoadStage, Loader, Model, ModelId, TextEmbedding,
    Weights,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::device::{Compute, ComputeDevice, ComputeThreads};
use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::HubSettings;
use crate::pooling::{Head, normalize};
use crate::source::{Files, Source};
use crate::tokens::{TokenIds, Tokens};
use crate::weights::WeightFiles;
use pack::{PASS_TOKENS, TokenBatch, passes};
use plan::Plan;

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family] = &[bert::FAMILY];

/// How a family is found, and how its configuration is read.
struct Family {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// `architectures` in `config.json`, for files that lack the former.
    architectures: &'static [&'static str],
    read: fn(&Path, &serde_json::Value) -> Result<Box<dyn Architecture>>,
}

/// A model that is not loaded: what its configuration tells.
trait Architecture: Send + Sync {
    /// Length of a token's vector.
    fn width(&self) -> usize;
    /// Tokens that it knows.
    fn vocabulary(&self) -> usize;
    /// Most tokens of a text, special ones included.
    fn longest(&self) -> usize;
    /// Whether a tensor of the file will be loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// What a pass over so many tokens needs besides the weights, where the longest text has `longest` of them.
    fn scratch(&self, tokens: usize, longest: usize) -> Bytes;
    fn load(&self, weights: &WeightFiles, device: &Device, context: &LoadContext)
    -> Result<Arc<dyn Encoder>>;
}

/// A loaded transformer. It keeps nothing between passes, so that all workers share one.
trait Encoder: Send + Sync {
    /// The tokens' vectors, `(tokens, width)`.
    fn encode(&self, batch: &TokenBatch) -> Result<Tensor>;
}

/// Reads a family's part of `config.json`.
fn parse<T: DeserializeOwned>(file: &Path, config: &serde_json::Value) -> Result<T> {
    T::deserialize(config)
        .map_err(|error| Error::InvalidConfig { file: file.to_owned(), reason: error.to_string() })
}

fn find_architecture(file: &Path, config: &serde_json::Value) -> Result<Box<dyn Architecture>> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Names {
        model_type: Option<String>,
        architectures: Vec<String>,
    }
    let names: Names = parse(file, config)?;
    let found = FAMILIES.iter().find(|family| match &names.model_type {
        Some(model_type) => family.model_type == model_type,
        None => names.architectures.iter().any(|name| family.architectures.contains(&name.as_str())),
    });
    match found {
        Some(family) => (family.read)(file, config),
        None => Err(Error::UnsupportedArchitecture {
            found: names
                .model_type
                .or(names.architectures.into_iter().next())
                .unwrap_or("(none named)".into()),
            capability: "text embedding",
            supported: FAMILIES.iter().map(|family| family.model_type).collect(),
        }),
    }
}

/// What gemm, the tokenizer and the allocator keep for each thread, as measured.
const THREAD_SCRATCH: Bytes = Bytes::mib(4);

/// Loads an embedding model; the actors' view of a source. Making one does no I/O.
pub(crate) struct TextEmbeddingLoader {
    source: Source,
    compute: Compute,
    #[cfg(feature = "hub")]
    hub: HubSettings,
    /// Read once; a later load of the same model takes the same files, without asking the hub again.
    plan: OnceLock<Arc<Plan>>,
}

impl TextEmbeddingLoader {
    pub(crate) fn new(source: Source, compute: Compute, #[cfg(feature = "hub")] hub: HubSettings) -> Self {
        Self {
            source,
            compute,
            #[cfg(feature = "hub")]
            hub,
            plan: OnceLock::new(),
        }
    }

    fn plan(&self, context: &LoadContext) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plan.get() {
            return Ok(Arc::clone(plan));
        }
        #[cfg(feature = "hub")]
        let files = Files::open(&self.source, &self.hub)?;
        #[cfg(not(feature = "hub"))]
        let files = Files::open(&self.source)?;
        let plan = Arc::new(Plan::read(files, context)?);
        Ok(Arc::clone(self.plan.get_or_init(|| plan)))
    }

    fn load_model(&self, context: &LoadContext) -> Result<Arc<LoadedModel>> {
        let plan = self.plan(context)?;
        let weights = plan.weights(context)?;
        let device = self.compute.open()?;
        context.begin(LoadStage::Load, weights.bytes_on_disk(|tensor| plan.architecture.uses(tensor)));
        let tokens = Tokens::read(&plan.tokenizer, plan.longest, plan.lowercase)?;
        if tokens.vocabulary() > plan.architecture.vocabulary() {
            let (has, knows) = (tokens.vocabulary(), plan.architecture.vocabulary());
            let reason = format!("it has {has} tokens; the model's vocab_size is {knows}");
            return Err(Error::InvalidTokenizer { file: plan.tokenizer.clone(), reason });
        }
        let head = plan.modules.head(&plan.files, plan.architecture.width(), context)?;
        let encoder = plan.architecture.load(&weights, &device, context)?;
        let footprint = plan.footprint(&weights);
        let (compute, longest) = (self.compute.clone(), plan.longest);
        Ok(Arc::new(LoadedModel { encoder, head, tokens, compute, footprint, longest, plan }))
    }
}

impl Loader<TextEmbedding> for TextEmbeddingLoader {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let plan = self.plan(context)?;
        let weights = plan.weights(context);
        plan.files.rest();
        Ok(plan.footprint(&weights?))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<TextEmbedding>>, Failure> {
        let model = self.load_model(context);
        self.plan.get().inspect(|plan| plan.files.rest());
        Ok(Arc::new(SharedModel(model?)))
    }
}

/// A model in memory, shared by its workers.
struct LoadedModel {
    encoder: Arc<dyn Encoder>,
    head: Head,
    tokens: Tokens,
    compute: Compute,
    footprint: Footprint,
    longest: usize,
    plan: Arc<Plan>,
}

struct SharedModel(Arc<LoadedModel>);

impl Weights<TextEmbedding> for SharedModel {
    fn footprint(&self) -> Footprint {
        self.0.footprint
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<TextEmbedding>>, Failure> {
        Ok(Box::new(TextEmbeddingModel::of(Arc::clone(&self.0))?))
    }
}

impl LoadedModel {
    fn prompt(&self, name: Option<&str>) -> Result<&str> {
        let prompts = &self.plan.prompts;
        let Some(name) = name.or(prompts.default_prompt_name.as_deref()) else { return Ok("") };
        prompts.prompts.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = prompts.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::InvalidInput(format!("the model has no prompt {name:?}; it has: {known}"))
        })
    }

    fn tokenize(&self, request: &EmbedTexts) -> Result<Vec<TokenIds>> {
        let width = self.head.width();
        if let Some(dimensions) = request.dimensions
            && !(1..=width).contains(&dimensions)
        {
            let reason =
                format!("{dimensions} dimensions are asked for; the model's vectors have 1 to {width}");
            return Err(Error::InvalidInput(reason));
        }
        let prompt = self.prompt(request.prompt.as_deref())?;
        let encode = |text: &String| match prompt {
            "" => self.tokens.encode(text),
            _ => self.tokens.encode(&format!("{prompt}{text}")),
        };
        request.texts.iter().map(encode).collect()
    }

    /// One pass through the transformer and what follows it.
    fn run(&self, threads: &ComputeThreads, batch: &TokenBatch) -> Result<Vec<Vec<f32>>> {
        threads.run(|| self.head.forward(&self.encoder.encode(batch)?, &batch.lengths))
    }

    /// Keeps the first dimensions only. What had the length 1 has it again.
    fn shorten(&self, vector: &mut Vec<f32>, dimensions: Option<usize>) {
        if let Some(dimensions) = dimensions.filter(|dimensions| *dimensions < vector.len()) {
            vector.truncate(dimensions);
            if self.head.normalizes() {
                normalize(vector);
            }
        }
    }
}

/// How a model without actors around it is loaded.
///
/// ```
/// assert_eq!(candle_actors::LoadOptions::default().threads, 1);
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it computes.
    pub device: ComputeDevice,
    /// Processor threads that a pass may use, at least 1.
    pub threads: usize,
    /// How the hub is reached.
    #[cfg(feature = "hub")]
    pub hub: HubSettings,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: ComputeDevice::Cpu,
            threads: 1,
            #[cfg(feature = "hub")]
            hub: HubSettings::default(),
        }
    }
}

/// A loaded embedding model without actors around it, for tools and for comparison: the very code that a worker
/// runs. A clone shares the weights.
///
/// ```no_run
/// use candle_actors::{Source, TextEmbeddingModel};
/// # fn main() -> candle_actors::Result<()> {
/// let model = TextEmbeddingModel::load(Source::directory("models/english-embedding-small"))?;
/// let vectors = model.embed(&["The cat sleeps.", "A cat is sleeping."])?;
/// assert_eq!(vectors.len(), 2);
/// # Ok(())
/// # }
/// ```
pub struct TextEmbeddingModel {
    shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

impl TextEmbeddingModel {
    /// Loads a model onto the processor, for the calling thread alone.
    ///
    /// # Errors
    /// Whatever is wrong with the source, its files or its weights.
    pub fn load(source: Source) -> Result<Self> {
        Self::load_with(source, LoadOptions::default())
    }

    /// Loads a model.
    ///
    /// # Errors
    /// As [`TextEmbeddingModel::load`].
    pub fn load_with(source: Source, options: LoadOptions) -> Result<Self> {
        let context = LoadContext::detached(&ModelId::from(source.to_string()));
        let compute = Compute::new(options.device, options.threads.max(1));
        let loader = TextEmbeddingLoader::new(
            source,
            compute,
            #[cfg(feature = "hub")]
            options.hub,
        );
        Self::of(loader.load_model(&context)?)
    }

    fn of(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = ComputeThreads::for_kernels(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    /// Another one over the same weights, with compute threads of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn try_clone(&self) -> Result<Self> {
        Self::of(Arc::clone(&self.shared))
    }

    /// The length of its vectors.
    pub fn dimensions(&self) -> usize {
        self.shared.head.width()
    }

    /// Most tokens of a text, special ones included; the rest of a longer text is not looked at.
    pub fn max_tokens(&self) -> usize {
        self.shared.longest
    }

    /// What it takes in memory.
    pub fn footprint(&self) -> Footprint {
        self.shared.footprint
    }

    /// Tokens of a text, as the model would see it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.shared.tokens.encode(text)?.ids.len())
    }

    /// One vector for each text, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] or [`Error::Compute`].
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>> {
        let texts = texts.iter().map(|text| text.as_ref().to_owned()).collect();
        let request = EmbedTexts { texts, ..EmbedTexts::default() };
        let tokens: Vec<(usize, TokenIds)> =
            self.shared.tokenize(&request)?.into_iter().enumerate().collect();
        let mut vectors = vec![Vec::new(); tokens.len()];
        for pass in passes(tokens, |(_, text)| text.ids.len()) {
            let mut batch = TokenBatch::default();
            pass.iter().for_each(|(_, text)| batch.push(text));
            for ((index, _), vector) in pass.iter().zip(self.shared.run(&self.threads, &batch)?) {
                vectors[*index] = check(vector)?;
            }
        }
        Ok(vectors)
    }
}

fn check(vector: Vec<f32>) -> Result<Vec<f32>> {
    if vector.iter().all(|x| x.is_finite()) { Ok(vector) } else { Err(Error::NotFiniteOutput) }
}
