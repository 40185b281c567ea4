//! Capabilities: the kinds of work that pools do. [`Capability`] is an open trait, so an application can
//! define one of its own. The six that ship are only request and reply types and limits; no line here knows
//! how a model works.

use serde::{Deserialize, Serialize};

use crate::config::QueueCapacity;
use crate::error::Cause;

mod generation;
mod image;
mod vectors;
mod embedding;
mod reranking;
mod portable;

pub use embedding::{
    EmbedImages, EmbedInput, EmbedOutputs, EmbedPrompt, EmbedTexts, Embeddings, ImageEmbedding,
    TextEmbedding, TextToken, Truncate,
};
pub use generation::{
    AnswerEnd, Completion, Constraint, FinishReason, GenerateText, Message, Prompt, Role, Sampling,
    SamplingDefaults, TextChunk, TextToText, TokenLogprob, TokenLogprobs, Tool, ToolCall, ToolChoice, Usage,
};
pub use image::{
    ContentPart, DescribeImage, ImageSource, LeasedPicture, PaintImage, PaintStep, Picture, TextToImage,
    Vision, VisionMessage,
};
pub use portable::Portable;
pub use reranking::{RankedDocument, Ranking, RerankDocuments, Reranking};
pub use vectors::{SparseVector, VectorArray, VectorRanges};

/// One kind of work, served by one pool.
///
/// A one-shot capability has `Chunk = NoChunk`; a streamed one sends chunks before its output.
///
/// ```
/// use model_actors::{Capability, Cost, NoChunk};
///
/// struct Translation;
/// impl Capability for Translation {
///     type Request = Vec<String>;
///     type Chunk = NoChunk;
///     type Output = Vec<String>;
///     const NAME: &'static str = "translation";
///     fn cost(request: &Self::Request) -> Cost {
///         Cost(request.iter().map(|text| text.len() as u64).sum())
///     }
/// }
/// assert_eq!(Translation::cost(&vec!["a sentence".into()]), Cost(10));
/// ```
pub trait Capability: Send + Sync + 'static {
    /// The request type. A request is kept until it is answered, so that it can be run again after a crash.
    type Request: Send + Sync + 'static;
    /// The items of a stream before its output; [`NoChunk`] for a one-shot capability.
    type Chunk: Send + 'static;
    /// The result of a request that succeeds.
    type Output: Send + 'static;

    /// The name in status, events, metrics and threads: not empty, at most
    /// [`MAX_NAME_BYTES`](crate::limits::MAX_NAME_BYTES) long, without control characters
    /// and slashes, and not `maintenance`.
    const NAME: &'static str;

    /// Default capacities of the two lanes.
    const QUEUE: QueueCapacity = QueueCapacity::new(100, 50);

    /// The way in which requests share a run, unless a model's specification says otherwise.
    const BATCHING: Batching = Batching::PerRun;

    /// Checks the request in the caller's task, before it takes a slot.
    ///
    /// # Errors
    /// The reason why no model can serve the request, for [`crate::Error::InvalidInput`]. An error type of
    /// the application's own keeps its data with [`Cause::with_data`]; a sentence converts with `into()`.
    fn check(_request: &Self::Request) -> Result<(), Cause> {
        Ok(())
    }

    /// Cost of the request against [`crate::BatchLimits::cost`].
    fn cost(_request: &Self::Request) -> Cost {
        Cost(1)
    }

    /// Numbers of tokens in and out, for the metrics, where the capability counts them.
    fn usage(_output: &Self::Output) -> Option<Usage> {
        None
    }

    /// Key of the batches that the request may share: only requests of one key run together.
    fn batch_key(_request: &Self::Request) -> BatchKey {
        BatchKey(0)
    }
}

/// Chunk type of a one-shot capability; no value of it exists.
///
/// ```
/// assert_eq!(size_of::<model_actors::NoChunk>(), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoChunk {}

/// Ways for requests to share a run.
///
/// ```
/// use model_actors::{Batching, Capability, TextEmbedding, TextToText};
/// assert_eq!((TextEmbedding::BATCHING, TextToText::BATCHING), (Batching::PerRun, Batching::Continuous));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Batching {
    /// A batch is formed, runs and ends as one.
    #[default]
    PerRun,
    /// Requests join and leave a run between its steps ([`crate::Batch::join`]).
    Continuous,
}

/// Cost of a request against a batch's budget, in the capability's own unit.
///
/// ```
/// use model_actors::{Capability, Cost, EmbedImages, ImageEmbedding};
/// let request = EmbedImages::texts(["a cat", "a dog"]);
/// assert_eq!(ImageEmbedding::cost(&request), Cost(2));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(pub u64);

/// Shape of a request: requests of different keys never share a batch.
///
/// ```
/// use model_actors::{Capability, EmbedImages, ImageEmbedding};
/// let (images, texts) = (EmbedImages::images([]), EmbedImages::texts([""; 0]));
/// assert_ne!(ImageEmbedding::batch_key(&images), ImageEmbedding::batch_key(&texts));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BatchKey(pub u64);
