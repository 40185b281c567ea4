//! Chat templates: Jinja programs that models ship and that render messages to a prompt. They run as in
//! `apply_chat_template` of transformers, with limits on stack, memory, steps and time, since a template is untrusted.
//! The search for the template in a model's files is here too; tokenizing the prompt is left to the tokenizer.

mod limits;
mod syntax;
mod budget;
mod paths;
mod text;
mod clock;
mod filters;
mod methods;
mod operators;
mod signatures;
mod builtins;
mod functions;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::machinery::{CodeGenerator, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context, machinery};
use model_actors::{LoadContext, Message, Role, Tool};
use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::large_stack::{Failure, Threads};
use crate::source::Files;
use crate::tokens::TokenizerSettings;

/// Maximum number of bytes of a template; the largest published ones have about 40 KiB.
const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// Maximum number of bytes of a template's output; a prompt has at most half of it.
const MAX_OUTPUT_BYTES: usize = 8 << 20;
/// Maximum number of steps of a template; a published one takes about a hundred for each message.
const MAX_STEPS: u64 = 1_000_000;
/// Most nested macros and loops.
const MAX_DEPTH: usize = 100;
/// Maximum number of letters of an error that are told.
const MAX_REASON: usize = 1000;
const NAME: &str = "chat";
/// Names of the special tokens that have a field of their own.
const NAMED: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// A model's chat template, compiled. A clone shares it.
#[derive(Clone)]
pub(crate) struct ChatTemplate {
    program: Arc<Program>,
    threads: Threads,
    file: PathBuf,
    tokens: SpecialTokens,
}

self_cell::self_cell!(
    /// A template's text and what it compiles to, which borrows names of it.
    struct Program {
        owner: String,
        #[covariant]
        dependent: Instructions,
    }
);

/// A conversation as a template is given it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Conversation<'a> {
    pub(crate) messages: &'a [Message],
    /// The tools that the model may call.
    pub(crate) tools: &'a [Tool],
    /// Further values by name.
    pub(crate) arguments: Option<&'a BTreeMap<String, serde_json::Value>>,
}

impl<'a> Conversation<'a> {
    /// One of these messages alone.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(messages: &'a [Message]) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// Names that a template is given in any case.
const OWN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Special tokens that templates write by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpecialTokens {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    /// Those that have other names, such as `cls_token` or `image_token`.
    pub(crate) others: BTreeMap<String, String>,
}

/// `chat_template` in `tokenizer_config.json` or `chat_template.json`.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateEntry {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// Chat template of `tokenizer_config.json` and `chat_template.json`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenizerConfig {
    chat_template: Option<TemplateEntry>,
}

impl TemplateEntry {
    /// Picks the template that is called `default`, or the only one.
    fn pick(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(mut named) => {
                let at = named.iter().position(|entry| entry.name == "default");
                let at = at.or((named.len() == 1).then_some(0))?;
                Some(named.swap_remove(at).template)
            }
        }
    }
}

impl SpecialTokens {
    fn of(settings: &TokenizerSettings) -> Self {
        let others = settings.named().filter(|(name, _)| !NAMED.contains(name));
        Self {
            bos: settings.token("bos_token"),
            eos: settings.token("eos_token"),
            unk: settings.token("unk_token"),
            pad: settings.token("pad_token"),
            others: others.map(|(name, token)| (name.to_owned(), token.to_owned())).collect(),
        }
    }
}

