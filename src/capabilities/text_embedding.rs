//! The handle to one text embedding model: texts in, vectors out. It turns calls into requests of the right size and
//! lane; queues, workers and memory are left to the actors.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use model_actors::{EmbedPrompt, EmbedTexts, Lane, ModelHandle, ModelId, Priority, TextEmbedding};

use crate::capabilities::calls::Calls;
use crate::error::{Error, Result};

/// Most texts of one request that a batch is split into.
const TEXTS_PER_REQUEST: usize = 32;
/// Requests of one batch that are under way at a time; fewer than the batch lane has slots, so that one caller does
/// not fill it.
const REQUESTS_AT_A_TIME: usize = 16;

/// A text embedding model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("sentence-transformers/all-MiniLM-L6-v2");
/// let engine = Engine::builder().text_embedding("minilm", source).start().await?;
/// let vector = engine.text_embedding("minilm")?.embed("The cat sleeps.").await?;
/// assert_eq!(vector.len(), 384);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TextEmbedder {
    calls: Calls<TextEmbedding>,
    prompt: Option<EmbedPrompt>,
    dimensions: Option<usize>,
}

impl TextEmbedder {
    pub(crate) fn new(model: ModelHandle<TextEmbedding>) -> Self {
        Self { calls: Calls::new(model), prompt: None, dimensions: None }
    }

    /// Puts a prompt that the model's own files define (`query`, `document`) before each text.
    pub fn prompt(self, name: impl Into<String>) -> Self {
        Self { prompt: Some(EmbedPrompt::Named(name.into())), ..self }
    }

    /// Puts this before each text: for models that were trained with a prompt but define none in their files, as E5
    /// with `query: ` and `passage: `, and for instructions that say the task, as `Instruct: …\nQuery: `. Empty, it
    /// keeps the model's default prompt away.
    pub fn prompt_text(self, prompt: impl Into<String>) -> Self {
        Self { prompt: Some(EmbedPrompt::Text(prompt.into())), ..self }
    }

    /// Keeps only the first dimensions of each vector, for models trained that way (Matryoshka); a vector of length 1
    /// has it again afterwards. A model whose files list its dimensions gives these alone; most that can do it do not
    /// list them, so that any number up to the whole width is taken there.
    pub fn dimensions(self, dimensions: usize) -> Self {
        Self { dimensions: Some(dimensions), ..self }
    }

    /// How urgent its requests are against others of the model.
    pub fn priority(self, priority: Priority) -> Self {
        Self { calls: self.calls.priority(priority), ..self }
    }

    /// The time that each request has for queue, load and run, instead of the model's own.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout), ..self }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model.
    pub fn model(&self) -> &ModelHandle<TextEmbedding> {
        &self.calls.model
    }

    /// One text's vector. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::Actor`]; [`Error::root`] gives a load's own error.
    pub async fn embed(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        only(self.model().call(self.request(vec![text.into()]), self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`TextEmbedder::embed`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed`].
    pub async fn try_embed(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        only(
            self.model()
                .call(
                    self.request(vec![text.into()]),
                    self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
                )
                .await?,
        )
    }

    /// One vector for each text, in order. The texts are split into requests of at most 32 that run side by side in
    /// the batch lane, 16 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed`]; [`Error::InvalidInput`] for no texts at all.
    pub async fn embed_batch<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Batch);
        self.in_order(texts, |request| self.model().call(request, options)).await
    }

    /// As [`TextEmbedder::embed_batch`], but fails at once if the queue is full for one of the requests.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed_batch`].
    pub async fn try_embed_batch<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let options = self.calls.options(Lane::Batch);
        self.in_order(texts, |request| {
            self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail))
        })
        .await
    }

    async fn in_order<T: Into<String>, F>(
        &self,
        texts: impl IntoIterator<Item = T>,
        call: impl Fn(EmbedTexts) -> F,
    ) -> Result<Vec<Vec<f32>>>
    where
        F: Future<Output = model_actors::Result<Vec<Vec<f32>>>>,
    {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        if texts.is_empty() {
            return Err(Error::InvalidInput("the batch holds no texts".to_owned()));
        }
        let requests: Vec<EmbedTexts> =
            texts.chunks(TEXTS_PER_REQUEST).map(|texts| self.request(texts.to_vec())).collect();
        let answers = stream::iter(requests).map(call).buffered(REQUESTS_AT_A_TIME);
        Ok(answers.try_concat().await?)
    }

    fn request(&self, texts: Vec<String>) -> EmbedTexts {
        EmbedTexts::default()
            .with_texts(texts)
            .with_prompt(self.prompt.clone())
            .with_dimensions(self.dimensions)
    }
}

fn only(vectors: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    vectors.into_iter().next().ok_or_else(|| Error::InvalidInput("no vector came back".to_owned()))
}
