//! A worker's run of a batch: it tokenizes what is still wanted, packs the texts of all requests into passes,
//! looks between layers and passes at who has gone, and answers each request as soon as its last vector is
//! there.

use std::collections::HashMap;

use model_actors::{Batch, Failure, Item, Model, TextEmbedding};

use super::{TextEmbeddingModel, TokenBatch, check};
use crate::error::Error;
use crate::models::passes::passes;
use crate::tokens::TokenIds;

/// A text of a batch on its way.
struct Text {
    item: usize,
    place: usize,
    tokens: TokenIds,
}

/// The vectors of one item that are there so far.
#[derive(Default)]
struct Answer {
    vectors: Vec<Vec<f32>>,
    missing: usize,
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
                self.deliver(item, &mut answers, text, vector);
            }
        }
        Ok(())
    }
}

/// Ticks progress, and says whether anybody still waits for a pass with texts of these items.
fn watch(items: &[&Item<TextEmbedding>]) -> Result<(), Error> {
    items.iter().for_each(|item| item.tick());
    if items.iter().all(|item| item.should_stop()) { Err(Error::Stopped) } else { Ok(()) }
}

impl TextEmbeddingModel {
    /// Tokenizes what is still wanted; an item with a bad input fails alone.
    fn prepare(&self, batch: &Batch<'_, TextEmbedding>) -> (Vec<Text>, HashMap<usize, Answer>) {
        let (mut texts, mut answers) = (Vec::new(), HashMap::new());
        for (index, item) in batch.items().iter().enumerate() {
            if item.should_stop() {
                continue;
            }
            match self.shared.tokenize(item.request(), || watch(&[item])) {
                Ok(tokens) => {
                    let missing = tokens.len();
                    answers.insert(index, Answer { vectors: vec![Vec::new(); missing], missing });
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

    /// Puts a vector into its item's answer, and sends that once it is whole.
    fn deliver(
        &self,
        item: &Item<TextEmbedding>,
        answers: &mut HashMap<usize, Answer>,
        text: &Text,
        vector: Vec<f32>,
    ) {
        let Some(answer) = answers.get_mut(&text.item) else { return };
        match check(vector) {
            Ok(mut vector) => {
                self.shared.shorten(&mut vector, item.request());
                answer.vectors[text.place] = vector;
                answer.missing -= 1;
            }
            Err(error) => {
                item.fail(error.into());
                answers.remove(&text.item);
                return;
            }
        }
        if answer.missing == 0
            && let Some(answer) = answers.remove(&text.item)
        {
            item.finish(answer.vectors);
        }
    }
}
