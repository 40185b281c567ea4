//! A worker's run of a batch of documents to score.

use model_actors::{Batch, Failure, Model, RankedDocument, Ranking, RerankDocuments, Reranking};

use super::RerankingModel;
use crate::error::{Error, Result};
use crate::models::answers::Watch;
use crate::models::text_runs::{self, TextModel, Tokenized};
use crate::models::token_batch::TokenBatch;

impl Model<Reranking> for RerankingModel {
    fn run(&mut self, batch: &mut Batch<'_, Reranking>) -> Result<(), Failure> {
        text_runs::run(self, batch)
    }
}

impl TextModel<Reranking> for RerankingModel {
    type Result = f32;

    fn tokenize(&self, request: &RerankDocuments, watch: &Watch<'_>) -> Result<Tokenized> {
        Ok(Tokenized::of(self.shared.pairs.encode(request, watch)?))
    }

    fn pass(&self, _: &RerankDocuments, pairs: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<f32>> {
        self.threads.run(|| self.shared.scorer.logits(pairs, watch))
    }

    fn output(&self, request: &RerankDocuments, logits: Vec<f32>, pairs: Tokenized) -> Result<Ranking> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::NotFiniteOutput);
        }
        let scored = logits.into_iter().enumerate();
        let scored =
            scored.map(|(index, logit)| RankedDocument::new(index, self.shared.activation.of(logit), logit));
        let ranking = Ranking::new(scored.collect(), pairs.usage());
        Ok(ranking.with_cut(pairs.cut).top(request.top_n))
    }
}
