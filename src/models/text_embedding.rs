//! Text embedding: from a source's files to a model that answers batches. The list of families is here, and what
//! they share: configuration, tokenizer, prompts, packing texts into passes, pooling, and the three roles of the
//! actors' model contract. A family's computation is left to its file.

mod encoder;
mod adapters;
pub(super) mod bert;
mod jina_bert;
mod distilbert;
mod jina_v3;
pub(super) mod roberta;
mod mpnet;
mod electra;
mod nomic_bert;
pub(super) mod modernbert;
mod gte;
mod decoding;
mod qwen2;
mod qwen3;
mod causal;
mod gemma3;
mod eurobert;
mod jina_v5;
mod nv_embed;
mod static_embedding;
#[cfg(feature = "transformers")]
mod library;
mod bge_m3;
mod late_interaction;
mod plan;
mod prompts;
mod vectors;
mod worker;

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{
    Bytes, EmbedOutputs, EmbedTexts, Embeddings, Footprint, LoadContext, SparseVector, TextToken, Truncate,
    VectorArray,
};

use crate::architecture::Family;
use crate::device::{Compute, ComputeThreads};
use crate::error::{Error, Result};
use crate::loader::{WorkerModel, standalone_model};
use crate::models::answers::Watch;
use crate::models::peft::PeftAdapter;
use crate::models::text_runs;
use crate::models::token_batch::TokenBatch;
use crate::pooling::{Head, Pooling};
use crate::tokens::{Side, TokenIds, Tokens};
use crate::weights::WeightFiles;
use bge_m3::TokenOutputs;
use late_interaction::LateInteraction;
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
    jina_v5::FAMILY,
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
    /// Tasks that it has an adapter for.
    fn tasks(&self) -> &[Task] {
        &[]
    }
    /// The task whose adapter is on unless another is asked for.
    fn default_task(&self) -> Option<usize> {
        None
    }
    /// Pooling of the repository's own code, which normalises too, where `modules.json` has nothing but that code.
    fn own_pooling(&self) -> Option<Pooling> {
        None
    }
    /// True if texts are taken without special tokens around them, and may have no token at all.
    fn takes_bare_texts(&self) -> bool {
        false
    }
    /// True if texts may end with tokens that no token attends to.
    fn hides_tokens(&self) -> bool {
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
    /// The same with adapters of folders of their own, one for each task.
    fn load_adapted(
        &self,
        weights: &WeightFiles,
        _adapters: &[PeftAdapter],
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        self.load(weights, device, context)
    }
}

/// A task that a model has an adapter for, which the prompt of its name turns on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    name: String,
    /// Text before each text, where the prompts of the model's files have none of this name.
    instruction: Option<String>,
    /// The folder of its adapter, with a slash at its end, where that is not in the file of the weights.
    folder: Option<String>,
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
    /// Outputs for each token, of models that have them.
    token_outputs: Option<TokenOutputs>,
    /// Vectors of tokens in place of those of texts, and how texts are read for them.
    late_interaction: Option<LateInteraction>,
    tokens: Tokens,
    /// Written after each text.
    ending: String,
    compute: Compute,
    footprint: Footprint,
    plan: Arc<TextEmbeddingPlan>,
}

