//! Text to text: messages or a raw prompt to a stream of text.

use super::{Capability, Cost};
use crate::config::QueueCapacity;
use crate::limits::{MAX_MESSAGES, MAX_PROMPT_BYTES, MAX_STOP_BYTES, MAX_STOPS, MAX_TOKENS};

/// Tokens of an answer that a request is charged with at most.
const LONG_ANSWER: usize = 1024;

/// Messages or a prompt to text. Streamed.
#[derive(Debug, Clone, Copy)]
pub struct TextToText;

/// Who speaks a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Instructions to the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation of 1 to 1,024 messages, put into the model's chat template.
    Messages(Vec<Message>),
    /// Text as it is.
    Raw(String),
}

/// How the next token is chosen.
///
/// ```
/// let sampling = model_actors::Sampling::default();
/// assert_eq!(sampling.temperature, 0.0); // greedy
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// 0 is greedy; above it, the higher, the more even is the choice.
    pub temperature: f32,
    /// Keep only the k likeliest tokens; at least 1.
    pub top_k: Option<usize>,
    /// Keep only the likeliest tokens that make up this probability; above 0, at most 1.
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the likeliest one's probability; from 0 to below 1.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that occurred in prompt or answer less likely; above 0. Holds for the greedy choice too.
    pub repetition_penalty: Option<f32>,
    /// Makes the choice repeatable.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Checks every setting.
    ///
    /// # Errors
    /// A sentence that names the first setting that is out of range.
    ///
    /// ```
    /// use model_actors::Sampling;
    /// let sampling = Sampling { top_p: Some(0.0), ..Sampling::default() };
    /// assert!(sampling.check().unwrap_err().contains("top_p"));
    /// ```
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: Option<f32>, range: &str, holds: fn(f32) -> bool| match value {
            Some(value) if !holds(value) => Err(format!("{name} is {value}; it must be {range}")),
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
            Some(0) => Err("top_k is 0; at least 1 is needed".to_owned()),
            _ => Ok(()),
        }
    }
}

/// A text to generate.
///
/// ```
/// use model_actors::GenerateText;
/// let request = GenerateText::from("Once upon a time");
/// assert_eq!(request.max_tokens, 256);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateText {
    /// What the model continues.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate, 1 to 1,048,576.
    pub max_tokens: usize,
    /// The text ends before the first of these; at most 16 of 1 to 256 bytes. Of several matches the one that is
    /// complete first counts.
    pub stop: Vec<String>,
}

impl GenerateText {
    /// The model's next turn in a conversation.
    ///
    /// ```
    /// use model_actors::{GenerateText, Message};
    /// let request = GenerateText::chat([Message::system("Be brief."), Message::user("What is rain?")]);
    /// assert_eq!(request.max_tokens, 256);
    /// ```
    pub fn chat(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { prompt: Prompt::Messages(messages.into_iter().collect()), ..Self::from("") }
    }
}

impl<T: Into<String>> From<T> for GenerateText {
    fn from(prompt: T) -> Self {
        Self {
            prompt: Prompt::Raw(prompt.into()),
            sampling: Sampling::default(),
            max_tokens: 256,
            stop: Vec::new(),
        }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
}

/// Tokens in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
}

/// The whole text, once it is complete.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Completion {
    /// All chunks together.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens in and out.
    pub usage: Usage,
}

impl Capability for TextToText {
    type Request = GenerateText;
    type Chunk = String;
    type Output = Completion;
    const NAME: &'static str = "text_to_text";
    const QUEUE: QueueCapacity = QueueCapacity { interactive: 100, batch: 100 };

    fn check(request: &GenerateText) -> Result<(), String> {
        check_tokens(request.max_tokens)?;
        request.sampling.check()?;
        check_stops(&request.stop)?;
        if let Prompt::Messages(messages) = &request.prompt
            && messages.len() > MAX_MESSAGES
        {
            return Err(format!(
                "the prompt has {} messages; at most {MAX_MESSAGES} are allowed",
                messages.len()
            ));
        }
        match prompt_bytes(&request.prompt) {
            0 => Err("the prompt is empty".to_owned()),
            1..=MAX_PROMPT_BYTES => Ok(()),
            bytes => Err(format!("the prompt has {bytes} bytes; at most {MAX_PROMPT_BYTES} are allowed")),
        }
    }

    /// About the number of tokens in and out. Who allows an answer without end is not expected to get one.
    fn cost(request: &GenerateText) -> Cost {
        let answer = request.max_tokens.min(LONG_ANSWER) as u64;
        Cost(prompt_bytes(&request.prompt) as u64 / 4 + answer)
    }
}

/// Checks how many tokens are asked for.
pub(super) fn check_tokens(max_tokens: usize) -> Result<(), String> {
    match max_tokens {
        1..=MAX_TOKENS => Ok(()),
        _ => Err(format!("max_tokens is {max_tokens}; 1 to {MAX_TOKENS} are allowed")),
    }
}

/// Checks the strings that end a text.
fn check_stops(stops: &[String]) -> Result<(), String> {
    if stops.len() > MAX_STOPS {
        return Err(format!("there are {} stop strings; at most {MAX_STOPS} are allowed", stops.len()));
    }
    match stops.iter().find(|stop| !(1..=MAX_STOP_BYTES).contains(&stop.len())) {
        Some(stop) => {
            Err(format!("a stop string has {} bytes; 1 to {MAX_STOP_BYTES} are allowed", stop.len()))
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
