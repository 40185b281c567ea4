//! The grammar of each format that writes arguments without JSON, and of Llama 4: what keeps to a tool's schema is let
//! through byte by byte and may end there; anything else is barred on its way.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};

use super::sample::ticket;
use super::*;

const QWEN_CODER: &str = "tools <tool_call>\n<function=x>\n<parameter=y> arguments </tool_call>";
const LLAMA_4: &str = "tools tool_calls '\"parameters\": ' <|python_start|>";
/// Templates of Gemma's two formats, with their marks: before a call, around a text, after a call.
const GEMMA: [(&str, [&str; 3]); 2] = [
    (
        "<start_function_call>call:x{y:<escape>z<escape>}<end_function_call>",
        ["<start_function_call>", "<escape>", "<end_function_call>"],
    ),
    ("<|tool_call>call:x{y:<|\"|>z<|\"|>}<tool_call|>", ["<|tool_call>", "<|\"|>", "<tool_call|>"]),
];

/// A tool with arguments of each kind, and one without any.
fn tools() -> [Tool; 2] {
    [ticket(), Tool::new("hour")]
}

/// True for a text that the grammar lets through, and that may end there.
fn keeps_to(template: &str, choice: &ToolChoice, text: &str) -> bool {
    let format = CallFormat::of_template(template).unwrap();
    let Constraint::Lark(grammar) = format.grammar(&tools(), choice, true, |_| None).unwrap() else {
        panic!("a grammar is in Lark")
    };
    let bytes = ApproximateTokEnv::single_byte_env();
    let factory = ParserFactory::new_simple(&bytes).unwrap();
    let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar.clone())));
    assert_eq!(matcher.get_error(), None, "{grammar}");
    let taken = text.bytes().all(|byte| {
        let byte = u32::from(byte);
        matcher.compute_mask().unwrap().is_allowed(byte) && matcher.consume_token(byte).is_ok()
    });
    taken && matcher.is_accepting().unwrap()
}

fn required(template: &str, text: &str) -> bool {
    keeps_to(template, &ToolChoice::Required, text)
}

#[test]
fn arguments_in_tags_keep_to_their_schemas() {
    let call = |name: &str, arguments: &[(&str, &str)]| {
        let tag = |(key, value): &(&str, &str)| format!("<parameter={key}>\n{value}\n</parameter>\n");
        let arguments: String = arguments.iter().map(tag).collect();
        format!("<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>")
    };
    let (stops, to) = (("stops", "[\"Thun\", \"Spiez\"]"), ("to", ""));
    let least = call("ticket", &[stops, to]);
    let all = [
        ("class", "first"),
        ("count", "2"),
        ("note", "null"),
        ("seat", "{\"row\": 3.5, \"side\": \"left\"}"),
        stops,
        ("to", "Bern <b>\n7"),
        ("window", "false"),
    ];
    let whole = format!("{least}\n{}", call("ticket", &all));
    for good in [least.clone(), whole, call("hour", &[])] {
        assert!(required(QWEN_CODER, &good), "{good}");
    }
    assert!(keeps_to(QWEN_CODER, &ToolChoice::Auto, &format!("I look.\n{least}")));
    let bad = [
        call("ticket", &[to]),
        call("ticket", &[("class", "third"), stops, to]),
        call("ticket", &[("count", "12"), stops, to]),
        call("ticket", &[("other", "12"), stops, to]),
        call("train", &[]),
        format!("I look. {least}"),
    ];
    for bad in bad {
        assert!(!required(QWEN_CODER, &bad), "{bad}");
    }
    assert!(!keeps_to(QWEN_CODER, &ToolChoice::Named("hour".to_owned()), &least));
}

#[test]
fn arguments_in_braces_keep_to_their_schemas() {
    let cases = [
        (
            "class:'second',count:2,note:null,seat:{row:3.5,side:'l, {r}'},stops:['a','b'],to:'<b>',window:false",
            true,
        ),
        ("stops:['a'],to:''", true),
        ("stops:['a','b','c'],to:''", true),
        ("class:'first',stops:['a'],to:'',window:null", true),
        ("seat:{row:1},stops:['a'],to:''", true),
        ("to:''", false),
        ("stops:[],to:''", false),
        ("stops:['a','b','c','d'],to:''", false),
        ("class:'third',stops:['a'],to:''", false),
        ("count:0,stops:['a'],to:''", false),
        ("seat:{side:'x'},stops:['a'],to:''", false),
        ("stops:['a'],to:'',window:maybe", false),
        (",stops:['a'],to:''", false),
    ];
    for (template, [opening, quote, closing]) in GEMMA {
        for (arguments, is_good) in cases {
            let text = format!("{opening}call:ticket{{{}}}{closing}", arguments.replace('\'', quote));
            assert_eq!(required(template, &text), is_good, "{text}");
        }
        let none = format!("{opening}call:hour{{}}{closing}");
        assert!(required(template, &none.repeat(2)));
        assert!(keeps_to(template, &ToolChoice::Auto, &format!("I look.\n{none}")));
        assert!(keeps_to(template, &ToolChoice::Auto, "It is {late: 1}."));
        assert!(!keeps_to(template, &ToolChoice::Named("ticket".to_owned()), &none));
    }
}

#[test]
fn a_call_of_llama_4_may_have_its_mark() {
    for mark in ["", "<|python_start|>"] {
        assert!(required(LLAMA_4, &format!("{mark}{{\"name\": \"hour\", \"parameters\": {{}}}}")), "{mark}");
    }
    assert!(!required(LLAMA_4, "[hour()]"));
}
