//! Text to text: a conversation or a raw prompt in, a stream of text out. Sampling and usage are shared with
//! vision.

use serde::{Deserialize, Serialize};

use super::{Batching, Capability, Cost};
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::{MAX_MESSAGES, MAX_PROMPT_BYTES, MAX_STOP_BYTES, MAX_STOPS, MAX_TOKENS};

/// Tokens of an answer that a request is charged with at most.
const LONG_ANSWER: usize = 1024;

/// The capability of continuing a conversation or a prompt with text. Streamed.
///
/// ```
/// use model_actors::{Capability, GenerateText, TextToText};
/// assert!(TextToText::check(&GenerateText::from("Once upon a time")).is_ok());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextToText;

/// Speaker of a message.
///
/// ```
/// use model_actors::{Message, Role};
/// assert_eq!(Message::system("Be brief.").role, Role::System);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name, as chat templates know it.
    ///
    /// ```
    /// assert_eq!(model_actors::Role::Assistant.name(), "assistant");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
///
/// ```
/// use model_actors::{Message, Role};
/// assert_eq!(Message::user("What is rain?").role, Role::User);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Speaker.
    pub role: Role,
    /// Text of the message.
    pub content: String,
}

impl Message {
    /// A message of this speaker.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// Instructions to the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A message of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An earlier answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// Input that a language model continues.
///
/// ```
/// use model_actors::{GenerateText, Message, Prompt};
/// let request = GenerateText::chat([Message::user("What is rain?")]);
/// assert!(matches!(request.prompt, Prompt::Messages(messages) if messages.len() == 1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Prompt {
    /// A conversation of 1 to 1,024 messages, rendered with the model's chat template. Special tokens that stand in what
    /// people write, `<|im_end|>` say, are text, unless the model was registered otherwise.
    Messages(Vec<Message>),
    /// Text, tokenized as it is. Special tokens in it are special, so that what people write can forge turns in it.
    Raw(String),
}

/// Sampling of the next token.
///
/// ```
/// use model_actors::Sampling;
/// assert_eq!(Sampling::default().temperature, 0.0); // greedy
/// let creative = Sampling::default().with_temperature(0.8).with_top_p(0.95).with_seed(42);
/// assert!(creative.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Sampling {
    /// Sampling temperature; 0 selects greedy decoding.
    pub temperature: f32,
    /// Top-k: restricts sampling to the k most probable tokens; at least 1.
    pub top_k: Option<usize>,
    /// Top-p: restricts sampling to the most probable tokens that make up this probability; above 0, at most 1.
    pub top_p: Option<f32>,
    /// Min-p: drops tokens below this share of the most probable one's probability; from 0 to below 1.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that occurred in prompt or answer less likely; above 0. Holds for the greedy
    /// choice too. Without it, that of the model's `generation_config.json`; 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Random seed; the same seed gives the same output.
    pub seed: Option<u64>,
}

setters! { Sampling {
    with_temperature(temperature: f32);
    with_top_k(top_k: impl Into<Option<usize>>) Into::into;
    with_top_p(top_p: impl Into<Option<f32>>) Into::into;
    with_min_p(min_p: impl Into<Option<f32>>) Into::into;
    with_repetition_penalty(repetition_penalty: impl Into<Option<f32>>) Into::into;
    with_seed(seed: impl Into<Option<u64>>) Into::into;
} }

impl Sampling {
    /// Checks every setting.
    ///
    /// # Errors
    /// A sentence that names the first setting that is out of range.
    ///
    /// ```
    /// use model_actors::Sampling;
    /// let refused = Sampling::default().with_top_p(0.0).check().unwrap_err();
    /// assert!(refused.message().contains("top_p"));
    /// ```
    pub fn check(&self) -> Result<(), Cause> {
        let within = |name: &str, value: Option<f32>, range: &str, holds: fn(f32) -> bool| match value {
            Some(value) if !holds(value) => Err(Cause::new(format!("{name} is {value}; it must be {range}"))),
            _ => Ok(()),
        };
        within("temperature", Some(self.temperature), "0 or above, and finite", |t| {
            t >= 0.0 && t.is_finite()
        })?;
        within("top_p", self.top_p, "above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
        within("min_p", self.min_p, "0 or above and below 1", |p| (0.0..1.0).contains(&p))?;
        let penalty = self.repetition_penalty;
        within("repetition_penalty", penalty, "above 0, and finite", |p| p > 0.0 && p.is_finite())?;
        match self.top_k {
            Some(0) => Err("top_k is 0; at least 1 is needed".into()),
            _ => Ok(()),
        }
    }
}

/// A request to generate text.
///
/// ```
/// use model_actors::{GenerateText, Sampling};
/// let request = GenerateText::from("Once upon a time");
/// assert_eq!(request.max_tokens, 256);
/// let request = request.with_max_tokens(32).with_sampling(Sampling::default().with_temperature(0.7));
/// assert_eq!(request.max_tokens, 32);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GenerateText {
    /// Input that the model continues.
    pub prompt: Prompt,
    /// Sampling of the tokens.
    pub sampling: Sampling,
    /// Maximum number of tokens to generate, 1 to 1,048,576; 256 by default.
    pub max_tokens: usize,
    /// Stop strings: the text ends before the first of these. At most 16 of 1 to 256 bytes. Of several
    /// matches the one that is complete first counts.
    pub stop: Vec<String>,
}

