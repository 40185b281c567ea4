//! The handle to one reranking model: a query and documents in, the documents in order of relevance out. Many documents
//! become several requests side by side; queues, workers and memory are left to the actors.

use model_actors::{
    Lane, ModelHandle, ModelId, ModelSpec, RankedDocument, Ranking, RerankDocuments, Reranking, Usage,
};

use crate::error::Result;
use crate::handles::calls::{
    Calls, TEXT_REQUESTS_AT_A_TIME, TEXTS_PER_REQUEST, call_settings, in_order, numbered, portions,
};
use crate::models::reranking::RerankingModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;

impl EngineCapability for Reranking {
    type Handle = Reranker;

    fn handle(model: ModelHandle<Self>, _: &EngineResources) -> Reranker {
        Reranker { calls: Calls::new(model) }
    }
}

impl IntoModelSpec<Reranking> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<Reranking>> {
        self.loaded_by::<RerankingModel>(id, resources)
    }
}

/// Handle to a reranking model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, RerankDocuments, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("cross-encoder/ms-marco-MiniLM-L6-v2");
/// let engine = Engine::builder().reranking("minilm", source).start().await?;
/// let documents = ["Cats sleep for 15 hours a day.", "The bus was late."];
/// let request = RerankDocuments::new("how long do cats sleep", documents).with_top_n(1);
/// let ranking = engine.reranking("minilm")?.rank(request).await?;
/// assert_eq!(ranking.documents[0].index, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Reranker {
    calls: Calls<Reranking>,
}

call_settings!(Reranker for Reranking);

impl Reranker {
    /// Orders documents by how well they answer the query. More than 32 are split into requests of so many, which run side by
    /// side in the interactive lane, 16 at a time; the first that fails ends the others. Dropping the future cancels them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput); [`Error::Actor`](crate::Error::Actor), of which
    /// [`Error::root`](crate::Error::root) gives a load's own error; [`Error::TextTooLong`](crate::Error::TextTooLong) where
    /// the request refuses to have documents cut.
    pub async fn rank(&self, mut request: RerankDocuments) -> Result<Ranking> {
        if request.documents.len() <= TEXTS_PER_REQUEST {
            return self.calls.call(request, Lane::Interactive).await;
        }
        let (top_n, documents) = (request.top_n, std::mem::take(&mut request.documents));
        let requests = numbered(portions(documents, TEXTS_PER_REQUEST));
        let call = async |(first, documents)| {
            let portion = request.clone().with_documents(documents);
            self.calls.call(portion, Lane::Interactive).await.map_err(|error| error.of_portion(first))
        };
        let rankings = in_order(requests, "documents", TEXT_REQUESTS_AT_A_TIME, call).await?;
        Ok(merged(rankings).top(top_n))
    }
}

/// The ranking of all documents, of those of each portion.
fn merged(rankings: Vec<Ranking>) -> Ranking {
    let tokens = rankings.iter().map(|ranking| ranking.usage.prompt_tokens).sum();
    let (mut documents, mut cut) = (Vec::new(), Vec::new());
    for (first, ranking) in numbered(rankings) {
        let placed = |document: RankedDocument| {
            RankedDocument::new(first + document.index, document.score, document.logit)
        };
        documents.extend(ranking.documents.into_iter().map(placed));
        cut.extend(ranking.cut.into_iter().map(|index| first + index));
    }
    Ranking::new(documents, Usage::new(tokens, 0)).with_cut(cut)
}
