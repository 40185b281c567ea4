//! Output of models that write: pieces of a text as it is written, the whole text, the reason for its end, and the log
//! probabilities of its tokens.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::tools::ToolCall;

/// Log probability of a token.
///
/// ```
/// use model_actors::TokenLogprob;
/// let half = TokenLogprob::new(17, b" cat".to_vec(), -0.6931);
/// assert_eq!(half.text(), " cat");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// Number of the token in the model's vocabulary.
    pub token: u32,
    /// Its text; of a special token, its name. A character may lie in several tokens, so this may be a part of one.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl TokenLogprob {
    /// A token of this number and text.
    pub fn new(token: u32, bytes: Vec<u8>, logprob: f32) -> Self {
        Self { token, bytes, logprob }
    }

    /// Its text, in which bytes that are no whole character are replacement characters.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// The log probability of a token that was chosen, and of the most probable ones in its place. They are the model's own:
/// neither bias, penalties and temperature nor a restriction to some tokens is part of them.
///
/// ```
/// use model_actors::{TokenLogprob, TokenLogprobs};
/// let chosen = TokenLogprob::new(17, b" cat".to_vec(), -1.2);
/// let logprobs = TokenLogprobs::new(chosen, vec![TokenLogprob::new(4, b" dog".to_vec(), -0.9)]);
/// assert_eq!(logprobs.top.len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub chosen: TokenLogprob,
    /// The most probable tokens, as many as the request asks for, the most probable first.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprobs {
    /// Those of a token that was chosen, and of the most probable ones.
    pub fn new(chosen: TokenLogprob, top: Vec<TokenLogprob>) -> Self {
        Self { chosen, top }
    }
}

/// A piece of a text that is being written. Written out, it is its text.
///
/// ```
/// use model_actors::TextChunk;
/// let chunk = TextChunk::from("Once ");
/// assert_eq!(format!("{chunk}upon"), "Once upon");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TextChunk {
    /// New text that can no longer change. It is empty where a chunk has another part alone, or log probabilities of tokens
    /// without text.
    pub text: String,
    /// New text of what the model thinks before its answer, where its chat template marks that.
    pub reasoning: String,
    /// Calls of tools that are whole.
    pub tool_calls: Vec<ToolCall>,
    /// Log probabilities of the tokens since the chunk before, where the request asks for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Number of the answer that it is a piece of, from 0, where the request asks for several.
    #[serde(skip_serializing_if = "is_zero")]
    pub answer: usize,
    /// The end of that answer, in its last chunk, where the request asks for several; the others may go on. The output of the
    /// stream has the ends of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<AnswerEnd>,
}

setters! { TextChunk {
    with_answer(answer: usize);
    with_end(end: impl Into<Option<AnswerEnd>>) Into::into;
    with_reasoning(reasoning: impl Into<String>) Into::into;
    with_tool_calls(tool_calls: Vec<ToolCall>);
    with_logprobs(logprobs: Vec<TokenLogprobs>);
} }

impl<T: Into<String>> From<T> for TextChunk {
    fn from(text: T) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

impl fmt::Display for TextChunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl AsRef<str> for TextChunk {
    fn as_ref(&self) -> &str {
        &self.text
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
    /// The model ended it, or a stop string or stop token did.
    Stop,
    /// The model ended it, and calls tools.
    ToolCalls,
    /// `max_tokens` or the context was reached.
    Length,
}

/// The end of one of several answers to a prompt.
///
/// ```
/// use model_actors::{AnswerEnd, FinishReason, TextChunk, Usage};
/// let end = AnswerEnd::new(FinishReason::Length, Usage::new(9, 16));
/// let last = TextChunk::from(" of water").with_answer(1).with_end(end);
/// assert_eq!(last.end.map(|end| end.finish_reason), Some(FinishReason::Length));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AnswerEnd {
    /// Reason for it.
    pub finish_reason: FinishReason,
    /// Numbers of tokens in and out; the prompt's, which the answers share, are in each.
    #[serde(default)]
    pub usage: Usage,
}

impl AnswerEnd {
    /// An end for this reason, after so many tokens.
    pub const fn new(finish_reason: FinishReason, usage: Usage) -> Self {
        Self { finish_reason, usage }
    }
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
    /// Number of the prompt's tokens that were not read, as the model had what it computes of them in its prefix cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cached_tokens: usize,
}

setters! { Usage {
    with_cached_tokens(cached_tokens: usize);
} }

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Usage {
    /// Usage of a request with so many tokens in its prompt and its answer.
    pub const fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, cached_tokens: 0 }
    }
}

/// The whole text, once it is complete; of several answers the first, with the others.
///
/// ```
/// use model_actors::{Completion, FinishReason, Usage};
/// let answer = Completion::new("Water.", FinishReason::Stop, Usage::new(9, 2));
/// assert_eq!(answer.text, "Water.");
/// let other = Completion::new("Drops of water.", FinishReason::Stop, Usage::new(9, 4));
/// let both = answer.with_others(vec![other]);
/// assert_eq!(both.total_usage(), Usage::new(9, 6));
/// let texts: Vec<&str> = both.answers().map(|answer| answer.text.as_str()).collect();
/// assert_eq!(texts, ["Water.", "Drops of water."]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Completion {
    /// The whole text: all chunks together.
    pub text: String,
    /// Thoughts of the model before its answer: the reasoning of all chunks together.
    #[serde(default)]
    pub reasoning: String,
    /// Calls of tools, in the order of the model. One that was cut off is left out.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Reason for its end.
    pub finish_reason: FinishReason,
    /// Numbers of tokens in and out.
    pub usage: Usage,
    /// Log probabilities, where the request asks for them: one entry for each token of `usage`, so also for that which
    /// ended the text.
    #[serde(default)]
    pub logprobs: Vec<TokenLogprobs>,
    /// The answers after the first, in their order, where the request asks for several; each has a text, an end and numbers
    /// of tokens of its own, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Completion>,
}

setters! { Completion {
    with_reasoning(reasoning: impl Into<String>) Into::into;
    with_tool_calls(tool_calls: Vec<ToolCall>);
    with_logprobs(logprobs: Vec<TokenLogprobs>);
    with_others(others: Vec<Completion>);
} }

impl Completion {
    /// A finished text.
    pub fn new(text: impl Into<String>, finish_reason: FinishReason, usage: Usage) -> Self {
        let (reasoning, tool_calls, logprobs) = (String::new(), Vec::new(), Vec::new());
        let others = Vec::new();
        Self { text: text.into(), reasoning, tool_calls, finish_reason, usage, logprobs, others }
    }

    /// All answers, in their order: this one and the others.
    pub fn answers(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// All answers, in their order, without others.
    #[must_use]
    pub fn into_answers(mut self) -> Vec<Self> {
        let mut answers = std::mem::take(&mut self.others);
        answers.insert(0, self);
        answers
    }

    /// Numbers of tokens of all answers together. The prompt, which they share, counts once.
    pub fn total_usage(&self) -> Usage {
        let completion_tokens = self.answers().map(|answer| answer.usage.completion_tokens).sum();
        Usage { completion_tokens, ..self.usage }
    }
}
