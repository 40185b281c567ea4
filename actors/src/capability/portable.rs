//! Capabilities whose requests and answers can leave the process. The format is left to `wire`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Capability, ImageEmbedding, Reranking, TextEmbedding, TextToImage, TextToText, Vision};

/// A capability whose requests, chunks and outputs can travel to another process and be read there. The shipped ones
/// are; one of an application's own need not be, and is with an empty implementation once its types serialise.
///
/// Messages grow with time: give a new field a default (`#[serde(default)]`), and change the meaning of none.
///
/// ```
/// use model_actors::{Capability, NoChunk, Portable};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Documents {
///     query: String,
///     documents: Vec<String>,
/// }
///
/// struct Ranking;
/// impl Capability for Ranking {
///     type Request = Documents;
///     type Chunk = NoChunk;
///     type Output = Vec<f32>;
///     const NAME: &'static str = "ranking";
/// }
/// impl Portable for Ranking {}
/// ```
pub trait Portable:
    Capability<
        Request: Serialize + DeserializeOwned,
        Chunk: Serialize + DeserializeOwned,
        Output: Serialize + DeserializeOwned,
    >
{
    /// True if a request may run a second time on another node, when the first node is gone and nothing of the answer is out.
    /// Set it to false where a run has effects beyond its answer.
    const RUNS_AGAIN: bool = true;
}

impl Portable for TextEmbedding {}
impl Portable for Reranking {}
impl Portable for TextToText {}
impl Portable for ImageEmbedding {}
impl Portable for Vision {}
impl Portable for TextToImage {}
