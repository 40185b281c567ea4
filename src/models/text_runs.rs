//! Runs of texts, or of pairs of texts, as the workers of text embedding and of reranking do them: what is still wanted is
//! tokenized, the texts of all requests are packed into passes, between layers and passes it is looked who has gone, and
//! each request is answered as soon as its last text is through. What a pass computes is left to the models.

use model_actors::{Batch, Capability, Failure, Item};

use super::answers::{Answers, Watch, watch};
use super::passes::passes;
use super::token_batch::TokenBatch;
use crate::error::{Error, Result};
use crate::tokens::TokenIds;

/// A model that makes something of each text by itself.
pub(super) trait TextModel<C: Capability> {
    /// The result of a text.
    type Result;

    /// The tokens of a request's texts. `watch` is called before each text and may end it: a request's texts can be a
    /// quarter of a gigabyte.
    fn tokenize(&self, request: &C::Request, watch: &Watch<'_>) -> Result<Vec<TokenIds>>;
    /// The results of the texts of a pass.
    fn pass(&self, texts: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<Self::Result>>;
    /// The output of a request, of the results of its texts in order and the number of tokens of all.
    fn output(&self, request: &C::Request, results: Vec<Self::Result>, tokens: usize) -> Result<C::Output>;
}

/// A text of a batch on its way.
struct Text {
    item: usize,
    place: usize,
    tokens: TokenIds,
}

fn packed<'a>(texts: impl IntoIterator<Item = &'a TokenIds>) -> TokenBatch {
    let mut batch = TokenBatch::default();
    texts.into_iter().for_each(|text| batch.push(text));
    batch
}

/// Runs the requests of a batch. One with a bad input or output fails alone.
pub(super) fn run<C: Capability, M: TextModel<C>>(model: &M, batch: &Batch<'_, C>) -> Result<(), Failure> {
    let (texts, tokens, mut answers) = prepare(model, batch);
    for pass in passes(texts, |text| text.tokens.ids.len()) {
        let wanted = |text: &&Text| !batch.items()[text.item].should_stop();
        let pass: Vec<&Text> = pass.iter().filter(wanted).collect();
        if pass.is_empty() {
            continue;
        }
        let items: Vec<&Item<C>> = pass.iter().map(|text| &batch.items()[text.item]).collect();
        let packed = packed(pass.iter().map(|text| &text.tokens));
        let results = match model.pass(&packed, &|| watch(&items)) {
            // Whoever waits for other passes still gets them.
            Err(Error::Stopped) => continue,
            results => results?,
        };
        for (text, result) in pass.into_iter().zip(results) {
            if let Some(results) = answers.put(text.item, text.place, result) {
                let item = &batch.items()[text.item];
                match model.output(item.request(), results, tokens[text.item]) {
                    Ok(output) => item.finish(output),
                    Err(error) => item.fail(error.into()),
                }
            }
        }
    }
    Ok(())
}

/// Tokenizes what is still wanted; gives the number of tokens of each item, too.
fn prepare<C: Capability, M: TextModel<C>>(
    model: &M,
    batch: &Batch<'_, C>,
) -> (Vec<Text>, Vec<usize>, Answers<M::Result>) {
    let (mut texts, mut answers) = (Vec::new(), Answers::default());
    let mut counts = vec![0; batch.items().len()];
    for (index, item) in batch.items().iter().enumerate() {
        if item.should_stop() {
            continue;
        }
        match model.tokenize(item.request(), &|| watch(&[item])) {
            Ok(tokens) => {
                answers.open(index, tokens.len());
                counts[index] = tokens.iter().map(|text| text.ids.len()).sum();
                let text = |(place, tokens)| Text { item: index, place, tokens };
                texts.extend(tokens.into_iter().enumerate().map(text));
            }
            // Nobody waits for it any more.
            Err(Error::Stopped) => {}
            Err(error) => item.fail(error.into()),
        }
        batch.tick();
    }
    (texts, counts, answers)
}

/// The output of one request, without actors around the model.
///
/// # Errors
/// [`Error::InvalidInput`], [`Error::Compute`] and their like.
pub(super) fn alone<C: Capability, M: TextModel<C>>(model: &M, request: &C::Request) -> Result<C::Output> {
    let tokens = model.tokenize(request, &|| Ok(()))?;
    let count = tokens.iter().map(|text| text.ids.len()).sum();
    let mut results: Vec<(usize, M::Result)> = Vec::with_capacity(tokens.len());
    for pass in passes(tokens.iter().enumerate().collect(), |(_, text)| text.ids.len()) {
        let packed = packed(pass.iter().map(|(_, text)| *text));
        let places = pass.into_iter().map(|(place, _)| place);
        results.extend(places.zip(model.pass(&packed, &|| Ok(()))?));
    }
    results.sort_by_key(|(place, _)| *place);
    model.output(request, results.into_iter().map(|(_, result)| result).collect(), count)
}
