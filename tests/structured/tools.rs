//! Tools through the actors: whatever a random model prefers, what it calls satisfies the schemas, in each format of calls.

use std::collections::BTreeMap;

use candle_actors::{
    Completion, Engine, Error, FinishReason, GenerateText, Message, Source, TextGenerator, Tool, ToolChoice,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{hot, regex, source};

/// A family: the words of its template, the mark that is its special token, and whether it writes arguments as JSON.
const FAMILIES: [(&str, &str, &str, Arguments); 8] = [
    ("Hermes", "<tool_call> {\"name\": x, \"arguments\": y} </tool_call>", "<tool_call>", Arguments::Json),
    ("Llama", "tool_calls \"parameters\": ", "<|python_tag|>", Arguments::Json),
    ("Mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", Arguments::Json),
    ("Mistral 11", "[TOOL_CALLS] [ARGS]", "[TOOL_CALLS]", Arguments::Json),
    ("Qwen3-Coder", "<tool_call> <function= <parameter=", "<tool_call>", Arguments::Plain),
    ("FunctionGemma", "<start_function_call> <escape>", "<start_function_call>", Arguments::Plain),
    ("Gemma 4", "<|tool_call> <tool_call|> <|\"|>", "<|tool_call>", Arguments::Plain),
    ("Llama 4", "tool_calls \"parameters\": <|python_start|>", "<|python_start|>", Arguments::Json),
];
/// Form of the arguments of calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arguments {
    Json,
    /// Texts as they are, which are held to no length.
    Plain,
}

/// Number of the special token in the fixture's vocabulary.
const MARK: u32 = 381;
const THINKS: &str = "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}";

