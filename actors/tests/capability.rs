//! A capability that an application defines is served like those that ship.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use model_actors::{
    Batch, BatchKey, BatchLimits, Bytes, CallOptions, Capability, Cause, Cost, Error, Failure, Footprint,
    LoadContext, LoadStage, Loader, Model, ModelSpec, NoChunk, PoolConfig, QueueCapacity, System,
    SystemConfig, TextEmbedding, Weights,
};

/// Counts words, unlike the capability that ships under this name.
struct Reranking;

#[derive(Debug, Clone)]
struct Rerank {
    query: String,
    documents: Vec<String>,
}

impl Capability for Reranking {
    type Request = Rerank;
    type Chunk = NoChunk;
    type Output = Vec<f32>;
    const NAME: &'static str = "reranking";
    const QUEUE: QueueCapacity = QueueCapacity::new(4, 2);

    fn check(request: &Rerank) -> Result<(), Cause> {
        if request.documents.is_empty() { Err("there are no documents to rank".into()) } else { Ok(()) }
    }

    fn cost(request: &Rerank) -> Cost {
        Cost(request.documents.iter().map(|document| document.len() as u64).sum())
    }

    fn batch_key(request: &Rerank) -> BatchKey {
        BatchKey(request.documents.len() as u64)
    }
}

/// Counts the words of the query that a document has.
struct WordOverlap;

impl Loader<Reranking> for WordOverlap {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::new(Bytes::mib(1), Bytes(100)))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<Reranking>>, Failure> {
        context.begin(LoadStage::Load, Bytes::mib(1));
        context.advance(Bytes::mib(1));
        Ok(Arc::new(WordOverlap))
    }
}

impl Weights<Reranking> for WordOverlap {
    fn footprint(&self) -> Footprint {
        Footprint::new(Bytes::mib(1), Bytes(100))
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<Reranking>>, Failure> {
        Ok(Box::new(WordOverlap))
    }
}

impl Model<Reranking> for WordOverlap {
    fn run(&mut self, batch: &mut Batch<Reranking>) -> Result<(), Failure> {
        for item in batch.items() {
            let Rerank { query, documents } = item.request();
            let score =
                |document: &String| query.split(' ').filter(|word| document.contains(word)).count() as f32;
            item.finish(documents.iter().map(score).collect());
            batch.tick();
        }
        Ok(())
    }
}

fn rerank(query: &str, documents: &[&str]) -> Rerank {
    Rerank {
        query: query.to_owned(),
        documents: documents.iter().map(|&document| document.to_owned()).collect(),
    }
}

#[tokio::test]
async fn a_reranker_of_its_own_is_served_beside_those_that_ship() {
    let batch = BatchLimits::default().with_requests(8).with_cost(1000);
    let config = SystemConfig::default().with_memory_limit(Bytes::mib(8));
    let system = System::builder(config)
        .pool::<TextEmbedding>(PoolConfig::default())
        .pool::<Reranking>(PoolConfig::default().with_batch(batch))
        .start()
        .await
        .unwrap();
    let client = system.client::<Reranking>().unwrap();
    let model = client.register(ModelSpec::new("word-overlap", WordOverlap)).unwrap();

    let scores =
        model.call(rerank("red fox", &["a red fox", "a fox", "a dog"]), CallOptions::default()).await;
    assert_eq!(scores.unwrap(), [2.0, 1.0, 0.0]);
    let error = model.call(rerank("red fox", &[]), CallOptions::default()).await.unwrap_err();
    assert!(
        matches!(&error, Error::InvalidInput { cause } if cause.message().contains("no documents")),
        "{error}"
    );
    assert_eq!(client.slots(), (6, 6), "its own queue, and all of it free");
    let status = system.status();
    assert!(
        status.pool("reranking").is_some() && status.model("reranking", "word-overlap").unwrap().is_serving()
    );
    model.unload(Duration::from_secs(5)).await.unwrap();
    assert!(system.shutdown().await.is_clean());
}

#[tokio::test]
async fn two_pools_of_one_capability_are_refused() {
    let builder = System::builder(SystemConfig::default());
    let twice = builder.pool::<Reranking>(PoolConfig::default()).pool::<Reranking>(PoolConfig::default());
    let error = twice.start().await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "pools"), "{error}");
}

/// A capability that no request gets into.
struct Closed;

impl Capability for Closed {
    type Request = ();
    type Chunk = NoChunk;
    type Output = ();
    const NAME: &'static str = "closed";
    const QUEUE: QueueCapacity = QueueCapacity::new(0, 1);
}

impl Loader<Closed> for WordOverlap {
    fn footprint(&self, _: &LoadContext) -> Result<Footprint, Failure> {
        Ok(Footprint::default())
    }

    fn load(&self, _: &LoadContext) -> Result<Arc<dyn Weights<Closed>>, Failure> {
        Err(Failure::permanent("nobody gets here"))
    }
}

#[tokio::test]
async fn a_capability_without_places_in_its_queue_is_refused_and_not_waited_for() {
    let system = System::builder(SystemConfig::default()).pool::<Closed>(PoolConfig::default()).start().await;
    let system = system.unwrap();
    let refused = system.client::<Closed>().unwrap().register(ModelSpec::new("model", WordOverlap));
    assert!(matches!(refused, Err(Error::InvalidConfig { setting, .. }) if setting == "queue.interactive"));
    system.shutdown().await;
}
