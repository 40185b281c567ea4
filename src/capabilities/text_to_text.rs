//! The handle to one text to text model: messages or a prompt in, a stream of text out. It turns calls into requests of
//! the right lane; queues, workers and memory are left to the actors.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use model_actors::{Completion, GenerateText, Lane, ModelHandle, ModelId, Priority, ReplyStream, TextToText};

use crate::capabilities::calls::Calls;
use crate::error::{Error, Result};

/// Requests of one batch that are under way at a time; fewer than the batch lane has slots, so that one caller does
/// not fill it.
const REQUESTS_AT_A_TIME: usize = 32;

/// A text to text model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, Source};
/// use model_actors::{GenerateText, Message};
/// # async fn run() -> candle_actors::Result<()> {
/// let source = Source::repository("HuggingFaceTB/SmolLM2-135M-Instruct");
/// let engine = Engine::builder().text_to_text("small", source).start().await?;
/// let model = engine.text_to_text("small")?;
/// let mut stream = model.stream(GenerateText::chat([Message::user("What is rain?")])).await?;
/// while let Some(piece) = stream.next().await {
///     print!("{}", piece?);
/// }
/// println!("\n{:?}", stream.output().await?.usage);
/// # Ok(())
/// # }
/// ```
///
/// A prompt and its answer together have at most as many tokens as the model's context, and as a worker's caches hold
/// (8,192, unless its [`crate::GenerationLimits`] say otherwise). A longer prompt is refused, with both numbers; a longer
/// answer is cut there, with [`model_actors::FinishReason::Length`]. Several requests on one worker are written together, and each joins and
/// leaves between two tokens.
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

    /// The time that each request has for queue, load and run up to its first piece of text, instead of the model's
    /// own.
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
    /// [`Error::Actor`]; [`Error::root`] gives a load's own error.
    pub async fn generate(&self, request: impl Into<GenerateText>) -> Result<Completion> {
        Ok(self.model().call(request.into(), self.calls.options(Lane::Interactive)).await?)
    }

    /// As [`Self::generate`], but fails at once if the queue is full.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn try_generate(&self, request: impl Into<GenerateText>) -> Result<Completion> {
        Ok(self
            .model()
            .call(
                request.into(),
                self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
            )
            .await?)
    }

    /// The whole texts, in order, in the batch lane, 32 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::generate`]; [`Error::InvalidInput`] for no requests at all.
    pub async fn generate_batch<T: Into<GenerateText>>(
        &self,
        requests: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Completion>> {
        let options = self.calls.options(Lane::Batch);
        in_order(requests, |request| self.model().call(request, options)).await
    }

    /// As [`Self::generate_batch`], but fails at once if the queue is full for one of the requests.
    ///
    /// # Errors
    /// As [`Self::generate_batch`].
    pub async fn try_generate_batch<T: Into<GenerateText>>(
        &self,
        requests: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Completion>> {
        let options = self.calls.options(Lane::Batch);
        in_order(requests, |request| {
            self.model().call(request, options.with_when_full(model_actors::WhenFull::Fail))
        })
        .await
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
        Ok(self
            .model()
            .stream(
                request.into(),
                self.calls.options(Lane::Interactive).with_when_full(model_actors::WhenFull::Fail),
            )
            .await?)
    }
}

async fn in_order<T: Into<GenerateText>, F>(
    requests: impl IntoIterator<Item = T>,
    call: impl Fn(GenerateText) -> F,
) -> Result<Vec<Completion>>
where
    F: Future<Output = model_actors::Result<Completion>>,
{
    let requests: Vec<GenerateText> = requests.into_iter().map(Into::into).collect();
    if requests.is_empty() {
        return Err(Error::InvalidInput("the batch holds no requests".to_owned()));
    }
    Ok(stream::iter(requests).map(call).buffered(REQUESTS_AT_A_TIME).try_collect().await?)
}
