//! Text embedding: from a source's files to a model that answers batches. The list of families is here, and what
//! they share: configuration, tokenizer, prompts, packing texts into passes, pooling, and the three roles of the
//! actors' model contract. A family's computation is left to its file.

mod encoder;
pub(super) mod bert;
mod jina_bert;
mod distilbert;
pub(super) mod roberta;
mod mpnet;
mod electra;
mod jina_v3;
mod nomic_bert;
pub(super) mod modernbert;
mod gte;
mod decoding;
mod qwen2;
mod qwen3;
mod causal;
mod gemma3;
mod eurobert;
mod nv_embed;
mod static_embedding;
#[cfg(feature = "transformers")]
mod library;
mod plan;
mod vectors;
mod worker;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, EmbedPrompt, EmbedTexts, Footprint, LoadContext};

use crate::architecture::Family;
use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::loader::{WorkerModel, standalone_model};
use crate::models::answers::Watch;
use crate::models::text_runs;
use crate::models::token_batch::TokenBatch;
use crate::pooling::Head;
use crate::tokens::{TokenIds, Tokens};
use crate::weights::WeightFiles;
pub(crate) use plan::TextEmbeddingPlan;
pub(super) use plan::{SentenceConfig, TokenizerConfig};

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Box<dyn Architecture>>] = &[
    bert::FAMILY,
    jina_bert::FAMILY,
    distilbert::FAMILY,
    roberta::FAMILY,
    roberta::MULTILINGUAL,
    roberta::FRENCH,
    mpnet::FAMILY,
    electra::FAMILY,
    jina_v3::FAMILY,
    nomic_bert::FAMILY,
    modernbert::FAMILY,
    gte::FAMILY,
    gte::OF_TRANSFORMERS,
    qwen2::FAMILY,
    qwen3::FAMILY,
    causal::LLAMA,
    causal::MISTRAL,
    gemma3::FAMILY,
    eurobert::FAMILY,
    nv_embed::FAMILY,
    #[cfg(feature = "transformers")]
    library::T5,
    #[cfg(feature = "transformers")]
    library::DEBERTA_V2,
];

/// The capability's name in errors.
const CAPABILITY: &str = "text embedding";

/// A model that is not loaded, as its configuration describes it.
pub(super) trait Architecture: Send + Sync {
    /// Length of a token's vector.
    fn width(&self) -> usize;
    /// Number of tokens that it knows.
    fn vocabulary(&self) -> usize;
    /// Maximum number of tokens of a text, special ones included.
    fn longest(&self) -> usize;
    /// A token that the model wants written after each text, where the tokenizer does not put it there.
    fn ending(&self) -> Option<u32> {
        None
    }
    /// True if texts are taken without special tokens around them, and may have no token at all.
    fn takes_bare_texts(&self) -> bool {
        false
    }
    /// True for the tensors of the file that are loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// True for those that are packed for any number of rows, in which matrices of 16 bits stay so; all that are quantised
    /// if matrices are to be of 8 bits.
    fn packs(&self, _tensor: &str, _eight_bit: bool) -> bool {
        false
    }
    /// True for tensors of the file that change no vector.
    fn has_no_effect(&self, tensor: &str) -> bool;
    /// Bytes that a pass over so many tokens needs besides the weights, where the longest text has `longest` of them.
    fn scratch(&self, tokens: usize, longest: usize) -> Bytes;
    fn load(&self, weights: &WeightFiles, device: &Device, context: &LoadContext)
    -> Result<Arc<dyn Encoder>>;
}

/// A loaded transformer. It keeps nothing between passes, so that all workers share one.
pub(super) trait Encoder: Send + Sync {
    /// The threads on which a worker computes it.
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        ComputeThreads::for_kernels(threads)
    }
    /// True if there is a row for each text, and not for each token.
    fn gives_texts(&self) -> bool {
        false
    }
    /// The tokens' vectors, `(tokens, width)`. Calls `watch` after each layer.
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor>;
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    encoder: Arc<dyn Encoder>,
    head: Head,
    tokens: Tokens,
    /// Written after each text.
    ending: String,
    compute: Compute,
    footprint: Footprint,
    plan: Arc<TextEmbeddingPlan>,
}

