//! A conversation's tokens: what the chat template makes of the messages, in which special tokens are its own and
//! nobody else's. Which of them are is found out by the tokenizer's owner, `tokens`.

use model_actors::{Message, Role, ToolCall};
use serde_json::Value;

use super::template::{ChatTemplate, Conversation};
use crate::error::Result;
use crate::tokens::{Mask, Tokens};

/// Encodes the prompt that asks for the model's next message. The system's messages and the tools are the application's, and
/// may hold special tokens; answers, calls of tools in them and results of tools may repeat what a person wrote, so that they
/// are treated as what people write. `check` may refuse the prompt before it is tokenized.
///
/// # Errors
/// [`Error::InvalidInput`](crate::Error::InvalidInput) if the template refuses the messages, or the tokenizer fails; those
/// of `check`.
pub(crate) fn encode(
    tokens: &Tokens,
    template: &ChatTemplate,
    chat: Conversation<'_>,
    check: impl Fn(&str) -> Result<()>,
) -> Result<Vec<u32>> {
    let is_written = |message: &&Message| message.role != Role::System;
    let mut written: Vec<&str> = Vec::new();
    for message in chat.messages.iter().filter(is_written) {
        written.push(&message.content);
        for call in &message.tool_calls {
            written.push(&call.name);
            texts(&call.arguments, &mut written);
        }
    }
    let masked = |mask: &Mask| -> Vec<Message> {
        let of = |message: &Message| {
            if !is_written(&message) {
                return message.clone();
            }
            let apply = |text: &str| mask.apply(text).into_owned();
            let call = |call: &ToolCall| {
                let mut own = call.clone();
                own.name = apply(&call.name);
                own.arguments = with_texts(&call.arguments, &apply);
                own
            };
            let mut own = message.clone().with_tool_calls(message.tool_calls.iter().map(call).collect());
            own.content = apply(&message.content);
            own
        };
        chat.messages.iter().map(of).collect()
    };
    tokens.encode_template(
        &written,
        |mask| template.render(Conversation { messages: &masked(mask), ..chat }),
        check,
        |text| tokens.chat_specials(text),
    )
}

/// Collects the texts in a JSON value, names included.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(entries) => entries.iter().for_each(|(name, value)| {
            found.push(name);
            texts(value, found);
        }),
        _ => {}
    }
}

/// A JSON value with its texts exchanged.
fn with_texts(value: &Value, apply: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(apply(text)),
        Value::Array(values) => values.iter().map(|value| with_texts(value, apply)).collect(),
        Value::Object(entries) => Value::Object(
            entries.iter().map(|(name, value)| (apply(name), with_texts(value, apply))).collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
