//! What a pool can be asked for. `Capability` is open: an application defines a sixth one outside this crate. The
//! five that ship are only request and reply types and limits; no line here knows how any model works.

use std::convert::Infallible;
use std::fmt;

use crate::config::QueueCapacity;

mod generation;
mod image;
mod embedding;

pub use embedding::{EmbedImages, EmbedPrompt, EmbedTexts, Embeddings, ImageEmbedding, TextEmbedding};
pub use generation::{
    Completion, FinishReason, GenerateText, Message, Prompt, Role, Sampling, TextToText, Usage,
};
pub use image::{
    DescribeImage, ImageSource, LeasedPicture, PaintImage, PaintStep, Picture, TextToImage, Vision,
};

/// One kind of work, served by one pool.
///
/// A one-shot capability has `Chunk = NoChunk`; a streamed one sends chunks before its output.
///
/// ```
/// use model_actors::{Capability, Cost, NoChunk};
///
/// struct Reranking;
/// impl Capability for Reranking {
///     type Request = (String, Vec<String>);
///     type Chunk = NoChunk;
///     type Output = Vec<f32>;
///     const NAME: &'static str = "reranking";
///     fn cost(request: &Self::Request) -> Cost {
///         Cost(request.1.iter().map(|document| document.len() as u64).sum())
///     }
/// }
/// assert_eq!(Reranking::cost(&("query".into(), vec!["a document".into()])), Cost(10));
/// ```
pub trait Capability: Send + Sync + 'static {
    /// What a caller asks. It is kept until the answer, so that it can be run again after a crash.
    type Request: Send + Sync + 'static;
    /// What a stream sends before its output.
    type Chunk: Send + 'static;
    /// What ends a request well.
    type Output: Send + 'static;

    /// The name in status, events, metrics and threads.
    const NAME: &'static str;

    /// Default capacities of the two lanes.
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 100, batch: 50 };

    /// Checks the request in the caller's task, before it takes a slot.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what is allowed.
    fn check(_request: &Self::Request) -> Result<(), String> {
        Ok(())
    }

    /// What the request costs against [`crate::BatchLimits::cost`].
    fn cost(_request: &Self::Request) -> Cost {
        Cost(1)
    }

    /// Only requests of one key share a batch.
    fn batch_key(_request: &Self::Request) -> BatchKey {
        BatchKey(0)
    }
}

/// The chunk of a capability that has none: it cannot be made.
pub type NoChunk = Infallible;

/// What a request costs against a batch's budget, in the capability's own unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(pub u64);

/// Keeps requests of unlike shape out of one batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BatchKey(pub u64);

/// Which of a model's two queues a request waits in.
///
/// ```
/// assert_eq!(model_actors::Lane::Batch.to_string(), "batch");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Lane {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Bulk work, served after interactive requests of the same age and priority.
    Batch,
}

impl Lane {
    /// The name, as in errors, metrics and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How urgent a request is against others of its model. It ages: waiting raises it.
///
/// ```
/// use model_actors::Priority;
/// assert!(Priority::HIGH > Priority::default());
/// ```
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Priority(pub i8);

impl Priority {
    /// Two levels above the default.
    pub const HIGH: Self = Self(2);
    /// Two levels below the default.
    pub const LOW: Self = Self(-2);
}
