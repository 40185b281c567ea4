//! A worker's run of a batch of texts to embed.

use model_actors::{Batch, EmbedTexts, Embeddings, Failure, Model, TextEmbedding};

use super::TextEmbeddingModel;
use crate::error::Result;
use crate::models::answers::{Watch, check};
use crate::models::text_runs::{self, TextModel};
use crate::models::token_batch::TokenBatch;
use crate::tokens::TokenIds;

impl Model<TextEmbedding> for TextEmbeddingModel {
    fn run(&mut self, batch: &mut Batch<'_, TextEmbedding>) -> Result<(), Failure> {
        text_runs::run(self, batch)
    }
}

impl TextModel<TextEmbedding> for TextEmbeddingModel {
    type Result = Vec<f32>;

    fn tokenize(&self, request: &EmbedTexts, watch: &Watch<'_>) -> Result<Vec<TokenIds>> {
        self.shared.tokenize(request, watch)
    }

    fn pass(&self, texts: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<Vec<f32>>> {
        self.shared.run(&self.threads, texts, watch)
    }

    fn output(&self, request: &EmbedTexts, vectors: Vec<Vec<f32>>, _: usize) -> Result<Embeddings> {
        let mut vectors = vectors.into_iter().map(check).collect::<Result<Vec<_>>>()?;
        vectors.iter_mut().for_each(|vector| self.shared.shorten(vector, request));
        Ok(Embeddings::new(vectors))
    }
}
