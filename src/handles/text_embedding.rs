//! The handle to one text embedding model: texts in, vectors out. It turns calls into requests of the right size and
//! lane; queues, workers and memory are left to the actors.

use model_actors::{EmbedPrompt, EmbedTexts, Lane, ModelHandle, ModelId, ModelSpec, TextEmbedding};

use crate::error::Result;
use crate::handles::calls::{
    Calls, TEXT_REQUESTS_AT_A_TIME, TEXTS_PER_REQUEST, call_settings, in_order, only, portions,
};
use crate::models::text_embedding::TextEmbeddingModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;

impl EngineCapability for TextEmbedding {
    type Handle = TextEmbedder;

    fn handle(model: ModelHandle<Self>, _: &EngineResources) -> TextEmbedder {
        TextEmbedder { calls: Calls::new(model), prompt: None, dimensions: None }
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
    prompt: Option<EmbedPrompt>,
    dimensions: Option<usize>,
}

call_settings!(TextEmbedder for TextEmbedding);

impl TextEmbedder {
    /// Sets a prompt that the model's own files define (`query`, `document`), put before each text.
    #[must_use]
    pub fn prompt(self, name: impl Into<String>) -> Self {
        Self { prompt: Some(EmbedPrompt::Named(name.into())), ..self }
    }

    /// Sets a prompt in words, put before each text: for models that were trained with a prompt but define none in their
    /// files, as E5 with `query: ` and `passage: `, and for instructions that say the task, as
    /// `Instruct: …\nQuery: `. Empty, it keeps the model's default prompt away.
    #[must_use]
    pub fn prompt_text(self, prompt: impl Into<String>) -> Self {
        Self { prompt: Some(EmbedPrompt::Text(prompt.into())), ..self }
    }

    /// Sets the number of leading dimensions that are kept of each vector, for models trained that way (Matryoshka); a
    /// vector of length 1 has it again afterwards. A model whose files list its dimensions gives these alone; most that
    /// can do it do not list them, so that any number up to the whole width is taken there.
    #[must_use]
    pub fn dimensions(self, dimensions: usize) -> Self {
        Self { dimensions: Some(dimensions), ..self }
    }

    /// Embeds one text. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput); [`Error::Actor`](crate::Error::Actor), of which
    /// [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn embed(&self, text: impl Into<String>) -> Result<Vec<f32>> {
        only(self.call(vec![text.into()], Lane::Interactive).await?)
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
        let requests = portions(texts.into_iter().map(Into::into), TEXTS_PER_REQUEST);
        let call = |texts| self.call(texts, Lane::Batch);
        Ok(in_order(requests, "texts", TEXT_REQUESTS_AT_A_TIME, call).await?.concat())
    }

    async fn call(&self, texts: Vec<String>, lane: Lane) -> Result<Vec<Vec<f32>>> {
        let request =
            EmbedTexts::new(texts).with_prompt(self.prompt.clone()).with_dimensions(self.dimensions);
        Ok(self.calls.call(request, lane).await?.vectors)
    }
}
