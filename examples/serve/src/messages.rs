//! The messages of a chat: a conversation in words, or one with images among them.

use candle_actors::{ContentPart, ImageSource, Message, Role, ToolCall, VisionMessage};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::tools::calls_of;

/// The messages of a chat.
pub(crate) struct Messages(Vec<(Role, Content)>);

/// The content of one message.
#[derive(Default)]
struct Content {
    parts: Vec<ContentPart>,
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
        let message = |(index, message)| message_of(Fields::of(message, format!("messages[{index}]"))?);
        Ok(Self(numbered.map(message).collect::<Result<_, ApiError>>()?))
    }

    /// Messages for a model that takes words alone; the texts of one are its lines. Nothing where one has an image.
    pub(crate) fn in_words(self) -> Option<Vec<Message>> {
        let message = |(role, Content { parts, calls, call_id }): (Role, Content)| {
            let text = |part| match part {
                ContentPart::Text(text) => Some(text),
                _ => None,
            };
            let texts = parts.into_iter().map(text).collect::<Option<Vec<String>>>()?;
            Some(Message::new(role, texts.join("\n")).with_tool_calls(calls).with_tool_call_id(call_id))
        };
        self.0.into_iter().map(message).collect()
    }

    /// Messages for a model that looks at images.
    ///
    /// # Errors
    /// For calls of tools and their results, which such a model knows nothing of.
    pub(crate) fn with_images(self) -> Result<Vec<VisionMessage>, ApiError> {
        let message = |(role, Content { parts, calls, .. }): (Role, Content)| {
            if role == Role::Tool || !calls.is_empty() {
                let message = "a model that looks at images calls no tools, and takes no results of them";
                return Err(ApiError::field("messages", message));
            }
            Ok(VisionMessage::new(role, parts))
        };
        self.0.into_iter().map(message).collect()
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
        Some(Value::String(text)) => Content { parts: vec![text.into()], ..Content::default() },
        Some(Value::Array(parts)) => Content { parts: parts_of(parts, &name)?, ..Content::default() },
        Some(_) => {
            return Err(ApiError::field(&name, format!("{name} has to be a string or an array of parts")));
        }
    };
    fields.end()?;
    let is_image = |part: &ContentPart| matches!(part, ContentPart::Image(_));
    if role != Role::User && content.parts.iter().any(is_image) {
        return Err(ApiError::field(&name, format!("{name}: only the user's messages can have images")));
    }
    Ok((role, Content { calls, call_id, ..content }))
}

fn parts_of(values: Vec<Value>, name: &str) -> Result<Vec<ContentPart>, ApiError> {
    let part = |(index, value)| {
        let mut part = Fields::of(value, format!("{name}[{index}]"))?;
        let content = match part.required::<String>("type")?.as_str() {
            "text" => part.required::<String>("text")?.into(),
            "image_url" => image(Fields::of(part.required("image_url")?, part.name("image_url"))?)?.into(),
            other => {
                let name = part.name("type");
                let message = format!("{name} is {other:?}; supported are text and image_url");
                return Err(ApiError::field(&name, message));
            }
        };
        part.end()?;
        Ok(content)
    };
    values.into_iter().enumerate().map(part).collect()
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
