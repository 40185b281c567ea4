//! A conversation's tokens: what the chat template makes of the messages, in which special tokens are its own and
//! nobody else's. Which of them are is found out by the tokenizer's owner, `tokens`.

use model_actors::{Message, Role};

use super::template::ChatTemplate;
use crate::error::Result;
use crate::tokens::{Mask, Tokens};

/// Encodes the prompt that asks for the model's next message. The system's messages are the application's, and may hold
/// special tokens; answers may repeat what a person wrote, so that they are treated as what people write. `check` may
/// refuse the prompt before it is tokenized.
///
/// # Errors
/// [`Error::InvalidInput`](crate::Error::InvalidInput) if the template refuses the messages, or the tokenizer fails; those
/// of `check`.
pub(crate) fn encode(
    tokens: &Tokens,
    template: &ChatTemplate,
    messages: &[Message],
    check: impl Fn(&str) -> Result<()>,
) -> Result<Vec<u32>> {
    let is_written = |message: &&Message| message.role != Role::System;
    let written: Vec<&str> =
        messages.iter().filter(is_written).map(|message| message.content.as_str()).collect();
    let masked = |mask: &Mask| {
        let content = |message: &Message| match is_written(&message) {
            true => mask.apply(&message.content).into_owned(),
            false => message.content.clone(),
        };
        messages.iter().map(|message| Message::new(message.role, content(message))).collect::<Vec<Message>>()
    };
    tokens.encode_template(
        &written,
        |mask| template.render(&masked(mask)),
        check,
        |text| tokens.chat_specials(text),
    )
}

#[cfg(test)]
mod tests;
