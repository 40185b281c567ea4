//! Runs of texts, or of pairs of texts, as the workers of text embedding and of reranking do them: what is still wanted is
//! tokenized, the texts of all requests are packed into passes, between layers and passes it is looked who has gone, and
//! each request is answered as soon as its last text is through. What a pass computes is left to the models.

use model_actors::{Batch, Capability, Failure, Item, TextToken, Usage};

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
    fn tokenize(&self, request: &C::Request, watch: &Watch<'_>) -> Result<Tokenized>;
    /// The results of the texts of a pass. They are of several requests of one batch key, of which one is given.
    fn pass(&self, request: &C::Request, texts: &TokenBatch, watch: &Watch<'_>) -> Result<Vec<Self::Result>>;
    /// The output of a request, of the results of its texts in order.
    fn output(&self, request: &C::Request, results: Vec<Self::Result>, texts: Tokenized)
    -> Result<C::Output>;
}

/// The texts of a request as tokens.
#[derive(Default)]
pub(super) struct Tokenized {
    /// Input of the model; gone once it is on its way.
    texts: Vec<TokenIds>,
    /// Number of these tokens.
    count: usize,
    /// Indices of the texts that were cut.
    pub(super) cut: Vec<usize>,
    /// Tokens that were asked for.
    pub(super) listed: Vec<Vec<TextToken>>,
}

impl Tokenized {
    /// Texts that are to go through the model.
    pub(super) fn of(texts: Vec<TokenIds>) -> Self {
        let numbered = texts.iter().enumerate();
        let cut = numbered.filter(|(_, text)| text.is_cut).map(|(index, _)| index).collect();
        let count = texts.iter().map(|text| text.ids.len()).sum();
        Self { texts, count, cut, listed: Vec::new() }
    }

    /// The same with tokens that were asked for.
    pub(super) fn listing(self, listed: Vec<Vec<TextToken>>) -> Self {
        Self { listed, ..self }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::new(self.count, 0)
    }
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
    let mut run = Run { model, batch, texts: Vec::new(), answers: Answers::default() };
    let mut tokenized: Vec<Tokenized> =
        batch.items().iter().enumerate().map(|item| run.prepare(item)).collect();
    for pass in passes(std::mem::take(&mut run.texts), |text| text.tokens.ids.len()) {
        let wanted = |text: &&Text| !batch.items()[text.item].should_stop();
        let pass: Vec<&Text> = pass.iter().filter(wanted).collect();
        let items: Vec<&Item<C>> = pass.iter().map(|text| &batch.items()[text.item]).collect();
        let Some(request) = items.first().map(|item| item.request()) else { continue };
        let packed = packed(pass.iter().map(|text| &text.tokens));
        let results = match model.pass(request, &packed, &|| watch(&items)) {
            // Whoever waits for other passes still gets them.
            Err(Error::Stopped) => continue,
            results => results?,
        };
        for (text, result) in pass.into_iter().zip(results) {
            if let Some(results) = run.answers.put(text.item, text.place, result) {
                run.finish(&batch.items()[text.item], results, std::mem::take(&mut tokenized[text.item]));
            }
        }
    }
    Ok(())
}

/// A batch under way.
struct Run<'a, 'b, C: Capability, M: TextModel<C>> {
    model: &'a M,
    batch: &'a Batch<'b, C>,
    texts: Vec<Text>,
    answers: Answers<M::Result>,
}

impl<C: Capability, M: TextModel<C>> Run<'_, '_, C, M> {
    /// Tokenizes the texts of an item if they are still wanted. One of which nothing has to go through the model is answered.
    fn prepare(&mut self, (index, item): (usize, &Item<C>)) -> Tokenized {
        if item.should_stop() {
            return Tokenized::default();
        }
        let tokenized = self.model.tokenize(item.request(), &|| watch(&[item]));
        self.batch.tick();
        match tokenized {
            Ok(tokenized) if tokenized.texts.is_empty() => self.finish(item, Vec::new(), tokenized),
            Ok(mut tokenized) => {
                let texts = std::mem::take(&mut tokenized.texts);
                self.answers.open(index, texts.len());
                let text = |(place, tokens)| Text { item: index, place, tokens };
                self.texts.extend(texts.into_iter().enumerate().map(text));
                return tokenized;
            }
            // Nobody waits for it any more.
            Err(Error::Stopped) => {}
            Err(error) => item.fail(error.into()),
        }
        Tokenized::default()
    }

    fn finish(&self, item: &Item<C>, results: Vec<M::Result>, tokenized: Tokenized) {
        match self.model.output(item.request(), results, tokenized) {
            Ok(output) => item.finish(output),
            Err(error) => item.fail(error.into()),
        }
    }
}

/// The output of one request, without actors around the model.
///
/// # Errors
/// [`Error::InvalidInput`], [`Error::Compute`] and their like.
pub(super) fn alone<C: Capability, M: TextModel<C>>(model: &M, request: &C::Request) -> Result<C::Output> {
    let mut tokenized = model.tokenize(request, &|| Ok(()))?;
    let texts = std::mem::take(&mut tokenized.texts);
    let mut results: Vec<(usize, M::Result)> = Vec::with_capacity(texts.len());
    for pass in passes(texts.iter().enumerate().collect(), |(_, text)| text.ids.len()) {
        let packed = packed(pass.iter().map(|(_, text)| *text));
        let places = pass.into_iter().map(|(place, _)| place);
        results.extend(places.zip(model.pass(request, &packed, &|| Ok(()))?));
    }
    results.sort_by_key(|(place, _)| *place);
    model.output(request, results.into_iter().map(|(_, result)| result).collect(), tokenized)
}
