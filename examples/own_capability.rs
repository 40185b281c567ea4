//! A capability of an application's own: documents scored by the words that they share with a query. It loads its
//! files from a `Source` through the engine, and gets the same queues, workers, memory budget and errors as
//! the shipped ones.
//!
//! ```text
//! cargo run --release --example own_capability
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use candle_actors::{
    Batch, Bytes, Capability, Cause, Engine, EngineCapability, EngineResources, Failure, Footprint,
    IntoModelSpec, LoadContext, LoadStage, Loader, Model, ModelHandle, ModelId, ModelSpec, NoChunk,
    PoolConfig, Result, Source, SourceSpec, Weights,
};

/// The capability: a query and documents in, a score for each document out.
struct WordOverlap;

struct Documents {
    query: String,
    documents: Vec<String>,
}

impl Capability for WordOverlap {
    type Request = Documents;
    type Chunk = NoChunk;
    type Output = Vec<f32>;
    const NAME: &'static str = "word_overlap";

    fn check(request: &Documents) -> Result<(), Cause> {
        if request.documents.is_empty() { Err("the request holds no documents".into()) } else { Ok(()) }
    }
}

/// The engine hands out the actors' own handle.
impl EngineCapability for WordOverlap {
    type Handle = ModelHandle<Self>;

    fn handle(model: ModelHandle<Self>, _: &EngineResources) -> Self::Handle {
        model
    }
}

/// A source is registered with the loader below.
impl IntoModelSpec<WordOverlap> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<WordOverlap>> {
        Ok(ModelSpec::new(id, VocabularyLoader { source: self.source, resources: resources.clone() }))
    }
}

/// Loads the vocabulary of a tokenizer, in which rare words come late.
struct VocabularyLoader {
    source: Source,
    resources: EngineResources,
}

impl VocabularyLoader {
    /// A file of a repository is fetched first, with the engine's hub settings; the context carries progress
    /// and stop.
    fn file(&self, context: &LoadContext) -> Result<PathBuf> {
        self.resources.open(&self.source, context)?.get("tokenizer.json")
    }
}

impl Loader<WordOverlap> for VocabularyLoader {
    fn footprint(&self, context: &LoadContext) -> Result<Footprint, Failure> {
        let file = fs::metadata(self.file(context)?).map_err(Failure::failed)?;
        Ok(Footprint::new(Bytes(file.len()), Bytes::mib(1)))
    }

    fn load(&self, context: &LoadContext) -> Result<Arc<dyn Weights<WordOverlap>>, Failure> {
        let text = fs::read(self.file(context)?).map_err(Failure::failed)?;
        context.begin(LoadStage::Load, Bytes(text.len() as u64));
        let tokenizer: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| Failure::permanent(error.to_string()))?;
        context.advance(Bytes(text.len() as u64));
        let words = tokenizer["model"]["vocab"].as_object().into_iter().flatten();
        let ranks = words.filter_map(|(word, rank)| Some((word.clone(), rank.as_u64()? as f32)));
        Ok(Arc::new(Vocabulary { ranks: Arc::new(ranks.collect()), bytes: Bytes(text.len() as u64) }))
    }
}

/// The weights, which all workers share.
struct Vocabulary {
    ranks: Arc<HashMap<String, f32>>,
    bytes: Bytes,
}

impl Weights<WordOverlap> for Vocabulary {
    fn footprint(&self) -> Footprint {
        Footprint::new(self.bytes, Bytes::mib(1))
    }

    fn build(&self, _: &LoadContext) -> Result<Box<dyn Model<WordOverlap>>, Failure> {
        Ok(Box::new(Ranker(Arc::clone(&self.ranks))))
    }
}

/// One worker's model: a document scores for the words that it shares with the query, more for rarer ones.
struct Ranker(Arc<HashMap<String, f32>>);

impl Model<WordOverlap> for Ranker {
    fn run(&mut self, batch: &mut Batch<WordOverlap>) -> Result<(), Failure> {
        for item in batch.items() {
            let Documents { query, documents } = item.request();
            let asked = words(query);
            let score =
                |document: &String| words(document).intersection(&asked).map(|word| self.weight(word)).sum();
            item.finish(documents.iter().map(score).collect());
        }
        Ok(())
    }
}

impl Ranker {
    fn weight(&self, word: &str) -> f32 {
        let unknown = self.0.len() as f32;
        self.0.get(word).copied().unwrap_or(unknown).max(1.0).ln()
    }
}

fn words(text: &str) -> HashSet<String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let source = Source::directory(concat!(env!("CARGO_MANIFEST_DIR"), "/models/english-embedding-small"));
    let engine = Engine::builder()
        .capability::<WordOverlap>(PoolConfig::default().with_max_workers(1))
        .register::<WordOverlap>("ranker", source)
        .start()
        .await?;

    let query = "Where does the cat sleep when it rains?".to_owned();
    let documents = ["The bus was late again.", "When it rains, the cat comes in.", "The cat has eaten."];
    let request = Documents { query, documents: documents.map(str::to_owned).to_vec() };
    let scores = engine.handle::<WordOverlap>("ranker")?.call(request, Default::default()).await?;

    let mut ranked: Vec<_> = scores.iter().zip(documents).collect();
    ranked.sort_by(|left, right| right.0.total_cmp(left.0));
    for (score, document) in ranked {
        println!("{score:5.1}  {document}");
    }
    engine.shutdown().await;
    Ok(())
}