/// Reads a model's template, if it has one, and its special tokens: `chat_template.jinja` goes before
/// `chat_template.json`, and that before `tokenizer_config.json`, as in transformers.
///
/// # Errors
/// [`Error::InvalidConfig`] names the file and what is wrong with it.
pub(crate) fn read(files: &Files, context: &LoadContext) -> Result<(Option<ChatTemplate>, SpecialTokens)> {
    let mut found = None;
    if let Some(path) = files.optional("tokenizer_config.json", context)? {
        let config: TokenizerConfig = crate::source::read_json(&path)?;
        found = config.chat_template.and_then(TemplateEntry::pick).map(|text| (path, text));
    }
    if let Some(path) = files.optional("chat_template.json", context)? {
        let own: TokenizerConfig = crate::source::read_json(&path)?;
        found = own.chat_template.and_then(TemplateEntry::pick).map(|text| (path, text)).or(found);
    }
    if let Some(path) = files.optional("chat_template.jinja", context)? {
        let text = read_text(&path)?;
        found = Some((path, text));
    }
    let tokens = SpecialTokens::of(&TokenizerSettings::read(files, "", context)?);
    let template = match found {
        Some((path, text)) => Some(ChatTemplate::new(&text, tokens.clone(), &path)?),
        None => None,
    };
    Ok((template, tokens))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = crate::source::read(path, MAX_TEMPLATE_BYTES as u64)?;
    let invalid = |error: std::string::FromUtf8Error| Error::InvalidConfig {
        file: path.to_owned(),
        reason: format!("the chat template is no text: {error}"),
    };
    String::from_utf8(bytes).map_err(invalid)
}

fn too_large(path: &Path, bytes: u64) -> Error {
    let reason = format!("the chat template has {bytes} bytes; at most {MAX_TEMPLATE_BYTES} are allowed");
    Error::InvalidConfig { file: path.to_owned(), reason }
}

impl ChatTemplate {
    /// Compiles a template; `file` is where it came from.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it is too large or no valid template; [`Error::TemplateUnavailable`].
    pub(crate) fn new(source: &str, tokens: SpecialTokens, file: &Path) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(too_large(file, source.len() as u64));
        }
        let text = source.to_owned();
        let invalid = |reason| Error::InvalidConfig {
            file: file.to_owned(),
            reason: format!("the chat template {reason}"),
        };
        let threads = Threads::new("chat template");
        let program = threads.run(move || compile(&text)).map_err(|failure| named(failure, file, invalid))?;
        Ok(Self { program: Arc::new(program), threads, file: file.to_owned(), tokens })
    }

    /// Renders the prompt that asks for the model's next turn.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the template refuses the messages, or does not come to an end within its limits;
    /// [`Error::TemplateUnavailable`].
    pub(crate) fn render(&self, chat: Conversation<'_>) -> Result<String> {
        let further = chat.arguments.into_iter().flatten();
        if let Some(name) =
            chat.arguments.and_then(|names| names.keys().find(|name| OWN.contains(&name.as_str())))
        {
            return Err(Error::InvalidInput(format!(
                "the template argument {name} is not an application's to set"
            )));
        }
        let further: BTreeMap<&str, Value> =
            further.map(|(name, value)| (name.as_str(), Value::from(Serde(value)))).collect();
        let tools =
            (!chat.tools.is_empty()).then(|| chat.tools.iter().map(tool_value).collect::<Vec<Value>>());
        let values = context! {
            messages => message_values(chat.messages, self.text().contains("tool_call_id")),
            tools => tools,
            documents => (),
            add_generation_prompt => true,
            ..context! { ..Value::from(further), ..self.special_tokens() }
        };
        self.render_values(values)
    }

    /// The template's text.
    pub(crate) fn text(&self) -> &str {
        self.program.borrow_owner()
    }

    /// Renders the prompt that asks a vision model for its next message. The content of each message is a list of parts:
    /// texts, and nothing in the places of images.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub(crate) fn render_parts(&self, messages: &[(Role, Vec<Option<Cow<'_, str>>>)]) -> Result<String> {
        let part = |part: &Option<Cow<'_, str>>| match part {
            Some(text) => context! { type => "text", text => &**text },
            None => context! { type => "image" },
        };
        let message = |(role, parts): &(Role, Vec<_>)| {
            context! { role => role.name(), content => parts.iter().map(part).collect::<Vec<Value>>() }
        };
        let values = context! {
            messages => messages.iter().map(message).collect::<Vec<Value>>(),
            tools => (),
            documents => (),
            add_generation_prompt => true,
            ..self.special_tokens()
        };
        self.render_values(values)
    }

    fn special_tokens(&self) -> Value {
        let SpecialTokens { bos, eos, unk, pad, others } = &self.tokens;
        let named = NAMED.into_iter().zip([bos, eos, unk, pad]);
        // A token that the model lacks is undefined, not empty.
        let known =
            named.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?))));
        let others = others.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        Value::from(known.chain(others).collect::<BTreeMap<&str, Value>>())
    }

    fn render_values(&self, values: Value) -> Result<String> {
        let program = Arc::clone(&self.program);
        let invalid =
            |reason| Error::InvalidInput(format!("the chat template in {} {reason}", self.file.display()));
        let rendered = self.threads.run(move || execute(&program, values));
        rendered.map_err(|failure| named(failure, &self.file, invalid))
    }
}

