//! The ways in which models write calls of tools, as a table: what a family puts around calls and between their parts. A
//! format is found by the words of the model's own chat template, becomes a grammar that the text keeps to, and reads the
//! calls of it. Where in a text calls are is left to `parts`.

use model_actors::{Constraint, Tool, ToolCall, ToolChoice};
use serde_json::{Deserializer, Value, json};

use super::grammar_text::{escaped, quoted};
use super::plain_arguments::{Rules, Unread, read_braces, read_tags};
use crate::error::{Error, Result};
use crate::structured::compiled_schema;

/// A family's way to write calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CallFormat {
    /// Words of the template by which it is known: all of the first, none of the second. Rows come in order of preference.
    words: &'static [&'static str],
    without: &'static [&'static str],
    /// Mark that begins a call; a special token where the vocabulary has it as one.
    pub(super) opening: &'static str,
    /// Mark that ends it; nothing where its JSON does.
    closing: &'static str,
    form: Form,
    /// A text that begins with an object is a call too, without the opening.
    pub(super) may_be_bare: bool,
    several: bool,
}

/// The form of what is between opening and closing.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// `{"name": …, "arguments": …}`, with this word for the arguments.
    Object(&'static str),
    /// An array of such objects: all calls.
    Array(&'static str),
    /// The name, this mark, and the arguments.
    Named(&'static str),
    /// The name in a tag around the arguments, each of which is in a tag of its own, without JSON.
    Tags,
    /// `call:`, the name, and the arguments in braces without JSON, with this mark around texts.
    Braces(&'static str),
}

/// Marks around a name and its arguments in tags.
const TAGS: [&str; 3] = ["<function=", ">\n", "</function>"];
/// Mark before a name and its arguments in braces.
const BRACES: &str = "call:";

const FORMATS: [CallFormat; 8] = [
    // FunctionGemma.
    CallFormat {
        words: &["<start_function_call>", "<escape>"],
        without: &[],
        opening: "<start_function_call>",
        closing: "<end_function_call>",
        form: Form::Braces("<escape>"),
        may_be_bare: false,
        several: true,
    },
    // Gemma 4.
    CallFormat {
        words: &["<|tool_call>", "<tool_call|>"],
        without: &[],
        opening: "<|tool_call>",
        closing: "<tool_call|>",
        form: Form::Braces("<|\"|>"),
        may_be_bare: false,
        several: true,
    },
    // Qwen 3 Coder and Qwen 3.5.
    CallFormat {
        words: &["<tool_call>", "<function=", "<parameter="],
        without: &[],
        opening: "<tool_call>",
        closing: "</tool_call>",
        form: Form::Tags,
        may_be_bare: false,
        several: true,
    },
    // Mistral from tokenizer 11 on.
    CallFormat {
        words: &["[TOOL_CALLS]", "[ARGS]"],
        without: &["[CALL_ID]"],
        opening: "[TOOL_CALLS]",
        closing: "",
        form: Form::Named("[ARGS]"),
        may_be_bare: false,
        several: true,
    },
    // Mistral before.
    CallFormat {
        words: &["[TOOL_CALLS]"],
        without: &["[ARGS]", "[CALL_ID]"],
        opening: "[TOOL_CALLS]",
        closing: "",
        form: Form::Array("arguments"),
        may_be_bare: false,
        several: true,
    },
    // Hermes, Qwen 2.5 and 3, and those that follow them.
    CallFormat {
        words: &["<tool_call>", "</tool_call>", "arguments"],
        without: &["<function="],
        opening: "<tool_call>",
        closing: "</tool_call>",
        form: Form::Object("arguments"),
        may_be_bare: false,
        several: true,
    },
    // Llama 3.1 and later, which calls one tool at a time.
    CallFormat {
        words: &["\"parameters\": ", "tool_calls"],
        without: &["<tool_call>", "<|python_start|>"],
        opening: "<|python_tag|>",
        closing: "",
        form: Form::Object("parameters"),
        may_be_bare: true,
        several: false,
    },
    // Llama 4, whose mark begins any code.
    CallFormat {
        words: &["\"parameters\": ", "tool_calls", "<|python_start|>"],
        without: &["<tool_call>"],
        opening: "<|python_start|>",
        closing: "",
        form: Form::Object("parameters"),
        may_be_bare: true,
        several: false,
    },
];

/// White space that may stand between a mark and a call.
const WHITE_SPACE: &str = r"/[ \n]{0,2}/";

impl CallFormat {
    /// The format of a template's model, if it is one of the table.
    pub(crate) fn of_template(template: &str) -> Option<&'static Self> {
        let holds = |word: &&str| template.contains(*word);
        FORMATS.iter().find(|format| format.words.iter().all(holds) && !format.without.iter().any(holds))
    }

    /// The marks that may be special tokens.
    pub(super) fn marks(&self) -> impl Iterator<Item = &'static str> {
        let between = if let Form::Named(mark) | Form::Braces(mark) = self.form { mark } else { "" };
        [self.opening, self.closing, between].into_iter().filter(|mark| !mark.is_empty())
    }

    /// The grammar of answers that may call these tools; `special` numbers a mark that is a special token. Until a call
    /// begins, a text is free, unless a call is required.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for arguments that the format cannot hold a model to.
    pub(crate) fn grammar(
        &self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        special: impl Fn(&str) -> Option<u32>,
    ) -> Result<Constraint> {
        let mark = |text: &str| special(text).map_or_else(|| quoted(text), |id| format!("<[{id}]>"));
        let chosen = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
        let (mut rules, mut names) = (String::new(), Vec::new());
        for (index, tool) in tools.iter().filter(chosen).enumerate() {
            let call = match self.form {
                Form::Object(word) | Form::Array(word) => {
                    let head = format!("{{\"name\": {}, \"{word}\": ", json!(tool.name));
                    format!("{} args_{index} \"}}\"", quoted(&head))
                }
                Form::Named(between) => format!("{} {} args_{index}", quoted(&tool.name), mark(between)),
                Form::Tags => {
                    let [before, after, end] = TAGS;
                    format!(
                        "{} args_{index} {}",
                        quoted(&format!("{before}{}{after}", tool.name)),
                        quoted(end)
                    )
                }
                Form::Braces(_) => format!("{} args_{index}", quoted(&format!("{BRACES}{}", tool.name))),
            };
            let arguments = match self.form {
                Form::Tags => Rules::in_tags(tool, index)?,
                Form::Braces(quote) => Rules::in_braces(tool, index, quote, special(quote))?,
                _ => format!("args_{index}: %json {}\n", arguments_of(tool)),
            };
            rules.push_str(&format!("call_{index}: {call}\n{arguments}"));
            names.push(format!("call_{index}"));
        }
        rules.push_str(&format!("call: {}\nSPACE: {WHITE_SPACE}\n", names.join(" | ")));
        let several = parallel && self.several;
        let opening = mark(self.opening);
        let inner = match self.form {
            Form::Array(_) if several => "\"[\" call (/, ?/ call)* \"]\"".to_owned(),
            Form::Array(_) => "\"[\" call \"]\"".to_owned(),
            Form::Named(_) => "call".to_owned(),
            Form::Braces(_) => format!("call {}", mark(self.closing)),
            Form::Object(_) if self.closing.is_empty() => "call".to_owned(),
            Form::Object(_) | Form::Tags => format!("SPACE call SPACE {}", mark(self.closing)),
        };
        let opened = if self.may_be_bare { format!("({opening})?") } else { opening };
        let repeats = several && !matches!(self.form, Form::Array(_));
        let calls = if repeats {
            format!("{opened} {inner} (SPACE {opened} {inner})*")
        } else {
            format!("{opened} {inner}")
        };
        let start = match choice {
            ToolChoice::Required | ToolChoice::Named(_) => calls,
            _ => self.free_start(&inner, &calls, repeats, special(self.opening).is_some()),
        };
        Ok(Constraint::Lark(format!("start: {start}\n{rules}{}", self.free_rules())))
    }

    /// A start of free text, which ends where a call begins.
    fn free_start(&self, inner: &str, calls: &str, repeats: bool, is_special: bool) -> String {
        match (self.may_be_bare, is_special, repeats) {
            (true, ..) => format!("WORDS? | {calls}"),
            (false, true, _) => format!("TEXT? ({calls})?"),
            (false, false, true) => format!("(head {inner})* TAIL?"),
            (false, false, false) => format!("TAIL? | head {inner}"),
        }
    }

    fn free_rules(&self) -> String {
        let opening = escaped(self.opening);
        format!(
            "TEXT: /(?s:.+)/\nWORDS: /[^{{ \\n](?s:.*)/\nhead[lazy]: /(?s:.*){opening}/\n\
             TAIL: /(?s:.+)/ & ~/(?s:.*){opening}(?s:.*)/\n"
        )
    }

    /// True if a text may hold a whole call, so that it is worth reading.
    pub(super) fn may_be_whole(&self, text: &str) -> bool {
        match self.closing {
            "" => text.contains('}'),
            closing => text.contains(closing),
        }
    }

    /// The calls at the beginning of what follows an opening, once they are whole, and the bytes that they take.
    ///
    /// # Errors
    /// [`Error::UnexpectedOutput`] for what can become no call.
    pub(super) fn read(&self, text: &str, tools: &[Tool]) -> Result<Option<(Vec<ToolCall>, usize)>> {
        let body = text.trim_start();
        let skipped = text.len() - body.len();
        let (values, taken) = match self.form {
            Form::Object(word) => {
                let Some((value, taken)) = json_at_start(body)? else { return Ok(None) };
                (vec![call_of(value, word)?], taken)
            }
            Form::Array(word) => {
                let Some((value, taken)) = json_at_start(body)? else { return Ok(None) };
                let Value::Array(values) = value else { return Err(no_call("it is no array")) };
                (values.into_iter().map(|value| call_of(value, word)).collect::<Result<_>>()?, taken)
            }
            Form::Named(between) => {
                let Some((name, rest)) = body.split_once(between) else { return Ok(None) };
                let Some((arguments, taken)) = json_at_start(rest)? else { return Ok(None) };
                (vec![ToolCall::new(name.trim(), arguments)], name.len() + between.len() + taken)
            }
            Form::Tags => match read_function(body, tools) {
                Ok((call, rest)) => (vec![call], body.len() - rest.len()),
                Err(Unread::More) => return Ok(None),
                Err(Unread::Wrong(reason)) => return Err(no_call(reason)),
            },
            Form::Braces(quote) => match read_braced(body, quote) {
                Ok((call, rest)) => (vec![call], body.len() - rest.len()),
                Err(Unread::More) => return Ok(None),
                Err(Unread::Wrong(reason)) => return Err(no_call(reason)),
            },
        };
        let mut taken = skipped + taken;
        if !self.closing.is_empty() {
            let rest = text.get(taken..).unwrap_or_default();
            let after = rest.trim_start();
            match after.strip_prefix(self.closing) {
                Some(after) => taken = text.len() - after.len(),
                None if self.closing.starts_with(after) => return Ok(None),
                None => return Err(no_call("its end is missing")),
            }
        }
        Ok(Some((values, taken)))
    }
}

/// A call in tags, and the text behind it.
fn read_function<'a>(text: &'a str, tools: &[Tool]) -> std::result::Result<(ToolCall, &'a str), Unread> {
    let [before, _, end] = TAGS;
    let Some(rest) = text.strip_prefix(before) else {
        return Err(if before.starts_with(text) {
            Unread::More
        } else {
            Unread::Wrong("it names no function")
        });
    };
    let (name, rest) = rest.split_once('>').ok_or(Unread::More)?;
    let tool = tools.iter().find(|tool| tool.name == name);
    let (arguments, rest) = read_tags(rest, end, tool)?;
    Ok((ToolCall::new(name, arguments), rest))
}

