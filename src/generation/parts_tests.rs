//! Answers in each format of calls, cut into pieces at every place.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use model_actors::{Tool, ToolChoice};
use serde_json::json;

use super::*;

const HERMES: &str = "tools <tool_call>\n{\"name\": x, \"arguments\": y}\n</tool_call> <think> </think>";
const LLAMA: &str = "tools tool_calls '\"parameters\": '";
const MISTRAL: &str = "tools [TOOL_CALLS]";
const MISTRAL_11: &str = "tools [TOOL_CALLS] [ARGS] [THINK] [/THINK]";
const LLAMA_4: &str = "tools tool_calls '\"parameters\": ' <|python_start|>";
const QWEN_CODER: &str = "tools <tool_call>\n<function=x>\n<parameter=y> arguments </tool_call>";
const FUNCTION_GEMMA: &str = "tools <start_function_call>call:x{y:<escape>z<escape>}<end_function_call>";
const GEMMA_4: &str = "tools <|tool_call>call:x{y:<|\"|>z<|\"|>}<tool_call|>";

/// The call that the tests below make.
fn to_bern() -> ToolCall {
    ToolCall::new(
        "ticket",
        json!({
            "class": "first", "count": 2, "note": null, "seat": { "row": 3.5, "side": "left, {or} right" },
            "stops": ["Thun", "Spiez: \"lake\""], "to": "Bern <b>\n7", "window": false,
        }),
    )
}

/// All parts of a text that comes in pieces of so many letters.
fn parts(template: &str, prompt_end: &str, text: &str, letters: usize) -> Result<Piece> {
    let mut parts = Parts::new(PartMarks::of_template(template), prompt_end).calling(&[ticket()]);
    let (mut whole, all) = (Piece::default(), text.chars().collect::<Vec<char>>());
    for piece in all.chunks(letters) {
        whole = whole.and(parts.push(&piece.iter().collect::<String>())?);
    }
    let rest = parts.flush(FinishReason::Stop)?;
    Ok(whole.and(rest))
}

/// The same parts, however the text is cut.
fn all_parts(template: &str, prompt_end: &str, text: &str) -> Piece {
    let whole = parts(template, prompt_end, text, usize::MAX).unwrap();
    for letters in 1..text.len() {
        assert_eq!(parts(template, prompt_end, text, letters).unwrap(), whole, "{letters} letters of {text}");
    }
    whole
}

fn piece(reasoning: &str, text: &str, calls: Vec<ToolCall>) -> Piece {
    Piece { text: text.to_owned(), reasoning: reasoning.to_owned(), calls }
}

fn call(city: &str) -> ToolCall {
    ToolCall::new("weather", json!({ "city": city }))
}

#[test]
fn each_format_is_read_whatever_the_pieces() {
    let one =
        |open: &str| format!("{open}{{\"name\": \"weather\", \"arguments\": {{\"city\": \"Oslo }}]\"}}}}");
    let oslo = || call("Oslo }]");
    let hermes = format!("{}\n</tool_call>\n{}</tool_call>\n", one("<tool_call>\n"), one("<tool_call>"));
    assert_eq!(all_parts(HERMES, "", &hermes), piece("", "", vec![oslo(), oslo()]));
    assert_eq!(
        all_parts(HERMES, "", &format!("I look.\n{hermes}")),
        piece("", "I look.", vec![oslo(), oslo()])
    );
    let llama = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}";
    assert_eq!(all_parts(LLAMA, "", llama), piece("", "", vec![call("Oslo")]));
    assert_eq!(all_parts(LLAMA, "", &format!("<|python_tag|>{llama}")), piece("", "", vec![call("Oslo")]));
    assert_eq!(all_parts(LLAMA, "", "It { rains }."), piece("", "It { rains }.", vec![]));
    let mistral = format!("[TOOL_CALLS][{}, {}]", one(""), one(""));
    assert_eq!(all_parts(MISTRAL, "", &mistral), piece("", "", vec![oslo(), oslo()]));
    let newer = "[TOOL_CALLS]weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]weather[ARGS]{\"city\": \"Bonn\"}";
    assert_eq!(all_parts(MISTRAL_11, "", newer), piece("", "", vec![call("Oslo"), call("Bonn")]));
}

