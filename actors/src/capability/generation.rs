//! Text to text: a conversation or a raw prompt in, a stream of text out. Sampling, chunks and output are shared with
//! vision.

mod sampling;
mod constraint;
mod tools;
mod output;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Batching, Capability, Cost};
use crate::config::QueueCapacity;
use crate::error::Cause;
use crate::limits::{
    MAX_ANSWERS, MAX_LOGPROBS, MAX_MESSAGES, MAX_NAME_BYTES, MAX_PROMPT_BYTES, MAX_STOP_BYTES,
    MAX_STOP_TOKENS, MAX_STOPS, MAX_TOKENS, MAX_TOOL_BYTES, MAX_TOP_LOGPROBS,
};
pub use constraint::Constraint;
pub use output::{AnswerEnd, Completion, FinishReason, TextChunk, TokenLogprob, TokenLogprobs, Usage};
pub use sampling::{Sampling, SamplingDefaults};
pub use tools::{Tool, ToolCall, ToolChoice};

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
    /// A tool, with the result of a call.
    Tool,
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
            Self::Tool => "tool",
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
    /// Calls of tools that an answer of the model has beside its text.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Identifier of the call that a tool's message is the result of.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

setters! { Message {
    with_tool_calls(tool_calls: Vec<ToolCall>);
    with_tool_call_id(tool_call_id: impl Into<Option<String>>) Into::into;
} }

impl Message {
    /// A message of this speaker.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
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

    /// The result of a call, the next one that has none unless [`tool_call_id`](Self::tool_call_id) names it.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
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
    /// Minimum number of tokens, at most `max_tokens`; 0 by default. Until then no token that ends the text is chosen,
    /// and stop strings are text.
    pub min_tokens: usize,
    /// Stop strings: the text ends before the first of these. At most 16 of 1 to 256 bytes. Of several
    /// matches the one that is complete first counts.
    pub stop: Vec<String>,
    /// Stop tokens, by their numbers in the model's vocabulary: each ends the text, beside the model's own ends, and is
    /// no part of it. At most 64.
    pub stop_tokens: Vec<u32>,
    /// Asks for the log probability of each token, and of so many of the most probable tokens in its place: 0 to 20. All
    /// of them together are at most 262,144, by `max_tokens` and `answers`.
    pub logprobs: Option<usize>,
    /// Rule that the whole text keeps to: a JSON schema, a regular expression or a grammar of at most 256 KiB.
    pub constraint: Option<Constraint>,
    /// Tools that the model may call, at most 128; for conversations with models whose chat template takes tools and writes
    /// calls in a way that is known (Llama 3, Qwen 2.5 and 3, Hermes, Mistral).
    pub tools: Vec<Tool>,
    /// Choice between words and calls. A constraint goes with words alone.
    pub tool_choice: ToolChoice,
    /// Allows several calls in one answer, where the model's format does; true by default.
    pub parallel_tool_calls: bool,
    /// Further values for the chat template, such as `enable_thinking`.
    pub template_arguments: BTreeMap<String, Value>,
    /// Name of the adapter (LoRA) that changes the model for this request, one of those that it was registered with; none,
    /// the model as it is. At most 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Number of answers to the prompt, 1 to 32; 1 by default. The prompt is read once for all that are written together:
    /// as many as a worker's caches have room for, each by itself as if it was asked for alone, with the sampling of
    /// [`Sampling::of_answer`]. An error of one ends the request.
    #[serde(skip_serializing_if = "is_one")]
    pub answers: usize,
}

/// True for the number of answers that older peers know.
pub(super) fn is_one(answers: &usize) -> bool {
    *answers == 1
}

setters! { GenerateText {
    with_prompt(prompt: Prompt);
    with_sampling(sampling: Sampling);
    with_max_tokens(max_tokens: usize);
    with_min_tokens(min_tokens: usize);
    with_stop(stop: Vec<String>);
    with_stop_tokens(stop_tokens: Vec<u32>);
    with_logprobs(logprobs: impl Into<Option<usize>>) Into::into;
    with_constraint(constraint: impl Into<Option<Constraint>>) Into::into;
    with_tools(tools: Vec<Tool>);
    with_tool_choice(tool_choice: ToolChoice);
    with_parallel_tool_calls(parallel_tool_calls: bool);
    with_template_arguments(template_arguments: BTreeMap<String, Value>);
    with_adapter(adapter: impl Into<Option<String>>) Into::into;
    with_answers(answers: usize);
} }

