//! The handle to one text embedding model: texts in, vectors out. It turns calls into requests of the right size and
//! lane; queues, workers and memory are left to the actors.

use model_actors::{
    EmbedOutputs, EmbedPrompt, EmbedTexts, Embeddings, Lane, ModelHandle, ModelId, ModelSpec, TextEmbedding,
    TextToken, Truncate, Usage,
};

use crate::error::Result;
use crate::handles::calls::{
    Calls, TEXT_REQUESTS_AT_A_TIME, TEXTS_PER_REQUEST, call_settings, in_order, numbered, only, portions,
};
use crate::models::text_embedding::TextEmbeddingModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;

impl EngineCapability for TextEmbedding {
    type Handle = TextEmbedder;

    fn handle(model: ModelHandle<Self>, _: &EngineResources) -> TextEmbedder {
        TextEmbedder { calls: Calls::new(model), request: EmbedTexts::default() }
    }
}

impl IntoModelSpec<TextEmbedding> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<TextEmbedding>> {
        self.loaded_by::<TextEmbeddingModel>(id, resources)
    }
}

/// Handle to a text embedding model of an engine. Cheap to clone; its settings are its own.
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
    /// A request without texts.
    request: EmbedTexts,
}

call_settings!(TextEmbedder for TextEmbedding);

impl TextEmbedder {
    /// Sets a prompt that the model's own files define (`query`, `document`), put before each text. In models with an adapter
    /// for each task, the name of a task turns on its adapter: `separation`, `text-matching`, or with a prompt
    /// `text-matching.query`.
    #[must_use]
    pub fn prompt(self, name: impl Into<String>) -> Self {
        self.with(|request| request.with_prompt(EmbedPrompt::Named(name.into())))
    }

    /// Sets a prompt in words, put before each text: for models that were trained with a prompt but define none in their
    /// files, as E5 with `query: ` and `passage: `, and for instructions that say the task, as
    /// `Instruct: …\nQuery: `. Empty, it keeps the model's default prompt away.
    #[must_use]
    pub fn prompt_text(self, prompt: impl Into<String>) -> Self {
        self.with(|request| request.with_prompt(EmbedPrompt::Text(prompt.into())))
    }

    /// Sets the number of leading dimensions that are kept of each vector, for models trained that way (Matryoshka); a
    /// vector of length 1 has it again afterwards. A model whose files list its dimensions gives these alone; most that
    /// can do it do not list them, so that any number up to the whole width is taken there.
    #[must_use]
    pub fn dimensions(self, dimensions: usize) -> Self {
        self.with(|request| request.with_dimensions(dimensions))
    }

    /// Sets what becomes of a text with more tokens than the model takes: it is cut, unless set, or refused.
    #[must_use]
    pub fn truncate(self, truncate: Truncate) -> Self {
        self.with(|request| request.with_truncate(truncate))
    }

    /// Sets what [`TextEmbedder::embeddings`] gives of each text; its vector alone, unless set.
    #[must_use]
    pub fn outputs(self, outputs: EmbedOutputs) -> Self {
        self.with(|request| request.with_outputs(outputs))
    }

    fn with(self, set: impl FnOnce(EmbedTexts) -> EmbedTexts) -> Self {
        Self { request: set(self.request), ..self }
    }

    /// Embeds one text. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput); [`Error::Actor`](crate::Error::Actor), of which
    /// [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn embed(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        only(self.vectors_alone().call(vec![text.into()], Lane::Interactive).await?.vectors)
    }

    /// Embeds texts: one vector each, in order. They are split into requests of at most 32 that run side by side in the
    /// batch lane, 16 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed`]; [`Error::InvalidInput`](crate::Error::InvalidInput) for no texts at all.
    pub async fn embed_batch<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        Ok(self.vectors_alone().embeddings(texts).await?.vectors)
    }

    /// As [`TextEmbedder::embed_batch`], with the number of tokens, and which texts were cut.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed_batch`]; [`Error::TextTooLong`](crate::Error::TextTooLong) where [`TextEmbedder::truncate`]
    /// refuses such texts.
    pub async fn embeddings<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Embeddings> {
        let requests = numbered(portions(texts.into_iter().map(Into::into), TEXTS_PER_REQUEST));
        let call = async |(first, texts)| {
            self.call(texts, Lane::Batch).await.map_err(|error| error.of_portion(first))
        };
        Ok(joined(in_order(requests, "texts", TEXT_REQUESTS_AT_A_TIME, call).await?))
    }

    /// Tokens of a text as the model reads it, with its prompt and the special ones around it, and also those beyond what it
    /// takes. A worker of the model does it, so that the caller's thread does not.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed`].
    pub async fn tokenize(&self, text: impl Into<String>) -> Result<Vec<TextToken>> {
        let outputs = EmbedOutputs::tokens();
        let request = self.request.clone().with_texts(vec![text.into()]).with_outputs(outputs);
        only(self.calls.call(request, Lane::Interactive).await?.tokens)
    }

    /// Number of tokens of a text, as [`TextEmbedder::tokenize`] gives them.
    ///
    /// # Errors
    /// As [`TextEmbedder::embed`].
    pub async fn count_tokens(&self, text: impl Into<String>) -> Result<usize> {
        Ok(self.tokenize(text).await?.len())
    }

    fn vectors_alone(&self) -> Self {
        self.clone().outputs(EmbedOutputs::default())
    }

    async fn call(&self, texts: Vec<String>, lane: Lane) -> Result<Embeddings> {
        self.calls.call(self.request.clone().with_texts(texts), lane).await
    }
}

/// The output of all texts, of those of each portion.
fn joined(portions: Vec<Embeddings>) -> Embeddings {
    let (mut all, mut tokens) = (Embeddings::default(), 0);
    for (first, portion) in numbered(portions) {
        tokens += portion.usage.prompt_tokens;
        all.vectors.extend(portion.vectors);
        all.cut.extend(portion.cut.into_iter().map(|index| first + index));
        all.tokens.extend(portion.tokens);
        all.sparse.extend(portion.sparse);
        all.token_vectors.extend(portion.token_vectors);
    }
    all.with_usage(Usage::new(tokens, 0))
}