impl LoadedModel {
    /// A text with its prompt and ending.
    fn whole<'a>(&self, prompt: &str, text: &'a str) -> Cow<'a, str> {
        match (prompt, self.ending.as_str()) {
            ("", "") => text.into(),
            (prompt, ending) => format!("{prompt}{text}{ending}").into(),
        }
    }

    /// `watch` is called before each text and may end it.
    fn tokenize(&self, request: &EmbedTexts, watch: &Watch<'_>) -> Result<Vec<TokenIds>> {
        self.dimensions(request)?;
        let outputs = request.outputs;
        let has = (self.token_outputs.is_some(), self.late_interaction.is_some());
        match has {
            (false, false) if outputs.sparse || outputs.token_vectors => {
                let reason = "the model has no sparse vectors and no vectors of tokens; BGE-M3 has both";
                return Err(Error::InvalidInput(reason.to_owned()));
            }
            (_, true) if outputs.sparse || outputs.vectors || request.dimensions.is_some() => {
                let reason = "the model has vectors of tokens alone, of one length; ask for `token_vectors` and nothing else";
                return Err(Error::InvalidInput(reason.to_owned()));
            }
            _ => {}
        }
        let (prompt, task) = self.prompt(request.prompt.as_ref())?;
        let side = self.side(request.prompt.as_ref());
        let skipped = match self.head.leaves_out_prompts() && !prompt.is_empty() {
            true => self.tokens.count_in_front(prompt)?,
            false => 0,
        };
        let encode = |(index, text): (usize, &String)| {
            watch()?;
            let text = self.whole(prompt, text);
            let tokens = match &self.late_interaction {
                Some(late) => late.tokens(side, &text)?,
                None => self.tokens.encode(&text)?,
            };
            if tokens.is_cut && request.truncate == Truncate::Refuse {
                let count = self.encode_whole(side, &text)?.len();
                let late = self.late_interaction.as_ref();
                let limit = late.map_or(self.plan.longest, |late| late.longest(side));
                return Err(Error::TextTooLong { index, tokens: count, limit });
            }
            if skipped > 0 && tokens.ids.len() <= skipped {
                let reason = format!("the prompt's {skipped} tokens leave no room for the text");
                return Err(Error::InvalidInput(reason));
            }
            Ok(TokenIds { skipped, task, ..tokens })
        };
        request.texts.iter().enumerate().map(encode).collect()
    }

    /// The tokens of a request's texts as such, whatever the model takes of them.
    fn list(&self, request: &EmbedTexts, watch: &Watch<'_>) -> Result<Vec<Vec<TextToken>>> {
        let (prompt, _) = self.prompt(request.prompt.as_ref())?;
        let side = self.side(request.prompt.as_ref());
        let list = |text: &String| {
            watch()?;
            let ids = self.encode_whole(side, &self.whole(prompt, text))?;
            let token = |id| TextToken::new(id, self.tokens.written(id).unwrap_or_default());
            Ok(ids.into_iter().map(token).collect())
        };
        request.texts.iter().map(list).collect()
    }

    /// All tokens of a text with its prompt and ending.
    fn encode_whole(&self, side: Side, text: &str) -> Result<Vec<u32>> {
        match &self.late_interaction {
            Some(late) => late.whole(side, text),
            None => self.tokens.encode_whole(text),
        }
    }

    /// One pass through the transformer and what follows it, as far as these outputs need it.
    fn run(
        &self,
        threads: &ComputeThreads,
        outputs: EmbedOutputs,
        batch: &TokenBatch,
        watch: &Watch<'_>,
    ) -> Result<Vec<EmbeddedText>> {
        threads.run(|| {
            let hidden = self.encoder.encode(batch, watch)?;
            let texts = batch.lengths.len();
            let vectors = match (outputs.vectors, self.encoder.gives_texts()) {
                (false, _) => vec![Vec::new(); texts],
                (true, true) => self.head.forward(&hidden, &vec![1; texts], &vec![0; texts])?,
                (true, false) => self.head.forward(&hidden, &batch.lengths, &batch.skipped)?,
            };
            let of_tokens = self.token_outputs.as_ref();
            let sparse = of_tokens.filter(|_| outputs.sparse).map(|heads| heads.sparse(&hidden, batch));
            let rows = match (&self.late_interaction, of_tokens) {
                (Some(late), _) if outputs.token_vectors => Some(late.token_vectors(&hidden, batch)),
                (None, Some(heads)) if outputs.token_vectors => Some(heads.token_vectors(&hidden, batch)),
                _ => None,
            };
            let (sparse, rows) =
                (sparse.transpose()?.unwrap_or_default(), rows.transpose()?.unwrap_or_default());
            let (mut sparse, mut rows) = (sparse.into_iter(), rows.into_iter());
            let text = |vector| EmbeddedText { vector, sparse: sparse.next(), token_vectors: rows.next() };
            Ok(vectors.into_iter().map(text).collect())
        })
    }
}

/// The outputs of a text.
pub(super) struct EmbeddedText {
    /// Empty unless it is asked for.
    vector: Vec<f32>,
    sparse: Option<SparseVector>,
    token_vectors: Option<VectorArray<f32>>,
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
        let late = self.shared.late_interaction.as_ref();
        late.map_or(self.shared.head.width(), LateInteraction::width)
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
        Ok(match &self.shared.late_interaction {
            Some(late) => late.tokens(Side::Document, text)?.ids.len(),
            None => self.shared.tokens.encode(text)?.ids.len(),
        })
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
        Ok(self.embeddings(request)?.vectors)
    }

    /// As [`TextEmbeddingModel::embed_request`], with the numbers of tokens and all that the request asks for.
    ///
    /// # Errors
    /// As [`TextEmbeddingModel::embed`]; [`Error::TextTooLong`] for a request that refuses to have texts cut.
    pub fn embeddings(&self, request: &EmbedTexts) -> Result<Embeddings> {
        text_runs::alone(self, request)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Source, StandaloneModel as _};

    #[test]
    fn texts_of_several_tasks_share_a_pass_and_keep_their_own_vectors() {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_embedding/jina_v3_adapters");
        let model = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
        let texts = ["Hello", "The cat sleeps.", "many spaces", "a second part"];
        let tasks = [Some(2), None, Some(0), Some(2)];
        let given: Vec<TokenIds> = texts
            .iter()
            .zip(tasks)
            .map(|(text, task)| TokenIds { task, ..model.shared.tokens.encode(text).unwrap() })
            .collect();
        let run = |texts: &[TokenIds]| {
            let mut batch = TokenBatch::default();
            texts.iter().for_each(|text| batch.push(text));
            let run = model.shared.run(&model.threads, EmbedOutputs::default(), &batch, &|| Ok(()));
            run.unwrap().into_iter().map(|text| text.vector).collect::<Vec<_>>()
        };
        let apart = |left: &[f32], right: &[f32]| {
            left.iter().zip(right).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
        };
        for (together, text) in run(&given).iter().zip(&given) {
            let alone = &run(std::slice::from_ref(text))[0];
            assert!(apart(together, alone) < 1e-5);
            let other = TokenIds { task: Some(1), ..text.clone() };
            assert!(apart(alone, &run(&[other])[0]) > 1e-3);
        }
    }

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
                model.shared.run(&model.threads, EmbedOutputs::default(), &batch, &|| match looks
                    .fetch_add(1, Ordering::Relaxed)
                {
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
