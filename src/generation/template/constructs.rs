//! The constructs of published templates, and single expressions, against what transformers' own function renders of them:
//! `tests/references/chat_constructs.py` writes both down.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use super::*;

#[derive(Deserialize)]
struct Recorded {
    conversations: BTreeMap<String, Conversation>,
    templates: Vec<Recording>,
    expressions: Vec<Expression>,
}

/// Its values keep the order of their keys, which templates write.
#[derive(Deserialize)]
struct Conversation {
    messages: Value,
    #[serde(default = "none")]
    tools: Value,
}

#[derive(Deserialize)]
struct Recording {
    name: String,
    template: String,
    /// By conversation; nothing where Jinja refuses it.
    texts: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
struct Expression {
    template: String,
    text: Option<String>,
}

fn none() -> Value {
    Value::from(())
}

fn recorded() -> Recorded {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/chat_constructs.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn render(template: &str, conversation: &Conversation) -> Result<String> {
    let tokens = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        unk: Some("<unk>".into()),
        ..SpecialTokens::default()
    };
    let template = ChatTemplate::new(template, tokens, Path::new("chat_template.jinja"))?;
    let values = context! {
        messages => conversation.messages.clone(),
        tools => conversation.tools.clone(),
        documents => (),
        add_generation_prompt => true,
        ..template.special_tokens()
    };
    template.render_values(values)
}

/// Describes the fault of a text, if it has one: where Jinja refuses, so must this.
fn fault(rendered: Result<String>, expected: Option<&String>) -> Option<String> {
    match (rendered, expected) {
        (Ok(text), Some(expected)) if text == *expected => None,
        (Err(Error::InvalidInput(_) | Error::InvalidConfig { .. }), None) => None,
        (rendered, expected) => Some(format!("{rendered:?}\n   right is {expected:?}")),
    }
}

#[test]
fn templates_of_published_models_are_rendered_as_by_transformers() {
    let Recorded { conversations, templates, .. } = recorded();
    assert!(templates.len() >= 60 && conversations.len() == 6);
    let mut faults = Vec::new();
    for Recording { name, template, texts } in &templates {
        for (key, conversation) in &conversations {
            let expected = texts.get(key).unwrap().as_ref();
            let fault = fault(render(template, conversation), expected);
            faults.extend(fault.map(|fault| format!("{name}, {key}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{} texts differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn expressions_are_those_of_python() {
    let Recorded { conversations, expressions, .. } = recorded();
    let conversation = conversations.get("tool calls").unwrap();
    assert!(expressions.len() > 400);
    let mut faults = Vec::new();
    for Expression { template, text } in &expressions {
        let fault = fault(render(template, conversation), text.as_ref());
        faults.extend(fault.map(|fault| format!("{template}: {fault}")));
    }
    assert!(faults.is_empty(), "{} texts differ:\n{}", faults.len(), faults.join("\n"));
}
