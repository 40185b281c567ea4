//! Answers in the form that a client asks for: JSON by a schema, calls of tools, and what a model thinks apart.

use std::path::Path;

use candle_actors::Source;
use serde_json::{Value, json};

use crate::harness::{Running, engine, models};

const TEMPLATE: &str = "{# <tool_call> {\"name\": x, \"arguments\": y} </tool_call> <think> </think> {{ tools }} #}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }} {{ c.id }}{% endfor %}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

/// A server over the small chat model, whose template takes tools.
pub(crate) async fn callers() -> Running {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("caller");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(models().join("shapes-chat")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    let source = Source::directory(folder);
    Running::over(engine().text_to_text("chat", source).start().await.unwrap()).await
}

fn chat(fields: Value) -> Value {
    let mut request =
        json!({ "model": "chat", "messages": [{ "role": "user", "content": "What is red?" }], "seed": 1 });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

pub(crate) fn schema() -> Value {
    json!({
        "type": "object", "properties": { "colour": { "enum": ["red", "blue"] }, "sides": { "type": "integer", "minimum": 3, "maximum": 6 } },
        "required": ["colour", "sides"], "additionalProperties": false,
    })
}

/// Checks that a text is JSON of the schema.
pub(crate) fn check(text: &Value) {
    let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    assert!(["red", "blue"].contains(&value["colour"].as_str().unwrap()), "{value}");
    assert!(
        (3..=6).contains(&value["sides"].as_u64().unwrap()) && value.as_object().unwrap().len() == 2,
        "{value}"
    );
}

#[tokio::test]
async fn json_keeps_to_its_schema_calls_to_theirs_and_thoughts_are_apart() {
    let server = callers().await;
    let ask = async |fields: Value| server.client.post("/v1/chat/completions", &chat(fields)).await;
    let format = json!({ "type": "json_schema", "json_schema": { "name": "shape", "strict": true, "schema": schema() } });
    let answer = ask(json!({ "response_format": format, "n": 2 })).await.json().await;
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().for_each(|choice| check(&choice["message"]["content"]));
    assert!(choices.len() == 2 && choices[0]["finish_reason"] == "stop", "{answer}");
    let object =
        ask(json!({ "response_format": { "type": "json_object" }, "max_tokens": 8 })).await.json().await;
    assert!(object["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'), "{object}");

    let function = json!({ "name": "describe", "description": "Describes a shape", "parameters": schema(), "strict": true });
    let tools = json!([{ "type": "function", "function": function }]);
    let called = json!({ "tools": tools, "tool_choice": "required", "parallel_tool_calls": false });
    let answer = ask(called.clone()).await.json().await;
    let (choice, message) = (&answer["choices"][0], &answer["choices"][0]["message"]);
    assert!(choice["finish_reason"] == "tool_calls" && message["content"].is_null(), "{answer}");
    let call = &message["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("describe")));
    assert_eq!(call["id"].as_str().unwrap().len(), 9);
    check(&call["function"]["arguments"]);

    let mut streamed = called.clone();
    streamed["stream"] = true.into();
    let (events, done) = ask(streamed).await.events().await;
    let deltas: Vec<&Value> =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert!(done && deltas.len() == 1 && deltas[0]["index"] == 0, "{events:?}");
    check(&deltas[0]["function"]["arguments"]);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    // The call and its result go back, and the answer is in words.
    let result = json!({ "role": "tool", "tool_call_id": call["id"], "content": "A red one." });
    let again = json!([{ "role": "user", "content": "What is red?" }, message, result]);
    let again =
        ask(json!({ "messages": again, "tools": tools, "tool_choice": "none", "max_tokens": 3 })).await;
    assert_eq!(again.status, 200);

    let thinks = json!({ "chat_template_kwargs": { "enable_thinking": true }, "max_tokens": 5 });
    let message = &ask(thinks).await.json().await["choices"][0]["message"].clone();
    assert!(
        message["content"] == "" && !message["reasoning_content"].as_str().unwrap().is_empty(),
        "{message}"
    );

    for (field, fields) in [
        ("tool_choice", json!({ "tools": tools, "tool_choice": "sometimes" })),
        ("tools[0].function.name", json!({ "tools": [{ "type": "function", "function": {} }] })),
        ("response_format.type", json!({ "response_format": { "type": "yaml" } })),
        (
            "messages[0].tool_calls[0].function.arguments",
            json!({ "messages": [{ "role": "assistant", "tool_calls": [
            { "id": "a", "type": "function", "function": { "name": "describe", "arguments": "{" } }
        ] }] }),
        ),
    ] {
        let response = ask(fields).await;
        assert_eq!(response.status, 400, "{field}");
        assert_eq!(response.json().await["error"]["param"], field);
    }
    let unmet = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "integer", "minimum": 2, "maximum": 1 } } });
    assert_eq!(ask(json!({ "response_format": unmet })).await.status, 400);
    assert!(server.end().await.unwrap().is_clean());
}
