//! Tools: functions that a model may call. Definitions go in with the request, calls come out as typed values, and their
//! results go back as messages. How a family writes them is left to the models' crate.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Cause;
use crate::limits::{MAX_TOOL_BYTES, MAX_TOOL_NAME, MAX_TOOLS};

/// A function that a model may call.
///
/// ```
/// use model_actors::Tool;
/// let weather = Tool::new("get_weather")
///     .with_description("The weather in a city.")
///     .with_parameters(serde_json::json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}));
/// assert_eq!(weather.name, "get_weather");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tool {
    /// Name: 1 to 64 letters of ASCII, digits, and `_`, `-` and `.`.
    pub name: String,
    /// Its purpose, for the model.
    #[serde(default)]
    pub description: String,
    /// JSON schema of its arguments, which are an object.
    pub parameters: Value,
}

setters! { Tool {
    with_description(description: impl Into<String>) Into::into;
    with_parameters(parameters: Value);
} }

impl Tool {
    /// A function of this name, without a description, which takes any arguments.
    pub fn new(name: impl Into<String>) -> Self {
        let parameters = serde_json::json!({ "type": "object", "properties": {} });
        Self { name: name.into(), description: String::new(), parameters }
    }
}

/// A call of a tool: its name and its arguments, which satisfy its schema where the library has made the call.
///
/// ```
/// use model_actors::ToolCall;
/// let call = ToolCall::new("get_weather", serde_json::json!({"city": "Oslo"}));
/// assert_eq!(call.arguments["city"], "Oslo");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolCall {
    /// Name of the tool.
    pub name: String,
    /// Arguments, a JSON object.
    pub arguments: Value,
    /// Identifier, which its result names. Models give none; an application may, where several calls wait for results.
    #[serde(default)]
    pub id: Option<String>,
}

setters! { ToolCall {
    with_id(id: impl Into<String>) some_text;
} }

fn some_text(text: impl Into<String>) -> Option<String> {
    Some(text.into())
}

impl ToolCall {
    /// A call without an identifier.
    pub fn new(name: impl Into<String>, arguments: Value) -> Self {
        Self { name: name.into(), arguments, id: None }
    }
}

/// The choice between an answer in words and calls of tools.
///
/// ```
/// assert_eq!(model_actors::ToolChoice::default(), model_actors::ToolChoice::Auto);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model chooses.
    #[default]
    Auto,
    /// The model answers in words, and sees no tools.
    None,
    /// The model calls tools.
    Required,
    /// The model calls the tool of this name.
    Named(String),
}

/// Checks definitions and the choice between them.
pub(super) fn check(tools: &[Tool], choice: &ToolChoice) -> Result<(), Cause> {
    if tools.len() > MAX_TOOLS {
        return Err(format!("there are {} tools; at most {MAX_TOOLS} are allowed", tools.len()).into());
    }
    let mut names = HashSet::new();
    let mut bytes = 0usize;
    for tool in tools {
        check_name(&tool.name)?;
        if !names.insert(tool.name.as_str()) {
            return Err(format!("there are several tools of the name {:?}", tool.name).into());
        }
        bytes =
            bytes.saturating_add(tool.description.len()).saturating_add(tool.parameters.to_string().len());
    }
    if bytes > MAX_TOOL_BYTES {
        return Err(format!("the tools have {bytes} bytes; at most {MAX_TOOL_BYTES} are allowed").into());
    }
    match choice {
        ToolChoice::Required if tools.is_empty() => Err("a call is required, and there are no tools".into()),
        ToolChoice::Named(name) if !names.contains(name.as_str()) => {
            Err(format!("a call of {name:?} is required, and there is no such tool").into())
        }
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), Cause> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
    match name.len() {
        1..=MAX_TOOL_NAME if name.chars().all(is_letter) => Ok(()),
        1..=MAX_TOOL_NAME => {
            Err(format!("the tool {name:?} is to be named with letters, digits, _, - and . alone").into())
        }
        bytes => Err(format!("a tool's name has {bytes} bytes; 1 to {MAX_TOOL_NAME} are allowed").into()),
    }
}
