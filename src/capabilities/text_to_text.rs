//! The handle to one text to text model: messages or a prompt in, a stream of text out. Queues, workers and memory are left to the actors.

use std::time::Duration;

use model_actors::{Completion, GenerateText, Lane, ModelHandle, ModelId, Priority, ReplyStream, TextToText};

use crate::capabilities::calls::Calls;
use crate::error::Result;

/// A text to text model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// # async fn run() -> candle_actors::Result<()> {
/// let engine = Engine::builder().text_to_text("model", Source::repository("HuggingFaceTB/SmolLM2-135M-Instruct")).start().await?;
/// let completion = engine.text_to_text("model")?.generate("Once upon a time").await?;
/// println!("{}", completion.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TextGenerator {
    calls: Calls<TextToText>,
}

impl TextGenerator {
    pub(crate) fn new(model: ModelHandle<TextToText>) -> Self {
        Self { calls: Calls::new(model) }
    }

    /// How urgent its requests are against others of the model.
    pub fn priority(self, priority: Priority) -> Self {
        Self { calls: self.calls.priority(priority) }
    }

    /// The time that each request has for queue, load and run, instead of the model's own.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.timeout(timeout) }
    }

    /// The model.
    pub fn id(&self) -> &ModelId {
        self.model().id()
    }

    /// The untyped handle, to preload, unload or pin the model.
    pub fn model(&self) -> &ModelHandle<TextToText> {
        &self.calls.model
    }

    /// The whole text. Waits while the model's queue is full; dropping the future cancels the request.
    ///
    /// # Errors
    /// [`crate::Error::Actor`]; [`crate::Error::root`] gives a load's own error.
    pub async fn generate(&self, request: impl Into<GenerateText>) -> Result<Completion> {
        Ok(self.model().call(request.into(), self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::generate`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn try_generate(&self, request: impl Into<GenerateText>) -> Result<Completion> {
        Ok(self.model().try_call(request.into(), self.calls.options(Lane::Interactive)).await?)
    }

    /// Pieces of text as they are made, then the whole text. Dropping the stream stops the model within a step.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn stream(&self, request: impl Into<GenerateText>) -> Result<ReplyStream<TextToText>> {
        Ok(self.model().stream(request.into(), self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::stream`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn try_stream(&self, request: impl Into<GenerateText>) -> Result<ReplyStream<TextToText>> {
        Ok(self.model().try_stream(request.into(), self.calls.options(Lane::Interactive)).await?)
    }
}