/// A call in braces, and the text behind it.
fn read_braced<'a>(text: &'a str, quote: &str) -> std::result::Result<(ToolCall, &'a str), Unread> {
    let Some(rest) = text.strip_prefix(BRACES) else {
        return Err(if BRACES.starts_with(text) {
            Unread::More
        } else {
            Unread::Wrong("it names no function")
        });
    };
    let at = rest.find('{').ok_or(Unread::More)?;
    let (name, arguments) = rest.split_at(at);
    let (arguments, rest) = read_braces(arguments, quote, 0)?;
    Ok((ToolCall::new(name.trim(), arguments), rest))
}

/// A tool's schema of arguments, which are an object, as it stands in a grammar.
fn arguments_of(tool: &Tool) -> Value {
    let mut schema = tool.parameters.as_object().cloned().unwrap_or_default();
    schema.entry("type").or_insert_with(|| "object".into());
    compiled_schema(&Value::Object(schema))
}

/// The first JSON value of a text and its bytes, once it is whole.
fn json_at_start(text: &str) -> Result<Option<(Value, usize)>> {
    let mut values = Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some((value, values.byte_offset()))),
        Some(Err(error)) if error.is_eof() => Ok(None),
        Some(Err(error)) => Err(no_call(&error.to_string())),
    }
}

fn call_of(value: Value, word: &str) -> Result<ToolCall> {
    let Value::Object(mut entries) = value else { return Err(no_call("it is no object")) };
    match (entries.remove("name"), entries.remove(word)) {
        (Some(Value::String(name)), Some(arguments)) => Ok(ToolCall::new(name, arguments)),
        (Some(Value::String(name)), None) => Ok(ToolCall::new(name, json!({}))),
        _ => Err(no_call("it has no name")),
    }
}

fn no_call(reason: &str) -> Error {
    Error::UnexpectedOutput { reason: format!("the model's call of a tool cannot be read: {reason}") }
}

#[cfg(test)]
#[path = "calls_sample.rs"]
pub(super) mod sample;
#[cfg(all(test, feature = "structured"))]
#[path = "calls_tests.rs"]
mod tests;