#[test]
fn calls_without_json_have_the_types_of_their_schemas() {
    let tags = "<tool_call>\n<function=ticket>\n<parameter=class>\nfirst\n</parameter>\n<parameter=count>\n2\n</parameter>\n\
        <parameter=note>\nnull\n</parameter>\n<parameter=seat>\n{\"row\": 3.5, \"side\": \"left, {or} right\"}\n</parameter>\n\
        <parameter=stops>\n[\"Thun\", \"Spiez: \\\"lake\\\"\"]\n</parameter>\n<parameter=to>\nBern <b>\n7\n</parameter>\n\
        <parameter=window>\nfalse\n</parameter>\n</function>\n</tool_call>";
    assert_eq!(all_parts(QWEN_CODER, "", tags), piece("", "", vec![to_bern()]));
    let braces = |open: &str, quote: &str, close: &str| {
        let call = "call:ticket{class:'first',count:2,note:null,seat:{row:3.5,side:'left, {or} right'},\
            stops:['Thun', 'Spiez: \"lake\"'],to:'Bern <b>\n7',window:false}";
        format!("{open}{}{close}", call.replace('\'', quote))
    };
    let function_gemma = braces("<start_function_call>", "<escape>", "<end_function_call>");
    assert_eq!(all_parts(FUNCTION_GEMMA, "", &function_gemma), piece("", "", vec![to_bern()]));
    let gemma_4 = braces("<|tool_call>", "<|\"|>", "<tool_call|>");
    let twice = format!("I look.\n{gemma_4}{gemma_4}");
    assert_eq!(all_parts(GEMMA_4, "", &twice), piece("", "I look.", vec![to_bern(), to_bern()]));
    let llama_4 = "<|python_start|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}";
    assert_eq!(all_parts(LLAMA_4, "", llama_4), piece("", "", vec![call("Oslo")]));

    // A text that looks like a number stays one; a tool that is not known has texts alone; no argument is none.
    let one = |name: &str, key: &str, value: &str| {
        let argument = format!("<parameter={key}>\n{value}\n</parameter>\n");
        let text = format!("<tool_call>\n<function={name}>\n{argument}</function>\n</tool_call>");
        parts(QWEN_CODER, "", &text, 7).map(|piece| piece.calls)
    };
    let called =
        |name: &str, key: &str, value: serde_json::Value| vec![ToolCall::new(name, json!({ key: value }))];
    assert_eq!(one("ticket", "to", "42").unwrap(), called("ticket", "to", json!("42")));
    assert_eq!(one("ticket", "to", "").unwrap(), called("ticket", "to", json!("")));
    assert_eq!(one("ticket", "note", "\"null\"").unwrap(), called("ticket", "note", json!("\"null\"")));
    assert_eq!(one("other", "to", "42").unwrap(), called("other", "to", json!("42")));
    let none = all_parts(FUNCTION_GEMMA, "", "<start_function_call>call:hour{}<end_function_call>");
    assert_eq!(none, piece("", "", vec![ToolCall::new("hour", json!({}))]));
    assert!(one("ticket", "count", "two").is_err());
    for text in
        ["call:hour", "hour{}", "call:hour{a:b}", "call:hour{a 1}", "call:hour{a:1 b:2}", "call:hour{}{}"]
    {
        let text = format!("<start_function_call>{text}<end_function_call>");
        assert!(matches!(parts(FUNCTION_GEMMA, "", &text, 3), Err(Error::UnexpectedOutput { .. })), "{text}");
    }
    let deep = format!("<start_function_call>call:hour{}1<end_function_call>", "{a:".repeat(100));
    assert!(parts(FUNCTION_GEMMA, "", &deep, 50).is_err());
}

#[test]
fn what_a_model_thinks_is_apart_whoever_begins_it() {
    let answer = piece("A greeting.", "Hi <b>there</b>.", vec![]);
    assert_eq!(all_parts(HERMES, "", "<think>\nA greeting.\n</think>\n\nHi <b>there</b>."), answer);
    assert_eq!(
        all_parts(HERMES, "assistant\n<think>\n", "A greeting.\n</think>\n\nHi <b>there</b>."),
        answer
    );
    assert_eq!(all_parts(MISTRAL_11, "", "[THINK]A greeting.[/THINK]Hi <b>there</b>."), answer);
    let thinks_and_calls = "<think>\n</think>\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    assert_eq!(all_parts(HERMES, "", thinks_and_calls), piece("", "", vec![call("Oslo")]));
    // Only at the beginning, and only with a template that knows of it.
    assert_eq!(
        all_parts(HERMES, "", " The mark <think> is one."),
        piece("", " The mark <think> is one.", vec![])
    );
    assert_eq!(
        all_parts("plain", "", "<think>a</think> <tool_call>"),
        piece("", "<think>a</think> <tool_call>", vec![])
    );
}

