//! Reranking: a query and documents to scores. The list of families is here, and what they share: configuration, pairs of
//! texts, activation, and the three roles of the actors' model contract. Most are an encoder of text embedding with a
//! classifier behind it, whose tensors a family's file names; a language model is asked for yes or no.

mod pairs;
mod head;
mod classifier;
mod bert;
mod roberta;
mod modernbert;
mod answer;
mod qwen3;
mod plan;
mod worker;

use std::sync::Arc;

use candle_core::Device;
use model_actors::{Bytes, Footprint, LoadContext, Ranking, RerankDocuments};

use crate::architecture::Family;
use crate::device::{Compute, ComputeThreads};
use crate::error::Result;
use crate::loader::{WorkerModel, standalone_model};
use crate::models::answers::Watch;
use crate::models::text_runs;
use crate::models::token_batch::TokenBatch;
use crate::weights::WeightFiles;
use pairs::{PairEncoder, PairForm};
pub(crate) use plan::RerankingPlan;

/// The families, in the order that errors list them. A new one is its file and its line here.
const FAMILIES: &[Family<Box<dyn Architecture>>] = &[
    bert::FAMILY,
    roberta::FAMILY,
    roberta::MULTILINGUAL,
    roberta::FRENCH,
    modernbert::FAMILY,
    qwen3::FAMILY,
];

/// The capability's name in errors.
const CAPABILITY: &str = "reranking";

/// The number of a token by its text.
type TokenId<'a> = dyn Fn(&str) -> Result<u32> + 'a;

/// A model that is not loaded, as its configuration describes it.
trait Architecture: Send + Sync {
    /// Number of tokens that it knows.
    fn vocabulary(&self) -> usize;
    /// Maximum number of tokens of a pair, special ones included.
    fn longest(&self) -> usize;
    /// The form in which it is given a pair.
    fn form(&self) -> PairForm;
    /// True for the tensors of the file that are loaded.
    fn uses(&self, tensor: &str) -> bool;
    /// True for matrices that keep their numbers of 16 bits where the device packs them.
    fn packs(&self, _: &str) -> bool {
        false
    }
    /// True for tensors of the file that change no score.
    fn has_no_effect(&self, tensor: &str) -> bool;
    /// Bytes that a pass over so many tokens needs besides the weights, where the longest pair has `longest` of them.
    fn scratch(&self, tokens: usize, longest: usize) -> Bytes;
    fn load(
        &self,
        weights: &WeightFiles,
        id: &TokenId<'_>,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Scorer>>;
}

/// A loaded model. It keeps nothing between passes, so that all workers share one.
trait Scorer: Send + Sync {
    /// One logit for each pair. Calls `watch` after each layer.
    fn logits(&self, pairs: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<f32>>;
}

/// The function from a logit to a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScoreActivation {
    Identity,
    Sigmoid,
}

impl ScoreActivation {
    fn of(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        }
    }
}

/// A model in memory, shared by its workers.
pub(crate) struct LoadedModel {
    scorer: Arc<dyn Scorer>,
    pairs: PairEncoder,
    activation: ScoreActivation,
    compute: Compute,
    footprint: Footprint,
    longest: usize,
}

/// A loaded reranking model without actors around it, for tools and for comparison: the very code that a worker runs.
///
/// ```no_run
/// use candle_actors::{RerankDocuments, RerankingModel, Source, StandaloneModel};
/// # fn main() -> candle_actors::Result<()> {
/// let model = RerankingModel::load(Source::directory("models/ms-marco-MiniLM-L6-v2"))?;
/// let documents = ["Cats sleep for 15 hours a day.", "The bus was late."];
/// let ranking = model.rank(&RerankDocuments::new("how long do cats sleep", documents))?;
/// assert_eq!(ranking.documents[0].index, 0);
/// # Ok(())
/// # }
/// ```
pub struct RerankingModel {
    shared: Arc<LoadedModel>,
    threads: ComputeThreads,
}

standalone_model!(RerankingModel for Reranking);

impl WorkerModel for RerankingModel {
    type Plan = RerankingPlan;

    fn over(shared: Arc<LoadedModel>) -> Result<Self> {
        let threads = ComputeThreads::for_kernels(shared.compute.threads)?;
        Ok(Self { shared, threads })
    }

    fn loaded(&self) -> &Arc<LoadedModel> {
        &self.shared
    }

    fn footprint_of(loaded: &LoadedModel) -> Footprint {
        loaded.footprint
    }
}

impl RerankingModel {
    /// Maximum number of tokens of a query and a document together, special ones included; the end of a longer document is
    /// not looked at.
    pub fn max_tokens(&self) -> usize {
        self.shared.longest
    }

    /// Scores the documents of a request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), [`Error::NotFiniteOutput`](crate::Error::NotFiniteOutput) or
    /// [`Error::Compute`](crate::Error::Compute).
    pub fn rank(&self, request: &RerankDocuments) -> Result<Ranking> {
        text_runs::alone(self, request)
    }
}