setters! { GenerateText {
    with_prompt(prompt: Prompt);
    with_sampling(sampling: Sampling);
    with_max_tokens(max_tokens: usize);
    with_stop(stop: Vec<String>);
} }

/// An empty prompt, which [`Capability::check`] refuses: set one with [`GenerateText::with_prompt`].
impl Default for GenerateText {
    fn default() -> Self {
        Self {
            prompt: Prompt::Raw(String::new()),
            sampling: Sampling::default(),
            max_tokens: 256,
            stop: Vec::new(),
        }
    }
}

impl GenerateText {
    /// A request for the model's next message in a conversation.
    ///
    /// ```
    /// use model_actors::{GenerateText, Message};
    /// let request = GenerateText::chat([Message::system("Be brief."), Message::user("What is rain?")]);
    /// assert_eq!(request.max_tokens, 256);
    /// ```
    pub fn chat(messages: impl IntoIterator<Item = Message>) -> Self {
        Self::default().with_prompt(Prompt::Messages(messages.into_iter().collect()))
    }
}

impl<T: Into<String>> From<T> for GenerateText {
    fn from(prompt: T) -> Self {
        Self::default().with_prompt(Prompt::Raw(prompt.into()))
    }
}

/// Reason for the end of a text.
///
/// ```
/// use model_actors::{Completion, FinishReason, Usage};
/// let cut = Completion::new("Once upon", FinishReason::Length, Usage::new(4, 2));
/// assert_ne!(cut.finish_reason, FinishReason::Stop);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
}

/// Numbers of tokens in and out.
///
/// ```
/// let usage = model_actors::Usage::new(12, 30);
/// assert_eq!(usage.prompt_tokens + usage.completion_tokens, 42);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Number of tokens generated.
    pub completion_tokens: usize,
}

impl Usage {
    /// Usage of a request with so many tokens in its prompt and its answer.
    pub const fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens }
    }
}

/// The whole text, once it is complete.
///
/// ```
/// use model_actors::{Completion, FinishReason, Usage};
/// let answer = Completion::new("Water.", FinishReason::Stop, Usage::new(9, 2));
/// assert_eq!(answer.text, "Water.");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Completion {
    /// The whole text: all chunks together.
    pub text: String,
    /// Reason for its end.
    pub finish_reason: FinishReason,
    /// Numbers of tokens in and out.
    pub usage: Usage,
}

impl Completion {
    /// A finished text.
    pub fn new(text: impl Into<String>, finish_reason: FinishReason, usage: Usage) -> Self {
        Self { text: text.into(), finish_reason, usage }
    }
}

impl Capability for TextToText {
    type Request = GenerateText;
    type Chunk = String;
    type Output = Completion;
    const NAME: &'static str = "text_to_text";
    const QUEUE: QueueCapacity = QueueCapacity::new(100, 100);
    /// An answer takes long, so that nobody should wait for another's end.
    const BATCHING: Batching = Batching::Continuous;

    fn check(request: &GenerateText) -> Result<(), Cause> {
        check_tokens(request.max_tokens)?;
        request.sampling.check()?;
        check_stops(&request.stop)?;
        if let Prompt::Messages(messages) = &request.prompt
            && messages.len() > MAX_MESSAGES
        {
            let count = messages.len();
            return Err(format!("the prompt has {count} messages; at most {MAX_MESSAGES} are allowed").into());
        }
        match prompt_bytes(&request.prompt) {
            0 => Err("the prompt is empty".into()),
            1..=MAX_PROMPT_BYTES => Ok(()),
            bytes => {
                Err(format!("the prompt has {bytes} bytes; at most {MAX_PROMPT_BYTES} are allowed").into())
            }
        }
    }

    /// Approximate number of tokens in and out. An answer is charged with at most 1,024 tokens.
    fn cost(request: &GenerateText) -> Cost {
        let answer = request.max_tokens.min(LONG_ANSWER) as u64;
        Cost(prompt_bytes(&request.prompt) as u64 / 4 + answer)
    }

    fn usage(output: &Completion) -> Option<Usage> {
        Some(output.usage)
    }
}

/// Checks the number of tokens asked for.
pub(super) fn check_tokens(max_tokens: usize) -> Result<(), Cause> {
    match max_tokens {
        1..=MAX_TOKENS => Ok(()),
        _ => Err(format!("max_tokens is {max_tokens}; 1 to {MAX_TOKENS} are allowed").into()),
    }
}

/// Checks the strings that end a text.
fn check_stops(stops: &[String]) -> Result<(), Cause> {
    if stops.len() > MAX_STOPS {
        return Err(format!("there are {} stop strings; at most {MAX_STOPS} are allowed", stops.len()).into());
    }
    match stops.iter().find(|stop| !(1..=MAX_STOP_BYTES).contains(&stop.len())) {
        Some(stop) => {
            Err(format!("a stop string has {} bytes; 1 to {MAX_STOP_BYTES} are allowed", stop.len()).into())
        }
        None => Ok(()),
    }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
        Prompt::Raw(text) => text.len(),
    }
}