/// The random model with a template of these words, which takes tools, and this special token.
async fn family(words: &str, mark: &str) -> (TempDir, Engine, TextGenerator) {
    let folder = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text_to_text/llama");
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(format!("{fixture}/{name}"), folder.path().join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text =
            std::fs::read_to_string(format!("{fixture}/{name}")).unwrap().replace("<|endoftext|>", mark);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let comment = format!("{{# {words} </think> #}}");
    let template = format!(
        "{comment}{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{{{{ m.tool_calls }}}}\n{{% endfor %}}{{{{ tools | length if tools else 0 }}}}{THINKS}"
    );
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let engine =
        Engine::builder().text_to_text("model", Source::directory(folder.path())).start().await.unwrap();
    let model = engine.text_to_text("model").unwrap();
    (folder, engine, model)
}

fn tools(arguments: Arguments) -> Vec<Tool> {
    let text = match arguments {
        Arguments::Json => json!({"type": "string", "maxLength": 6}),
        Arguments::Plain => json!({"type": "string", "enum": ["Oslo", "Rome", "La Paz"]}),
    };
    let city = json!({"type": "object", "properties": {
        "city": text, "days": {"type": "integer", "minimum": 1, "maximum": 7}
    }, "required": ["city", "days"], "additionalProperties": false});
    let unit = json!({"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": false});
    vec![
        Tool::new("weather").with_description("Weather").with_parameters(city),
        Tool::new("unit-of.it").with_parameters(unit),
    ]
}

fn asked(arguments: Arguments, seed: u64) -> GenerateText {
    GenerateText::chat([Message::user("Rain?")])
        .with_tools(tools(arguments))
        .with_sampling(hot(seed))
        .with_max_tokens(160)
}

/// Checks the calls of an answer, and gives their names.
fn names(arguments: Arguments, answer: &Completion) -> Vec<String> {
    let check = |call: &candle_actors::ToolCall| {
        let tool = tools(arguments).into_iter().find(|tool| tool.name == call.name).unwrap();
        assert!(jsonschema::is_valid(&tool.parameters, &call.arguments), "{call:?}");
        call.name.clone()
    };
    answer.tool_calls.iter().map(check).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_satisfy_their_schemas_in_each_format_and_by_each_choice() {
    for (name, words, mark, arguments) in FAMILIES {
        let asked = |seed| asked(arguments, seed);
        let names = |answer: &Completion| names(arguments, answer);
        let (_folder, engine, model) = family(words, mark).await;
        let (mut calls, mut several, mut free) = (0, 0, 0);
        for seed in 0..6 {
            let required = model.generate(asked(seed).with_tool_choice(ToolChoice::Required)).await.unwrap();
            several += usize::from(names(&required).len() > 1);
            let one = asked(seed)
                .with_parallel_tool_calls(false)
                .with_tool_choice(ToolChoice::Named("unit-of.it".into()));
            let one = model.generate(one).await.unwrap();
            assert_eq!(
                (names(&one), one.finish_reason),
                (vec!["unit-of.it".to_owned()], FinishReason::ToolCalls),
                "{one:?}"
            );
            for answer in [&required, &one] {
                assert!(answer.text.is_empty() && answer.reasoning.is_empty(), "{answer:?}");
                calls += answer.tool_calls.len();
            }
            // Left alone, it writes words; once it begins a call, that is one.
            let words = model.generate(asked(seed).with_max_tokens(20)).await.unwrap();
            free += usize::from(!words.text.is_empty());
            let sampling = hot(seed).with_logit_bias([(MARK, 100.0)].into());
            let begun = model
                .generate(asked(seed).with_parallel_tool_calls(false).with_sampling(sampling))
                .await
                .unwrap();
            assert_eq!(
                (names(&begun).len(), begun.finish_reason),
                (1, FinishReason::ToolCalls),
                "{name}: {begun:?}"
            );
            let none = model
                .generate(asked(seed).with_max_tokens(20).with_tool_choice(ToolChoice::None))
                .await
                .unwrap();
            assert!(none.tool_calls.is_empty() && none.finish_reason == FinishReason::Length);
        }
        println!("{name}: {calls} calls, {several} answers with several, {free} of 6 free ones with words");
        assert!(calls >= 10 && free > 0);
        let mut stream = model
            .stream(asked(3).with_parallel_tool_calls(false).with_tool_choice(ToolChoice::Required))
            .await
            .unwrap();
        let mut told = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.unwrap();
            assert!(chunk.text.is_empty());
            told.extend(chunk.tool_calls);
        }
        let whole = stream.output().await.unwrap();
        assert_eq!((told.len(), &told), (1, &whole.tool_calls));
        let again = GenerateText::chat([
            Message::user("Rain?"),
            Message::assistant("").with_tool_calls(told),
            Message::tool("None."),
        ]);
        assert!(model.generate(again.with_tools(tools(arguments)).with_max_tokens(5)).await.is_ok());
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_cannot_be_offered_are_refused_by_their_names() {
    let (_folder, engine, model) = family(FAMILIES[0].1, FAMILIES[0].2).await;
    let bad = Tool::new("bad").with_parameters(
        json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}),
    );
    let error = model.generate(asked(Arguments::Json, 1).with_tools(vec![bad])).await.unwrap_err();
    println!("{error}");
    assert!(
        matches!(&error, Error::InvalidConstraint { constraint, place, .. } if constraint.ends_with("tool bad") && place == "/properties/a"),
        "{error}"
    );
    assert!(engine.shutdown().await.is_clean());
    for (words, reason) in [("{{ tools }}", "not known"), ("", "takes no tools")] {
        let (_folder, engine, model) = match words {
            "" => {
                let engine =
                    Engine::builder().text_to_text("model", source(crate::TRAINED)).start().await.unwrap();
                let model = engine.text_to_text("model").unwrap();
                (tempfile::tempdir().unwrap(), engine, model)
            }
            words => family(words, "<|endoftext|>").await,
        };
        let error = model.generate(asked(Arguments::Json, 1)).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(words) if words.contains(reason)), "{error}");
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_thinks_is_apart_and_keeps_to_no_constraint() {
    let (_folder, engine, model) = family("", "</think>").await;
    let thinking = BTreeMap::from([("enable_thinking".to_owned(), Value::Bool(true))]);
    let chat = || GenerateText::chat([Message::user("Hm?")]).with_max_tokens(30);
    let digits = || chat().with_constraint(regex("[0-9]{2}")).with_template_arguments(thinking.clone());
    let open = model.generate(chat().with_template_arguments(thinking.clone())).await.unwrap();
    assert!(
        open.text.is_empty() && !open.reasoning.is_empty() && open.finish_reason == FinishReason::Length,
        "{open:?}"
    );
    let sampling = hot(1).with_logit_bias([(MARK, 8.0)].into());
    let mut thought = 0;
    for seed in 0..8 {
        let answer = model.generate(digits().with_sampling(sampling.clone().with_seed(seed))).await.unwrap();
        println!("{:?} then {:?}", answer.reasoning, answer.text);
        if answer.finish_reason == FinishReason::Stop {
            assert!(
                answer.text.len() == 2 && answer.text.bytes().all(|letter| letter.is_ascii_digit()),
                "{answer:?}"
            );
            thought += usize::from(!answer.reasoning.is_empty());
        }
    }
    assert!(thought > 0);
    let mut stream = model.stream(digits().with_sampling(sampling.with_seed(1))).await.unwrap();
    let (mut reasoning, mut text) = (String::new(), String::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        reasoning.push_str(&chunk.reasoning);
        text.push_str(&chunk.text);
    }
    let whole = stream.output().await.unwrap();
    assert_eq!((reasoning, text), (whole.reasoning, whole.text));
    let unlike = model.generate(chat().with_constraint(regex("[0-9]{2}"))).await.unwrap();
    assert_eq!((unlike.text.len(), unlike.reasoning.len()), (2, 0));
    assert!(engine.shutdown().await.is_clean());
}
