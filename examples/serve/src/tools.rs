//! Tools, the choice between them, calls and the form of an answer, as OpenAI's clients write them and read them.

use candle_actors::{Constraint, GenerateText, Tool, ToolCall, ToolChoice};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Demands of a chat on the form of its answer.
pub(crate) struct Asked {
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
    pub(crate) constraint: Option<Constraint>,
    template_arguments: Map<String, Value>,
}

impl Asked {
    /// # Errors
    /// For whatever is not of the form, with its place.
    pub(crate) fn of(fields: &mut Fields) -> Result<Self, ApiError> {
        let tools: Vec<Value> = fields.optional("tools")?.unwrap_or_default();
        let numbered = tools.into_iter().enumerate();
        let tools: Vec<Tool> = numbered
            .map(|(index, tool)| tool_of(Fields::of(tool, format!("tools[{index}]"))?))
            .collect::<Result<_, ApiError>>()?;
        let choice = choice_of(fields.optional("tool_choice")?)?;
        let parallel = fields.optional("parallel_tool_calls")?.unwrap_or(true);
        let constraint = constraint_of(fields.optional("response_format")?)?;
        let template_arguments = fields.optional("chat_template_kwargs")?.unwrap_or_default();
        Ok(Self { tools, choice, parallel, constraint, template_arguments })
    }

    /// The request with all of it.
    pub(crate) fn put(self, request: GenerateText) -> GenerateText {
        request
            .with_tools(self.tools)
            .with_tool_choice(self.choice)
            .with_parallel_tool_calls(self.parallel)
            .with_constraint(self.constraint)
            .with_template_arguments(self.template_arguments.into_iter().collect())
    }

    /// Refuses what a model that looks at images cannot do.
    ///
    /// # Errors
    /// With the field's name.
    pub(crate) fn constraint_alone(self) -> Result<Option<Constraint>, ApiError> {
        if !self.tools.is_empty() {
            return Err(ApiError::field("tools", "a model that looks at images takes no tools"));
        }
        Ok(self.constraint)
    }
}

fn tool_of(mut fields: Fields) -> Result<Tool, ApiError> {
    fields.only("type", [json!("function")])?;
    let place = fields.name("function");
    let mut function = Fields::of(fields.required("function")?, place)?;
    fields.end()?;
    let name: String = function.required("name")?;
    let description: String = function.optional("description")?.unwrap_or_default();
    let parameters: Option<Value> = function.optional("parameters")?;
    // Arguments satisfy their schema in any case.
    function.only("strict", [json!(true), json!(false)])?;
    function.end()?;
    let tool = Tool::new(name).with_description(description);
    Ok(match parameters {
        Some(parameters) => tool.with_parameters(parameters),
        None => tool,
    })
}

fn choice_of(choice: Option<Value>) -> Result<ToolChoice, ApiError> {
    let unknown =
        || ApiError::field("tool_choice", "tool_choice is none, auto, required, or names a function");
    match choice {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => Err(unknown()),
        },
        Some(choice) => {
            let name =
                choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            name.map(|name| ToolChoice::Named(name.to_owned())).ok_or_else(unknown)
        }
    }
}

fn constraint_of(format: Option<Value>) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = format else { return Ok(None) };
    let mut format = Fields::of(format, "response_format")?;
    let name = format.name("type");
    let constraint = match format.required::<String>("type")?.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::json_object()),
        "json_schema" => {
            let place = format.name("json_schema");
            let mut described = Fields::of(format.required("json_schema")?, place)?;
            described.without_effect(&["name", "description", "strict"]);
            let schema: Value = described.required("schema")?;
            described.end()?;
            Some(Constraint::json_schema(schema))
        }
        other => {
            let message = format!("{name} is {other:?}; supported are text, json_object and json_schema");
            return Err(ApiError::field(&name, message));
        }
    };
    format.end()?;
    Ok(constraint)
}

/// The calls of an earlier answer, which come back as they were sent.
///
/// # Errors
/// For whatever is no call, with its place.
pub(crate) fn calls_of(fields: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let calls: Vec<Value> = fields.optional("tool_calls")?.unwrap_or_default();
    let place = fields.name("tool_calls");
    let call_of = |(index, call): (usize, Value)| {
        let mut call = Fields::of(call, format!("{place}[{index}]"))?;
        call.only("type", [json!("function")])?;
        call.without_effect(&["index"]);
        let id: String = call.required("id")?;
        let mut function = Fields::of(call.required("function")?, call.name("function"))?;
        call.end()?;
        let (called, name) = (function.required::<String>("name")?, function.name("arguments"));
        let arguments = serde_json::from_str(&function.required::<String>("arguments")?)
            .map_err(|error| ApiError::field(&name, format!("{name}: {error}")))?;
        function.end()?;
        Ok(ToolCall::new(called, arguments).with_id(id))
    };
    calls.into_iter().enumerate().map(call_of).collect()
}

/// Calls as a message has them; the first is number `first` of its answer. Its identifiers have the nine letters that
/// Mistral's templates ask for, and those of an answer differ from those of any other of the server.
pub(crate) fn written(calls: &[ToolCall], first: usize, answer: &str, with_index: bool) -> Value {
    let numbered = calls.iter().zip(first..);
    let written = numbered.map(|(call, index)| {
        let mut value = json!({
            "id": call_id(answer, index),
            "type": "function",
            "function": { "name": call.name, "arguments": call.arguments.to_string() },
        });
        if with_index {
            value["index"] = index.into();
        }
        value
    });
    written.collect()
}

/// Nine letters and digits of an answer's identifier and a call's number (FNV-1a in base 36).
fn call_id(answer: &str, index: usize) -> String {
    let bytes = answer.bytes().chain(index.to_le_bytes());
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut letter = || {
        let digit = u32::try_from(hash % 36).unwrap_or(0);
        hash /= 36;
        char::from_digit(digit, 36).unwrap_or('0')
    };
    (0..9).map(|_| letter()).collect()
}
