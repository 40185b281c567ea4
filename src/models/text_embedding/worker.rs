//! A worker's run of a batch of texts to embed.

use model_actors::{Batch, EmbedTexts, Embeddings, Failure, Model, TextEmbedding};

use super::{EmbeddedText, TextEmbeddingModel};
use crate::error::Result;
use crate::models::answers::{Watch, check};
use crate::models::text_runs::{self, TextModel, Tokenized};
use crate::models::token_batch::TokenBatch;

impl Model<TextEmbedding> for TextEmbeddingModel {
    fn run(&mut self, batch: &mut Batch<'_, TextEmbedding>) -> Result<(), Failure> {
        text_runs::run(self, batch)
    }
}

impl TextModel<TextEmbedding> for TextEmbeddingModel {
    type Result = EmbeddedText;

    fn tokenize(&self, request: &EmbedTexts, watch: &Watch<'_>) -> Result<Tokenized> {
        let (shared, outputs) = (&self.shared, request.outputs);
        let listed = match outputs.tokens {
            true => shared.list(request, watch)?,
            false => Vec::new(),
        };
        match outputs.need_model() {
            true => Ok(Tokenized::of(shared.tokenize(request, watch)?).listing(listed)),
            false => Ok(Tokenized::default().listing(listed)),
        }
    }

    fn pass(&self, request: &EmbedTexts, texts: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<EmbeddedText>> {
        self.shared.run(&self.threads, request.outputs, texts, watch)
    }

    fn output(
        &self,
        request: &EmbedTexts,
        results: Vec<EmbeddedText>,
        texts: Tokenized,
    ) -> Result<Embeddings> {
        let (mut vectors, mut sparse, mut token_vectors) = (Vec::new(), Vec::new(), Vec::new());
        for text in results {
            if request.outputs.vectors {
                let mut vector = check(text.vector)?;
                self.shared.shorten(&mut vector, request);
                vectors.push(vector);
            }
            sparse.extend(text.sparse);
            token_vectors.extend(text.token_vectors);
        }
        let (usage, Tokenized { cut, listed, .. }) = (texts.usage(), texts);
        let embeddings = Embeddings::new(vectors).with_usage(usage).with_cut(cut).with_tokens(listed);
        Ok(embeddings.with_sparse(sparse).with_token_vectors(token_vectors))
    }
}