/// An empty prompt, which [`Capability::check`] refuses: set one with [`GenerateText::with_prompt`].
impl Default for GenerateText {
    fn default() -> Self {
        Self {
            prompt: Prompt::Raw(String::new()),
            sampling: Sampling::default(),
            max_tokens: 256,
            min_tokens: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logprobs: None,
            constraint: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            template_arguments: BTreeMap::new(),
            adapter: None,
            answers: 1,
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

impl Capability for TextToText {
    type Request = GenerateText;
    type Chunk = TextChunk;
    type Output = Completion;
    const NAME: &'static str = "text_to_text";
    const QUEUE: QueueCapacity = QueueCapacity::new(100, 100);
    /// An answer takes long, so that nobody should wait for another's end.
    const BATCHING: Batching = Batching::Continuous;

    fn check(request: &GenerateText) -> Result<(), Cause> {
        check_tokens(request.max_tokens)?;
        request.sampling.check()?;
        check_ends(&request.stop, &request.stop_tokens)?;
        check_min_tokens(request.min_tokens, request.max_tokens)?;
        check_answers(request.answers)?;
        check_logprobs(request.logprobs, request.max_tokens, request.answers)?;
        request.constraint.as_ref().map_or(Ok(()), Constraint::check)?;
        check_tools(request)?;
        check_adapter(request.adapter.as_deref())?;
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

    /// Approximate number of tokens in and out. Each answer is charged with at most 1,024 tokens.
    fn cost(request: &GenerateText) -> Cost {
        let answers = (request.max_tokens.min(LONG_ANSWER) as u64).saturating_mul(request.answers as u64);
        Cost((prompt_bytes(&request.prompt) as u64 / 4).saturating_add(answers))
    }

    fn usage(output: &Completion) -> Option<Usage> {
        Some(output.total_usage())
    }
}

/// Checks the number of tokens asked for.
pub(super) fn check_tokens(max_tokens: usize) -> Result<(), Cause> {
    match max_tokens {
        1..=MAX_TOKENS => Ok(()),
        _ => Err(format!("max_tokens is {max_tokens}; 1 to {MAX_TOKENS} are allowed").into()),
    }
}

/// Checks tools, the choice between them, and what goes to the chat template.
fn check_tools(request: &GenerateText) -> Result<(), Cause> {
    let GenerateText { prompt, tools, tool_choice, template_arguments, constraint, .. } = request;
    tools::check(tools, tool_choice)?;
    if matches!(prompt, Prompt::Raw(_)) && !(tools.is_empty() && template_arguments.is_empty()) {
        return Err("tools and template arguments are for conversations; a raw prompt has no template".into());
    }
    if constraint.is_some() && !tools.is_empty() && *tool_choice != ToolChoice::None {
        return Err("a constraint and tools exclude each other, unless the choice is none".into());
    }
    let bytes: usize =
        template_arguments.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    match bytes {
        0..=MAX_TOOL_BYTES => Ok(()),
        _ => {
            Err(format!("template_arguments have {bytes} bytes; at most {MAX_TOOL_BYTES} are allowed").into())
        }
    }
}

/// Checks the length of an adapter's name. Which ones there are the model knows.
fn check_adapter(adapter: Option<&str>) -> Result<(), Cause> {
    match adapter.map(str::len) {
        None | Some(1..=MAX_NAME_BYTES) => Ok(()),
        Some(bytes) => {
            Err(format!("adapter is a name of {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed").into())
        }
    }
}

/// Checks the strings and tokens that end a text.
pub(super) fn check_ends(stop: &[String], stop_tokens: &[u32]) -> Result<(), Cause> {
    if stop.len() > MAX_STOPS {
        return Err(format!("there are {} stop strings; at most {MAX_STOPS} are allowed", stop.len()).into());
    }
    if let Some(stop) = stop.iter().find(|stop| !(1..=MAX_STOP_BYTES).contains(&stop.len())) {
        let bytes = stop.len();
        return Err(format!("a stop string has {bytes} bytes; 1 to {MAX_STOP_BYTES} are allowed").into());
    }
    match stop_tokens.len() {
        0..=MAX_STOP_TOKENS => Ok(()),
        count => Err(format!("there are {count} stop tokens; at most {MAX_STOP_TOKENS} are allowed").into()),
    }
}

/// Checks the number of tokens before which no text ends.
pub(super) fn check_min_tokens(min_tokens: usize, max_tokens: usize) -> Result<(), Cause> {
    if min_tokens <= max_tokens {
        return Ok(());
    }
    Err(format!("min_tokens is {min_tokens}; at most max_tokens, {max_tokens}, is allowed").into())
}

/// Checks the number of answers asked for.
pub(super) fn check_answers(answers: usize) -> Result<(), Cause> {
    match answers {
        1..=MAX_ANSWERS => Ok(()),
        _ => Err(format!("answers is {answers}; 1 to {MAX_ANSWERS} are allowed").into()),
    }
}

/// Checks the log probabilities asked for.
pub(super) fn check_logprobs(
    logprobs: Option<usize>,
    max_tokens: usize,
    answers: usize,
) -> Result<(), Cause> {
    let Some(top) = logprobs else { return Ok(()) };
    if top > MAX_TOP_LOGPROBS {
        return Err(format!("logprobs is {top}; 0 to {MAX_TOP_LOGPROBS} are allowed").into());
    }
    match (top + 1).saturating_mul(max_tokens).saturating_mul(answers) {
        0..=MAX_LOGPROBS => Ok(()),
        all => Err(format!(
            "{all} log probabilities are asked for, {top} and one for each of max_tokens of each answer; at most \
             {MAX_LOGPROBS} are allowed"
        )
        .into()),
    }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Messages(messages) => {
            let calls = |message: &Message| -> usize {
                message.tool_calls.iter().map(|call| call.name.len() + call.arguments.to_string().len()).sum()
            };
            messages.iter().map(|message| message.content.len() + calls(message)).sum()
        }
        Prompt::Raw(text) => text.len(),
    }
}
