//! The capability of ordering documents by how well they answer a query.

use serde::{Deserialize, Serialize};

use super::embedding::{check_text, check_texts};
use super::{Capability, Cost, NoChunk, Truncate, Usage};
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::MAX_EMBED_PROMPT_BYTES;

/// The capability of scoring documents against a query, each together with it. One-shot.
///
/// ```
/// use model_actors::{Capability, RerankDocuments, Reranking};
/// assert!(Reranking::check(&RerankDocuments::default()).is_err(), "no document");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Reranking;

/// A request to order documents by their relevance to a query.
///
/// ```
/// use model_actors::RerankDocuments;
/// let documents = ["Cats sleep for 15 hours a day.", "The bus was late."];
/// let request = RerankDocuments::new("how long do cats sleep", documents).with_top_n(1);
/// assert_eq!(request.documents.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RerankDocuments {
    /// The query, up to 1 MiB.
    pub query: String,
    /// 1 to 256 documents of up to 1 MiB each.
    pub documents: Vec<String>,
    /// The task in words, up to 16 KiB, for models that are instructed (Qwen3-Reranker); others have it before the query,
    /// as a prompt. `None`: the model's default. Empty: none.
    pub instruction: Option<String>,
    /// Number of documents to return, the best ones. `None`: all.
    pub top_n: Option<usize>,
    /// Fate of a query and a document with more tokens together than the model takes.
    pub truncate: Truncate,
}

setters! { RerankDocuments {
    with_query(query: impl Into<String>) Into::into;
    with_documents(documents: Vec<String>);
    with_instruction(instruction: impl Into<Option<String>>) Into::into;
    with_top_n(top_n: impl Into<Option<usize>>) Into::into;
    with_truncate(truncate: Truncate);
} }

impl RerankDocuments {
    /// A request for all of these documents, with the model's default instruction.
    pub fn new<T: Into<String>>(query: impl Into<String>, documents: impl IntoIterator<Item = T>) -> Self {
        let documents = documents.into_iter().map(Into::into).collect();
        Self { query: query.into(), documents, ..Self::default() }
    }
}

/// A document's place in a request, and its scores.
///
/// ```
/// let document = model_actors::RankedDocument::new(3, 0.5, 0.0);
/// assert_eq!(document.index, 3);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RankedDocument {
    /// Index of the document in the request.
    pub index: usize,
    /// Relevance after the model's own activation: from 0 to 1 for most models, the logit for those without one.
    pub score: f32,
    /// Relevance as the model's last layer gives it.
    pub logit: f32,
}

impl RankedDocument {
    /// The document of this index with its scores.
    pub const fn new(index: usize, score: f32, logit: f32) -> Self {
        Self { index, score, logit }
    }
}

/// The output of a request to rerank.
///
/// ```
/// use model_actors::{RankedDocument, Ranking, Usage};
/// let documents = vec![RankedDocument::new(0, 0.1, -2.2), RankedDocument::new(1, 0.9, 2.2)];
/// let ranking = Ranking::new(documents, Usage::new(24, 0)).top(1);
/// assert_eq!(ranking.documents[0].index, 1);
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Ranking {
    /// The documents, the most relevant one first; of equally relevant ones, the one that came first.
    pub documents: Vec<RankedDocument>,
    /// Numbers of tokens: the query's count for each document.
    pub usage: Usage,
    /// Indices of the documents that had more tokens, together with the query, than the model takes, and were cut.
    pub cut: Vec<usize>,
}

setters! { Ranking {
    with_cut(cut: Vec<usize>);
} }

impl Ranking {
    /// The ranking of these documents, whatever their order.
    pub fn new(mut documents: Vec<RankedDocument>, usage: Usage) -> Self {
        documents.sort_by(|one, other| other.logit.total_cmp(&one.logit).then(one.index.cmp(&other.index)));
        Self { documents, usage, cut: Vec::new() }
    }

    /// The same, of which only the best documents are kept.
    #[must_use]
    pub fn top(mut self, count: impl Into<Option<usize>>) -> Self {
        self.documents.truncate(count.into().unwrap_or(usize::MAX));
        self
    }
}

impl Capability for Reranking {
    type Request = RerankDocuments;
    type Chunk = NoChunk;
    type Output = Ranking;
    const NAME: &'static str = "reranking";
    const QUEUE: QueueCapacity = QueueCapacity::new(100, 50);

    fn check(request: &RerankDocuments) -> Result<(), Cause> {
        if request.top_n == Some(0) {
            return Err("top_n is 0; at least 1 document has to be asked for".into());
        }
        if let Some(bytes) = request.instruction.as_ref().map(String::len)
            && bytes > MAX_EMBED_PROMPT_BYTES
        {
            let most = MAX_EMBED_PROMPT_BYTES;
            return Err(format!("the instruction has {bytes} bytes; at most {most} are allowed").into());
        }
        check_text("the query", &request.query)?;
        check_texts("document", &request.documents)
    }

    /// Approximate number of tokens, as of texts to embed; the query counts for each document.
    fn cost(request: &RerankDocuments) -> Cost {
        let around = request.query.len() + request.instruction.as_ref().map_or(0, String::len);
        Cost(request.documents.iter().map(|document| (around + document.len()) as u64 / 4 + 3).sum())
    }

    fn usage(output: &Ranking) -> Option<Usage> {
        Some(output.usage)
    }
}
