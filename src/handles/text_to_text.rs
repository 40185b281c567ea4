//! The handle to one text to text model: messages or a prompt in, a stream of text out. It turns calls into requests of
//! the right lane; queues, workers and memory are left to the actors.

use model_actors::{
    Completion, GenerateText, Lane, ModelHandle, ModelId, ModelSpec, ReplyStream, TextToText,
};

use crate::error::Result;
use crate::handles::calls::{Calls, call_settings, in_order};
use crate::models::text_to_text::TextGenerationModel;
use crate::registration::{EngineCapability, IntoModelSpec, SourceSpec};
use crate::resources::EngineResources;
use crate::structured::ConstraintCheck;

/// Requests of one batch that are under way at a time; fewer than the batch lane has slots, so that one caller does
/// not fill it.
const REQUESTS_AT_A_TIME: usize = 32;

impl EngineCapability for TextToText {
    type Handle = TextGenerator;

    fn handle(model: ModelHandle<Self>, resources: &EngineResources) -> TextGenerator {
        TextGenerator { calls: Calls::new(model), constraints: resources.constraints().clone() }
    }
}

impl IntoModelSpec<TextToText> for SourceSpec {
    fn into_model_spec(self, id: ModelId, resources: &EngineResources) -> Result<ModelSpec<TextToText>> {
        self.loaded_by::<TextGenerationModel>(id, resources)
    }
}

/// Handle to a text to text model of an engine. Cheap to clone; its settings are its own.
///
/// ```no_run
/// use candle_actors::{Engine, GenerateText, Message, Source};
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
/// (8,192, unless its [`GenerationLimits`](crate::GenerationLimits) say otherwise). A longer prompt is refused with
/// [`Error::PromptTooLong`](crate::Error::PromptTooLong); a longer answer is cut there, with
/// [`FinishReason::Length`](model_actors::FinishReason::Length). Several requests on one worker are generated together
/// (continuous batching): each joins and leaves between two tokens.
#[derive(Clone)]
pub struct TextGenerator {
    calls: Calls<TextToText>,
    constraints: ConstraintCheck,
}

call_settings!(TextGenerator for TextToText);

impl TextGenerator {
    /// Generates the whole text. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`](crate::Error::PromptTooLong), [`Error::InvalidInput`](crate::Error::InvalidInput);
    /// [`Error::InvalidConstraint`](crate::Error::InvalidConstraint) and
    /// [`Error::ConstraintFailed`](crate::Error::ConstraintFailed) for a text that is to keep to one;
    /// [`Error::Actor`](crate::Error::Actor), of which [`Error::root`](crate::Error::root) gives a load's own error.
    pub async fn generate(&self, request: impl Into<GenerateText>) -> Result<Completion> {
        self.call(request.into(), Lane::Interactive).await
    }

    /// Generates a value: a text that keeps to the JSON schema of its type, read as one. The schema takes the place of a
    /// constraint of the request. It is not shown to the model, so say in the prompt what is wanted.
    ///
    /// ```no_run
    /// # use candle_actors::{GenerateText, Message, TextGenerator};
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Person {
    ///     name: String,
    ///     age: u8,
    /// }
    /// # async fn run(model: TextGenerator) -> candle_actors::Result<()> {
    /// let question = "Who is it: Ada, thirty-six years old? Answer as JSON with name and age.";
    /// let person: Person = model.generate_as(GenerateText::chat([Message::user(question)])).await?;
    /// println!("{} is {}", person.name, person.age);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::generate`]; [`Error::IncompleteOutput`](crate::Error::IncompleteOutput) for a text that was cut off,
    /// [`Error::UnexpectedOutput`](crate::Error::UnexpectedOutput) for one that the type refuses beyond its schema;
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for a request for several answers.
    #[cfg(feature = "structured")]
    pub async fn generate_as<T: schemars::JsonSchema + serde::de::DeserializeOwned>(
        &self,
        request: impl Into<GenerateText>,
    ) -> Result<T> {
        let request = request.into().with_constraint(crate::structured::schema_of::<T>());
        if request.answers > 1 {
            let reason = "one value is made of one answer; ask for several one by one, or with generate";
            return Err(crate::Error::InvalidInput(reason.to_owned()));
        }
        crate::structured::value_of(&self.generate(request).await?)
    }

    /// Refuses what an answer cannot keep to.
    async fn check(&self, request: &GenerateText) -> Result<()> {
        self.constraints.check(request.constraint.as_ref()).await?;
        self.constraints.check_tools(&request.tools).await
    }

    /// Refuses a constraint that cannot be kept to before the request is queued.
    async fn call(&self, request: GenerateText, lane: Lane) -> Result<Completion> {
        self.check(&request).await?;
        self.calls.call(request, lane).await
    }

    /// Generates whole texts, in order, in the batch lane, 32 at a time; the first that fails ends the others.
    ///
    /// # Errors
    /// As [`Self::generate`]; [`Error::InvalidInput`](crate::Error::InvalidInput) for no requests at all.
    pub async fn generate_batch<T: Into<GenerateText>>(
        &self,
        requests: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Completion>> {
        let requests = requests.into_iter().map(Into::into).collect();
        in_order(requests, "requests", REQUESTS_AT_A_TIME, |request| self.call(request, Lane::Batch)).await
    }

    /// Generates a text in pieces, as they are made, with the whole text at the end. Dropping the stream stops the model
    /// within a step.
    ///
    /// # Errors
    /// As [`Self::generate`], for what is known before the first piece; the rest comes out of the stream.
    pub async fn stream(&self, request: impl Into<GenerateText>) -> Result<ReplyStream<TextToText>> {
        let request = request.into();
        self.check(&request).await?;
        self.calls.stream(request).await
    }
}
