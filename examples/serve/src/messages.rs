//! The messages of a chat: a conversation in words, or an image and a question about it.

use candle_actors::{ImageSource, Message, Role, ToolCall};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::tools::calls_of;

/// The messages as the library has them.
pub(crate) enum Messages {
    Text(Vec<Message>),
    Image(ImageSource, String),
}

/// The content of one message.
#[derive(Default)]
struct Content {
    text: String,
    images: Vec<ImageSource>,
    calls: Vec<ToolCall>,
    /// The call that it is the result of.
    call_id: Option<String>,
}

impl Messages {
    /// # Errors
    /// For whatever is no such message, with its place.
    pub(crate) fn of(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages: Vec<Value> = fields.required("messages")?;
        let numbered = messages.into_iter().enumerate();
        let mut messages: Vec<(Role, Content)> = numbered
            .map(|(index, message)| message_of(Fields::of(message, format!("messages[{index}]"))?))
            .collect::<Result<_, ApiError>>()?;
        if messages.iter().all(|(_, content)| content.images.is_empty()) {
            let words = messages.into_iter().map(|(role, content)| {
                let message = Message::new(role, content.text).with_tool_calls(content.calls);
                message.with_tool_call_id(content.call_id)
            });
            return Ok(Self::Text(words.collect()));
        }
        match (messages.pop(), messages.is_empty()) {
            (Some((Role::User, Content { text, mut images, .. })), true) if images.len() == 1 => {
                Ok(Self::Image(images.remove(0), text))
            }
            _ => {
                let message =
                    "a model that looks at images takes one message, of the user, with one image and text";
                Err(ApiError::field("messages", message))
            }
        }
    }
}

fn message_of(mut fields: Fields) -> Result<(Role, Content), ApiError> {
    let name = fields.name("role");
    let role = match fields.required::<String>("role")?.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            let message =
                format!("{name} is {other:?}; supported are system, developer, user, assistant and tool");
            return Err(ApiError::field(&name, message));
        }
    };
    // What an answer that is sent back has beside its content.
    if role == Role::Assistant {
        fields.only("annotations", [json!([])])?;
        fields.without_effect(&["reasoning_content"]);
    }
    let calls = if role == Role::Assistant { calls_of(&mut fields)? } else { Vec::new() };
    let call_id = if role == Role::Tool { fields.optional("tool_call_id")? } else { None };
    let name = fields.name("content");
    let content = match fields.optional("content")? {
        // An answer may have calls alone.
        None if !calls.is_empty() => Content::default(),
        None => return Err(ApiError::field(&name, format!("the field {name} is missing"))),
        Some(Value::String(text)) => Content { text, ..Content::default() },
        Some(Value::Array(parts)) => content_of(parts, &name)?,
        Some(_) => {
            return Err(ApiError::field(&name, format!("{name} has to be a string or an array of parts")));
        }
    };
    fields.end()?;
    if role != Role::User && !content.images.is_empty() {
        return Err(ApiError::field(&name, format!("{name}: only the user's messages can have images")));
    }
    Ok((role, Content { calls, call_id, ..content }))
}

fn content_of(parts: Vec<Value>, name: &str) -> Result<Content, ApiError> {
    let mut content = Content::default();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, format!("{name}[{index}]"))?;
        match part.required::<String>("type")?.as_str() {
            "text" => {
                if !content.text.is_empty() {
                    content.text.push('\n');
                }
                content.text.push_str(&part.required::<String>("text")?);
            }
            "image_url" => {
                content.images.push(image(Fields::of(part.required("image_url")?, part.name("image_url"))?)?)
            }
            other => {
                let name = part.name("type");
                let message = format!("{name} is {other:?}; supported are text and image_url");
                return Err(ApiError::field(&name, message));
            }
        }
        part.end()?;
    }
    Ok(content)
}

/// An image at an address, or in it. A file's name is no address: a client has no business with the server's files.
fn image(mut fields: Fields) -> Result<ImageSource, ApiError> {
    let url: String = fields.required("url")?;
    fields.only("detail", [json!("auto")])?;
    let has_scheme =
        |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let image = if has_scheme("data:") {
        ImageSource::Base64(url)
    } else if has_scheme("http://") || has_scheme("https://") {
        ImageSource::Url(url)
    } else {
        let name = fields.name("url");
        return Err(ApiError::field(&name, format!("{name} has to be an http, https or data address")));
    };
    fields.end()?;
    Ok(image)
}
