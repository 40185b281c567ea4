//! Texts as the objects of OpenAI's two endpoints for them, whole and in pieces.

use std::future::ready;

use axum::http::StatusCode;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use candle_actors::{AnswerEnd, Completion, FinishReason, TextChunk, TokenLogprobs, ToolCall, Usage};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::events::{done, event, streamed};
use crate::json::Json;
use crate::logprobs;
use crate::server::{Server, seconds};
use crate::settings::Form;
use crate::tools;
use crate::writing::{Piece, Writing, side_by_side, whole};

/// The endpoint that the answer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

/// The objects of one answer.
struct Answer {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    /// Number of answers to each prompt: they share its tokens.
    choices: usize,
    form: Form,
    usage: Usage,
    /// Choices that have begun, and those that have ended.
    begun: Vec<bool>,
    ended: Vec<bool>,
    /// Calls of tools of each choice so far.
    called: Vec<usize>,
    /// Characters of each choice so far.
    characters: Vec<usize>,
    /// Number of prompts whose answers are all whole.
    whole: usize,
}

/// Writes these texts, each of which asks for `choices` answers to a prompt, and answers in this form.
///
/// # Errors
/// Those of the first that fails, up to the first piece of a stream.
pub(crate) async fn answer(
    server: &Server,
    endpoint: Endpoint,
    model: String,
    writings: Vec<Writing>,
    choices: usize,
    form: Form,
) -> Result<Response, ApiError> {
    let id = server.next_id(if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" });
    let answers = writings.len() * choices;
    let (begun, ended) = (vec![false; answers], vec![false; answers]);
    let (characters, called) = (vec![0; answers], vec![0; answers]);
    let (created, usage) = (seconds(), Usage::default());
    let mut answer = Answer {
        endpoint,
        id,
        created,
        model,
        choices,
        form,
        usage,
        begun,
        ended,
        called,
        characters,
        whole: 0,
    };
    if form == Form::Whole {
        let completions = whole(writings).await?;
        completions.iter().try_for_each(|completion| has_all(completion, choices))?;
        return Ok(Json(answer.whole(completions)).into_response());
    }
    let events = side_by_side(writings).await?.flat_map(move |piece| {
        let complete = |piece: (usize, Piece)| match &piece.1 {
            Piece::End(completion) => has_all(completion, choices).map(|()| piece),
            Piece::Text(_) => Ok(piece),
        };
        stream::iter(match piece.and_then(complete) {
            Ok((prompt, piece)) => answer.events(prompt, piece).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    });
    streamed(events.chain(stream::once(ready(Ok(done()))))).await
}

/// True if a piece has more than the end of its answer.
fn has_news(chunk: &TextChunk) -> bool {
    let has_text = !chunk.text.is_empty() || !chunk.reasoning.is_empty();
    chunk.end.is_none() || has_text || !chunk.tool_calls.is_empty() || !chunk.logprobs.is_empty()
}

/// A model of another make may know nothing of several answers.
fn has_all(completion: &Completion, choices: usize) -> Result<(), ApiError> {
    let given = completion.answers().count();
    if given == choices {
        return Ok(());
    }
    let message = format!("the model wrote {given} answers to a prompt, and {choices} were asked for");
    Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "missing_answers", message))
}

impl Answer {
    fn whole(&mut self, completions: Vec<Completion>) -> Value {
        let numbered = completions.into_iter().flat_map(Completion::into_answers).enumerate();
        let choices: Vec<Value> = numbered
            .map(|(index, completion)| {
                self.count(index, completion.usage);
                match self.endpoint {
                    Endpoint::Chat => {
                        let message = self.message(index, &completion);
                        let (reason, logprobs) = (Some(completion.finish_reason), completion.logprobs);
                        self.choice(index, "message", message, &logprobs, reason)
                    }
                    Endpoint::Completions => {
                        let (reason, logprobs) = (Some(completion.finish_reason), completion.logprobs);
                        self.choice(index, "text", completion.text.into(), &logprobs, reason)
                    }
                }
            })
            .collect();
        let object = if self.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" };
        self.object(object, choices, Some(usage(self.usage)))
    }

    /// A whole answer of a chat.
    fn message(&mut self, index: usize, completion: &Completion) -> Value {
        let mut message = json!({ "role": "assistant", "content": completion.text, "refusal": null });
        if !completion.reasoning.is_empty() {
            message["reasoning_content"] = completion.reasoning.as_str().into();
        }
        if !completion.tool_calls.is_empty() {
            if completion.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = self.calls(index, &completion.tool_calls, false);
        }
        message
    }

    /// Calls of one choice, numbered after those before.
    fn calls(&mut self, index: usize, calls: &[ToolCall], with_index: bool) -> Value {
        let Some(told) = self.called.get_mut(index) else { return Value::Null };
        let first = *told;
        *told += calls.len();
        tools::written(calls, first, &format!("{}-{index}", self.id), with_index)
    }

    /// A piece of an answer of a chat.
    fn delta(&mut self, index: usize, chunk: &TextChunk) -> Value {
        let mut delta = Map::new();
        if !chunk.reasoning.is_empty() {
            delta.insert("reasoning_content".to_owned(), chunk.reasoning.as_str().into());
        }
        if !chunk.tool_calls.is_empty() {
            delta.insert("tool_calls".to_owned(), self.calls(index, &chunk.tool_calls, true));
        }
        if !chunk.text.is_empty() || delta.is_empty() {
            delta.insert("content".to_owned(), chunk.text.as_str().into());
        }
        Value::Object(delta)
    }

    /// The events of one piece of the answers to a prompt, by the prompt's number.
    fn events(&mut self, prompt: usize, piece: Piece) -> Vec<Event> {
        let mut events = Vec::new();
        let first = prompt * self.choices;
        match piece {
            Piece::Text(chunk) => {
                let index = first + chunk.answer;
                events.extend(self.beginning(index));
                let (end, has_news) = (chunk.end, has_news(&chunk));
                let content = match self.endpoint {
                    Endpoint::Chat => self.delta(index, &chunk),
                    Endpoint::Completions => chunk.text.into(),
                };
                if has_news {
                    events.push(self.part(index, content, &chunk.logprobs, None));
                }
                events.extend(end.and_then(|end| self.end(index, end)));
            }
            Piece::End(completion) => {
                self.whole += 1;
                for (index, completion) in (first..).zip(completion.answers()) {
                    events.extend(self.beginning(index));
                    let end = AnswerEnd::new(completion.finish_reason, completion.usage);
                    events.extend(self.end(index, end));
                }
            }
        }
        let is_whole = self.whole * self.choices == self.begun.len();
        if is_whole && self.form == Form::StreamedWithUsage {
            let usage = Some(usage(self.usage));
            events.push(event(&self.object(self.part_object(), Vec::new(), usage)));
        }
        events
    }

    /// The event after the last piece of an answer, once.
    fn end(&mut self, index: usize, end: AnswerEnd) -> Option<Event> {
        let ended = self.ended.get_mut(index)?;
        if std::mem::replace(ended, true) {
            return None;
        }
        self.count(index, end.usage);
        let nothing = if self.endpoint == Endpoint::Chat { json!({}) } else { json!("") };
        Some(self.part(index, nothing, &[], Some(end.finish_reason)))
    }

    /// The event before the first piece of an answer: a chat says who speaks.
    fn beginning(&mut self, index: usize) -> Option<Event> {
        let begun = self.begun.get_mut(index)?;
        let is_first = !std::mem::replace(begun, true) && self.endpoint == Endpoint::Chat;
        is_first.then(|| self.part(index, json!({ "role": "assistant", "content": "" }), &[], None))
    }

    /// One event with a part of one choice.
    fn part(
        &mut self,
        index: usize,
        content: Value,
        logprobs: &[TokenLogprobs],
        reason: Option<FinishReason>,
    ) -> Event {
        let name = if self.endpoint == Endpoint::Chat { "delta" } else { "text" };
        let choice = self.choice(index, name, content, logprobs, reason);
        let usage = (self.form == Form::StreamedWithUsage).then_some(Value::Null);
        event(&self.object(self.part_object(), vec![choice], usage))
    }

    fn part_object(&self) -> &'static str {
        if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn choice(
        &mut self,
        index: usize,
        name: &str,
        content: Value,
        logprobs: &[TokenLogprobs],
        reason: Option<FinishReason>,
    ) -> Value {
        let logprobs = match (logprobs, self.endpoint, self.characters.get_mut(index)) {
            ([], _, _) | (_, Endpoint::Completions, None) => Value::Null,
            (tokens, Endpoint::Chat, _) => logprobs::of_chat(tokens),
            (tokens, Endpoint::Completions, Some(characters)) => logprobs::of_completion(tokens, characters),
        };
        let reason = reason.map(|reason| match reason {
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
            _ => "stop",
        });
        json!({ "index": index, name: content, "logprobs": logprobs, "finish_reason": reason })
    }

    fn object(&self, object: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut whole = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        });
        if let (Some(usage), Some(fields)) = (usage, whole.as_object_mut()) {
            fields.insert("usage".to_owned(), usage);
        }
        whole
    }

    /// Adds the tokens of a choice that has ended; those of a prompt count once.
    fn count(&mut self, index: usize, usage: Usage) {
        if index.is_multiple_of(self.choices) {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += usage.cached_tokens;
        }
        self.usage.completion_tokens += usage.completion_tokens;
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}
