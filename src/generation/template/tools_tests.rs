//! Conversations with tools, calls, results and further arguments, against what transformers' own function renders of them:
//! `tests/references/chat_tools.py` writes it down.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use model_actors::ToolCall;
use serde_json::Value;

use super::*;

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "user" => Role::User,
        "tool" => Role::Tool,
        _ => Role::Assistant,
    };
    let call = |call: &Value| {
        ToolCall::new(text(&call["function"], "name"), call["function"]["arguments"].clone())
            .with_id(text(call, "id"))
    };
    Message::new(role, text(value, "content"))
        .with_tool_calls(list(value, "tool_calls").iter().map(call).collect())
        .with_tool_call_id(value["tool_call_id"].as_str().map(str::to_owned))
}

fn tool(value: &Value) -> Tool {
    let function = &value["function"];
    Tool::new(text(function, "name"))
        .with_description(text(function, "description"))
        .with_parameters(function["parameters"].clone())
}

#[test]
fn conversations_with_tools_are_rendered_as_by_transformers() {
    let (recorded, templates) = (read("chat_tools.json"), read("chat_constructs.json"));
    let special = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        unk: Some("<unk>".into()),
        ..SpecialTokens::default()
    };
    let (mut faults, mut same) = (Vec::new(), 0);
    for (name, texts) in recorded["texts"].as_object().unwrap() {
        let template =
            list(&templates, "templates").iter().find(|template| template["name"] == *name).unwrap();
        let template =
            ChatTemplate::new(&text(template, "template"), special.clone(), Path::new("a")).unwrap();
        for (key, case) in recorded["cases"].as_object().unwrap() {
            let messages: Vec<Message> = list(case, "messages").iter().map(message).collect();
            let tools: Vec<Tool> = list(case, "tools").iter().map(tool).collect();
            let arguments: BTreeMap<String, Value> = case
                .get("arguments")
                .map(|all| serde_json::from_value(all.clone()).unwrap())
                .unwrap_or_default();
            let chat = Conversation { messages: &messages, tools: &tools, arguments: Some(&arguments) };
            match (template.render(chat), texts[key].as_str()) {
                (Ok(found), Some(expected)) if found == expected => same += 1,
                (Err(_), None) => same += 1,
                (found, expected) => {
                    faults.push(format!("{name}, {key}: {found:?}\n   right is {expected:?}"))
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} texts differ:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(same, 44);
}

#[test]
fn arguments_take_the_place_of_no_value_of_the_conversation() {
    let template =
        ChatTemplate::new("{{ messages }}{{ a }}", SpecialTokens::default(), Path::new("a")).unwrap();
    let render = |name: &str| {
        let arguments = [(name.to_owned(), json!({"b": [1, null]}))].into();
        template.render(Conversation { arguments: Some(&arguments), ..Conversation::default() })
    };
    assert_eq!(render("a").unwrap(), "[]{'b': [1, None]}");
    assert!(render("messages").is_err() && render("tools").is_err());
}

#[test]
fn calls_and_results_are_numbered_where_a_template_asks_for_it() {
    let source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.id }} {% endfor %}{{ m.tool_call_id }}{% endfor %}";
    let template = ChatTemplate::new(source, SpecialTokens::default(), Path::new("a")).unwrap();
    let call = || ToolCall::new("hour", json!({}));
    let messages = [
        Message::assistant("").with_tool_calls(vec![call(), call().with_id("own")]),
        Message::tool("noon"),
        Message::tool("one").with_tool_call_id("own".to_owned()),
    ];
    assert_eq!(template.render(Conversation::of(&messages)).unwrap(), "call00001 own call00001own");
}
