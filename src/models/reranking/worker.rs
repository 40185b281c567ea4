//! A worker's run of a batch of documents to score.

use model_actors::{Batch, Failure, Model, RankedDocument, Ranking, RerankDocuments, Reranking, Usage};

use super::RerankingModel;
use crate::error::{Error, Result};
use crate::models::answers::Watch;
use crate::models::text_runs::{self, TextModel};
use crate::models::token_batch::TokenBatch;
use crate::tokens::TokenIds;

impl Model<Reranking> for RerankingModel {
    fn run(&mut self, batch: &mut Batch<'_, Reranking>) -> Result<(), Failure> {
        text_runs::run(self, batch)
    }
}

impl TextModel<Reranking> for RerankingModel {
    type Result = f32;

    fn tokenize(&self, request: &RerankDocuments, watch: &Watch<'_>) -> Result<Vec<TokenIds>> {
        self.shared.pairs.encode(request, watch)
    }

    fn pass(&self, pairs: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<f32>> {
        self.threads.run(|| self.shared.scorer.logits(pairs, watch))
    }

    fn output(&self, request: &RerankDocuments, logits: Vec<f32>, tokens: usize) -> Result<Ranking> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::NotFiniteOutput);
        }
        let scored = logits.into_iter().enumerate();
        let scored =
            scored.map(|(index, logit)| RankedDocument::new(index, self.shared.activation.of(logit), logit));
        Ok(Ranking::new(scored.collect(), Usage::new(tokens, 0)).top(request.top_n))
    }
}
