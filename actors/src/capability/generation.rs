//! Text to text: messages or a raw prompt to a stream of text.

use super::{Capability, Cost};
use crate::config::QueueCapacity;

/// Most bytes of a prompt, all messages together.
const MAX_PROMPT_BYTES: usize = 4 << 20;

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

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, put into the model's chat template.
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
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep only the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep only the likeliest tokens that make up this probability.
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the likeliest one's probability.
    pub min_p: Option<f32>,
    /// Above 1 makes repetitions less likely.
    pub repetition_penalty: Option<f32>,
    /// Makes the choice repeatable.
    pub seed: Option<u64>,
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
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
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
        if request.max_tokens == 0 {
            return Err("max_tokens is 0; at least 1 is needed".to_owned());
        }
        match prompt_bytes(&request.prompt) {
            0 => Err("the prompt is empty".to_owned()),
            1..=MAX_PROMPT_BYTES => Ok(()),
            bytes => Err(format!("the prompt has {bytes} bytes; at most {MAX_PROMPT_BYTES} are allowed")),
        }
    }

    /// About the number of tokens in and out.
    fn cost(request: &GenerateText) -> Cost {
        Cost(prompt_bytes(&request.prompt) as u64 / 4 + request.max_tokens as u64)
    }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
        Prompt::Raw(text) => text.len(),
    }
}