/// A tool as transformers gives it to templates.
fn tool_value(tool: &Tool) -> Value {
    Value::from(Serde(json!({
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    })))
}

/// Messages as transformers gives them to templates. With `identified`, calls and results without an identifier are numbered
/// in their order, in the form that Mistral's templates ask for.
fn message_values(messages: &[Message], identified: bool) -> Vec<Value> {
    let (mut calls, mut results) = (0usize, 0usize);
    let number = |next: &mut usize| {
        *next += 1;
        identified.then(|| format!("call{:05}", *next % 100_000))
    };
    messages
        .iter()
        .map(|message| {
            let mut value = json!({ "role": message.role.name(), "content": message.content });
            if !message.tool_calls.is_empty() {
                let call = |call: &model_actors::ToolCall| {
                    let numbered = number(&mut calls);
                    let mut value =
                        json!({ "type": "function", "function": { "name": call.name, "arguments": call.arguments } });
                    if let Some(id) = call.id.clone().or(numbered) {
                        value["id"] = id.into();
                    }
                    value
                };
                value["tool_calls"] = message.tool_calls.iter().map(call).collect();
            }
            if message.role == Role::Tool {
                let numbered = number(&mut results);
                if let Some(id) = message.tool_call_id.clone().or(numbered) {
                    value["tool_call_id"] = id.into();
                }
            }
            Value::from(Serde(value))
        })
        .collect()
}

/// The error about the template in a file; `at_fault` makes that of a template that is at fault.
fn named(failure: Failure, file: &Path, at_fault: impl FnOnce(String) -> Error) -> Error {
    match failure {
        Failure::Work(reason) => at_fault(reason),
        Failure::Busy(reason) => Error::TemplateUnavailable { file: file.to_owned(), reason },
    }
}

/// Compiles a template. To be called on a large stack.
fn compile(source: &str) -> std::result::Result<Program, String> {
    let invalid = |error: minijinja::Error| format!("is invalid: {}", describe(&error));
    // As transformers sets up Jinja.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(invalid)?;
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = syntax::without_generation_marks(&source, syntax.clone());
    Program::try_new(source, |source| {
        let tree = machinery::parse(source, NAME, syntax).map_err(invalid)?;
        let tree = syntax::rewritten(&tree).map_err(|reason| format!("is not supported: {reason}"))?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&tree);
        Ok(generator.finish().0)
    })
}

/// Renders a template. To be called on a large stack.
fn execute(program: &Program, values: Value) -> std::result::Result<String, String> {
    let mut environment = Environment::empty();
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_fuel(Some(MAX_STEPS));
    builtins::add(&mut environment);
    functions::add(&mut environment);
    let (mut out, blocks) = (String::new(), BTreeMap::new());
    let (instructions, escape) = (program.borrow_dependent(), AutoEscape::None);
    let mut output = machinery::make_string_output(&mut out);
    let result = machinery::eval(&environment, instructions, values, &blocks, &mut output, escape).map(drop);
    result.map_err(|error| match error.kind() {
        ErrorKind::OutOfFuel => format!("took more than {MAX_STEPS} steps"),
        _ => format!("does not take the messages: {}", describe(&error)),
    })?;
    drop(output);
    if out.len() > MAX_OUTPUT_BYTES {
        return Err(format!("wrote more than {MAX_OUTPUT_BYTES} bytes"));
    }
    Ok(out)
}

/// Describes an error in one line, without a copy of the template.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let what: String = what.chars().take(MAX_REASON).collect();
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
mod constructs;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod scope_tests;
#[cfg(test)]
mod tools_tests;