#[test]
fn what_is_no_call_is_an_error_and_one_that_is_cut_off_is_left_out() {
    for text in [
        "<tool_call>{\"no\": 1}</tool_call>",
        "<tool_call>{]}</tool_call>",
        "<tool_call>{\"name\": \"a\"} b</tool_call>",
        "<tool_call>{\"name\"",
    ] {
        assert!(matches!(parts(HERMES, "", text, 3), Err(Error::UnexpectedOutput { .. })), "{text}");
    }
    let mut cut = Parts::new(PartMarks::of_template(HERMES), "");
    assert_eq!(cut.push("So: <tool_call>{\"name\": \"wea").unwrap(), piece("", "So:", vec![]));
    assert_eq!(cut.flush(FinishReason::Length).unwrap(), Piece::default());
}

#[test]
fn templates_are_known_by_their_words() {
    let format = |template: &str| PartMarks::of_template(template).calls().map(|format| format.opening);
    assert_eq!(format(HERMES), Some("<tool_call>"));
    assert_eq!(format(&format!("{HERMES} <function=name>")), None, "calls in a way that is not known");
    assert_eq!((format(QWEN_CODER), format(LLAMA_4)), (Some("<tool_call>"), Some("<|python_start|>")));
    assert_eq!(
        (format(FUNCTION_GEMMA), format(GEMMA_4)),
        (Some("<start_function_call>"), Some("<|tool_call>"))
    );
    assert_eq!(
        (format(LLAMA), format(MISTRAL), format("tools")),
        (Some("<|python_tag|>"), Some("[TOOL_CALLS]"), None)
    );
}

#[cfg(feature = "structured")]
#[tokio::test]
async fn the_grammar_of_each_format_compiles_for_each_choice() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = [Tool::new("weather").with_parameters(schema), Tool::new("hour"), ticket()];
    let check = crate::structured::ConstraintCheck::default();
    for template in [HERMES, LLAMA, MISTRAL, MISTRAL_11, LLAMA_4, QWEN_CODER, FUNCTION_GEMMA, GEMMA_4] {
        let format = PartMarks::of_template(template).calls().unwrap();
        for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("hour".into())] {
            for (parallel, special) in [(true, None), (false, Some(7)), (true, Some(7)), (false, None)] {
                let grammar = format.grammar(&tools, &choice, parallel, |_| special).unwrap();
                let checked = check.check(Some(&grammar)).await;
                assert!(checked.is_ok(), "{checked:?}\n{}", grammar.text());
            }
        }
    }
}

#[test]
fn what_a_format_without_json_cannot_hold_is_refused_by_its_place() {
    let refused = [
        ("pattern", json!({ "type": "string", "pattern": "^a" })),
        ("maxLength", json!({ "anyOf": [{ "type": "string", "maxLength": 5 }, { "type": "null" }] })),
        ("$ref", json!({ "$ref": "#/$defs/Nothing" })),
    ];
    let only_in_braces = [
        ("uniqueItems", json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true })),
        ("items", json!({ "type": "array" })),
        ("any name", json!({ "type": "object", "additionalProperties": { "type": "string" } })),
        ("allOf", json!({ "allOf": [{ "type": "string" }, { "minLength": 1 }] })),
    ];
    for (words, schema) in refused.iter().chain(&only_in_braces) {
        for template in [QWEN_CODER, FUNCTION_GEMMA, GEMMA_4] {
            let is_json = template == QWEN_CODER && only_in_braces.iter().any(|(only, _)| only == words);
            let parameters = json!({ "type": "object", "properties": { "place": schema } });
            let tools = [Tool::new("weather").with_parameters(parameters)];
            let format = PartMarks::of_template(template).calls().unwrap();
            match format.grammar(&tools, &ToolChoice::Auto, true, |_| None) {
                Ok(_) => assert!(is_json, "{schema}"),
                Err(Error::InvalidInput(reason)) => {
                    assert!(!is_json && reason.contains("weather") && reason.contains("place"), "{reason}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
