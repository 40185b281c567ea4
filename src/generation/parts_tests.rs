//! Answers in each format of calls, cut into pieces at every place.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use model_actors::{Tool, ToolChoice};
use serde_json::json;

use super::*;

const HERMES: &str = "tools <tool_call>\n{\"name\": x, \"arguments\": y}\n</tool_call> <think> </think>";
const LLAMA: &str = "tools tool_calls '\"parameters\": '";
const MISTRAL: &str = "tools [TOOL_CALLS]";
const MISTRAL_11: &str = "tools [TOOL_CALLS] [ARGS] [THINK] [/THINK]";

/// All parts of a text that comes in pieces of so many letters.
fn parts(template: &str, prompt_end: &str, text: &str, letters: usize) -> Result<Piece> {
    let mut parts = Parts::new(PartMarks::of_template(template), prompt_end);
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
    assert_eq!(format(&format!("{HERMES} <function=name>")), None, "calls without JSON");
    assert_eq!(
        (format(LLAMA), format(MISTRAL), format("tools")),
        (Some("<|python_tag|>"), Some("[TOOL_CALLS]"), None)
    );
}

#[cfg(feature = "structured")]
#[tokio::test]
async fn the_grammar_of_each_format_compiles_for_each_choice() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = [Tool::new("weather").with_parameters(schema), Tool::new("hour")];
    let check = crate::structured::ConstraintCheck::default();
    for template in [HERMES, LLAMA, MISTRAL, MISTRAL_11] {
        let format = PartMarks::of_template(template).calls().unwrap();
        for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("hour".into())] {
            for (parallel, special) in [(true, None), (false, Some(7)), (true, Some(7)), (false, None)] {
                let grammar = format.grammar(&tools, &choice, parallel, |_| special);
                let checked = check.check(Some(&grammar)).await;
                assert!(checked.is_ok(), "{checked:?}\n{}", grammar.text());
            }
        }
    }
}
