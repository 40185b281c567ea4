//! A worker's run of a batch: it tokenizes what is still wanted, packs the texts of all requests into passes,
//! looks between layers and passes at who has gone, and answers each request as soon as its last vector is
//! there.

use model_actors::{Batch, Failure, Item, Model, TextEmbedding};

use super::{TextEmbeddingModel, TokenBatch};
use crate::error::Error;
use crate::models::answers::{Answers, watch};
use crate::models::passes::passes;
use crate::tokens::TokenIds;

/// A text of a batch on its way.
struct Text {
    item: usize,
    place: usize,
    tokens: TokenIds,
}

impl Model<TextEmbedding> for TextEmbeddingModel {
    fn run(&mut self, batch: &mut Batch<'_, TextEmbedding>) -> Result<(), Failure> {
        let (texts, mut answers) = self.prepare(batch);
        for pass in passes(texts, |text| text.tokens.ids.len()) {
            let wanted = |text: &&Text| !batch.items()[text.item].should_stop();
            let pass: Vec<&Text> = pass.iter().filter(wanted).collect();
            if pass.is_empty() {
                continue;
            }
            let mut tokens = TokenBatch::default();
            pass.iter().for_each(|text| tokens.push(&text.tokens));
            let items: Vec<&Item<TextEmbedding>> =
                pass.iter().map(|text| &batch.items()[text.item]).collect();
            let vectors = match self.shared.run(&self.threads, &tokens, &|| watch(&items)) {
                // Whoever waits for other passes still gets them.
                Err(Error::Stopped) => continue,
                vectors => vectors?,
            };
            for (text, vector) in pass.into_iter().zip(vectors) {
                let item = &batch.items()[text.item];
                answers.deliver((text.item, item), text.place, vector, |vector| {
                    self.shared.shorten(vector, item.request());
                });
            }
        }
        Ok(())
    }
}

impl TextEmbeddingModel {
    /// Tokenizes what is still wanted; an item with a bad input fails alone.
    fn prepare(&self, batch: &Batch<'_, TextEmbedding>) -> (Vec<Text>, Answers) {
        let (mut texts, mut answers) = (Vec::new(), Answers::default());
        for (index, item) in batch.items().iter().enumerate() {
            if item.should_stop() {
                continue;
            }
            match self.shared.tokenize(item.request(), || watch(&[item])) {
                Ok(tokens) => {
                    answers.open(index, tokens.len());
                    let text = |(place, tokens)| Text { item: index, place, tokens };
                    texts.extend(tokens.into_iter().enumerate().map(text));
                }
                // Nobody waits for it any more.
                Err(Error::Stopped) => {}
                Err(error) => item.fail(error.into()),
            }
            batch.tick();
        }
        (texts, answers)
    }
}