impl LoadedModel {
    /// The prompt before each text.
    fn prompt<'a>(&'a self, asked: Option<&'a EmbedPrompt>) -> Result<&'a str> {
        let prompts = &self.plan.prompts;
        let name = match (asked, &prompts.default_prompt_name) {
            (Some(EmbedPrompt::Text(prompt)), _) => return Ok(prompt),
            (Some(EmbedPrompt::Named(name)), _) | (None, Some(name)) => name,
            (None, None) => return Ok(""),
            (Some(_), _) => {
                return Err(Error::InvalidInput("this kind of prompt is not supported".to_owned()));
            }
        };
        // sentence-transformers has these two, empty, where the model's files have none.
        let own = prompts.prompts.get(name).map(String::as_str);
        own.or(matches!(name.as_str(), "query" | "document").then_some("")).ok_or_else(|| {
            let known: Vec<&str> = prompts.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::InvalidInput(format!("the model has no prompt {name:?}; it has: {known}"))
        })
    }

    /// `watch` is called before each text and may end it.
    fn tokenize(&self, request: &EmbedTexts, watch: &Watch<'_>) -> Result<Vec<TokenIds>> {
        self.dimensions(request)?;
        let prompt = self.prompt(request.prompt.as_ref())?;
        let skipped = match self.head.leaves_out_prompts() && !prompt.is_empty() {
            true => self.tokens.count_in_front(prompt)?,
            false => 0,
        };
        let encode = |text: &String| {
            watch()?;
            let tokens = match (prompt, self.ending.as_str()) {
                ("", "") => self.tokens.encode(text)?,
                (prompt, ending) => self.tokens.encode(&format!("{prompt}{text}{ending}"))?,
            };
            if skipped > 0 && tokens.ids.len() <= skipped {
                let reason = format!("the prompt's {skipped} tokens leave no room for the text");
                return Err(Error::InvalidInput(reason));
            }
            Ok(TokenIds { skipped, ..tokens })
        };
        request.texts.iter().map(encode).collect()
    }

    /// One pass through the transformer and what follows it.
    fn run(&self, threads: &ComputeThreads, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<Vec<f32>>> {
        threads.run(|| {
            let hidden = self.encoder.encode(batch, watch)?;
            if self.encoder.gives_texts() {
                let texts = batch.lengths.len();
                return self.head.forward(&hidden, &vec![1; texts], &vec![0; texts]);
            }
            self.head.forward(&hidden, &batch.lengths, &batch.skipped)
        })
    }
}

/// A loaded embedding model without actors around it, for tools and for comparison: the very code that a worker
/// runs.
///
/// ```no_run
/// use candle_actors::{Source, StandaloneModel, TextEmbeddingModel};
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

standalone_model!(TextEmbeddingModel for TextEmbedding);

impl WorkerModel for TextEmbeddingModel {
    type Plan = TextEmbeddingPlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = shared.encoder.threads(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl TextEmbeddingModel {
    /// The length of its vectors.
    pub fn dimensions(&self) -> usize {
        self.shared.head.width()
    }

    /// Maximum sequence length in tokens, special ones included; the rest of a longer text is not looked at.
    pub fn max_tokens(&self) -> usize {
        self.shared.plan.longest
    }

    /// Counts the tokens of a text, as the model would see it.
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
        self.embed_request(&EmbedTexts::default().with_texts(texts))
    }

    /// As [`TextEmbeddingModel::embed`], with a prompt or with fewer dimensions.
    ///
    /// # Errors
    /// As [`TextEmbeddingModel::embed`].
    pub fn embed_request(&self, request: &EmbedTexts) -> Result<Vec<Vec<f32>>> {
        Ok(text_runs::alone(self, request)?.vectors)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Source, StandaloneModel as _};

    #[test]
    fn every_family_looks_after_each_layer_whether_it_should_go_on() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_embedding");
        for family in std::fs::read_dir(folder).unwrap() {
            let family = family.unwrap();
            let model = TextEmbeddingModel::load(Source::directory(family.path())).unwrap();
            let mut batch = TokenBatch::default();
            batch.push(&model.shared.tokens.encode("Hello").unwrap());
            let looks = AtomicUsize::new(0);
            let run = |most: usize| {
                looks.store(0, Ordering::Relaxed);
                model.shared.run(&model.threads, &batch, &|| match looks.fetch_add(1, Ordering::Relaxed) {
                    look if look + 1 < most => Ok(()),
                    _ => Err(Error::Stopped),
                })
            };
            assert!(run(usize::MAX).is_ok());
            let layers = looks.load(Ordering::Relaxed);
            // Without layers it looks before each text.
            if model.shared.encoder.gives_texts() {
                assert_eq!(layers, 1);
                continue;
            }
            assert!(layers >= 3, "{family:?}: {layers}");
            assert!(matches!(run(2), Err(Error::Stopped)));
            assert_eq!(looks.load(Ordering::Relaxed), 2, "{family:?}");
        }
    }
}
