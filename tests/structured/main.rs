//! Structured output through the actors: texts keep to schemas, expressions and grammars whatever the model prefers, alone
//! and in a batch; what cannot be kept to is refused before it is queued, and what is hostile does no harm.
#![cfg(feature = "structured")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod schemas;
mod tools;

use std::path::Path;
use std::time::{Duration, Instant};

use candle_actors::{
    Completion, Constraint, DescribeImage, Engine, Error, ErrorKind, FinishReason, GenerateText, ImageSource,
    Message, PoolConfig, Sampling, Source, TextGenerator,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Schemas of one run of the suite; `STRUCTURED_SCHEMAS` asks for more.
const SCHEMAS: u64 = 60;
/// Texts that are written together.
const TOGETHER: u64 = 20;

fn source(path: &str) -> Source {
    Source::directory(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// One worker over a model, so that all texts meet in it.
async fn engine(path: &str) -> (Engine, TextGenerator) {
    let pool = PoolConfig::default().with_max_workers(1).with_cold_start_workers(1);
    let engine =
        Engine::builder().pool_config(pool).text_to_text("model", source(path)).start().await.unwrap();
    let model = engine.text_to_text("model").unwrap();
    (engine, model)
}

const RANDOM: &str = "tests/fixtures/text_to_text/llama";
const SENTENCE_PIECE: &str = "tests/fixtures/text_to_text/mistral";
const TRAINED: &str = "models/shapes-chat";

fn hot(seed: u64) -> Sampling {
    Sampling::default().with_temperature(1.5).with_seed(seed)
}

fn regex(expression: &str) -> Constraint {
    Constraint::Regex(expression.to_owned())
}

fn lark(grammar: &str) -> Constraint {
    Constraint::Lark(grammar.to_owned())
}

fn request(constraint: Constraint) -> GenerateText {
    GenerateText::from("The cat").with_constraint(constraint).with_max_tokens(120)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_ends_by_itself_satisfies_its_schema_at_any_temperature() {
    let asked = std::env::var("STRUCTURED_SCHEMAS").ok().map_or(SCHEMAS, |count| count.parse().unwrap());
    for (path, asked) in [(RANDOM, asked), (SENTENCE_PIECE, asked), (TRAINED, asked / 10)] {
        let (engine, model) = engine(path).await;
        let (mut ended, mut cut, mut refused, began) = (0, 0, Vec::new(), Instant::now());
        for first in (0..asked).step_by(TOGETHER as usize) {
            let texts = (first..asked.min(first + TOGETHER)).map(|seed| {
                let (model, schema) = (model.clone(), schemas::schema(seed));
                async move {
                    let request = request(Constraint::json_schema(&schema)).with_sampling(hot(seed));
                    (model.generate(request).await, schema)
                }
            });
            for (answer, schema) in join_all(texts).await {
                match answer {
                    Ok(Completion { text, finish_reason: FinishReason::Stop, .. }) => {
                        let value: Value =
                            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                        let validator =
                            jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
                        let errors: Vec<String> =
                            validator.iter_errors(&value).map(|error| error.to_string()).collect();
                        assert!(errors.is_empty(), "{errors:?}\n{text}\n{schema}");
                        ended += 1;
                    }
                    Ok(completion) => {
                        assert_eq!(
                            (completion.finish_reason, completion.usage.completion_tokens),
                            (FinishReason::Length, 120)
                        );
                        cut += 1;
                    }
                    Err(error) => refused.push((error, schema)),
                }
            }
        }
        let took = began.elapsed().as_secs_f64();
        println!(
            "{path}: of {asked} schemas {ended} texts ended and are valid, {cut} were cut off; {took:.1} s"
        );
        assert!(refused.is_empty(), "{refused:#?}");
        assert!(ended * 2 > asked, "{ended} of {asked}");
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_and_grammars_hold_with_every_setting_and_alone_as_in_company() {
    for path in [RANDOM, TRAINED, SENTENCE_PIECE] {
        let (engine, model) = engine(path).await;
        let cases = [
            (regex("[0-9]{3}-[0-9]{4}"), Sampling::default()),
            (regex("(yes|no|perhaps)"), hot(1)),
            (regex("ab{30}c"), Sampling::default().with_repetition_penalty(f32::MAX)),
            (regex("ab{30}c"), hot(2).with_frequency_penalty(2.0).with_presence_penalty(2.0).with_top_k(1)),
            (regex("[a-f]{8}"), hot(3).with_logit_bias((0..100).map(|token| (token, -100.0)).collect())),
            (regex("[äöü日🦀]{4}"), hot(4).with_top_p(0.1).with_min_p(0.5)),
            (lark("start: \"(\" inner \")\"\ninner: /[a-c]{2}/ | \"[\" inner \"]\""), hot(5)),
        ];
        let mut alone = Vec::new();
        for (constraint, sampling) in &cases {
            let answer =
                model.generate(request(constraint.clone()).with_sampling(sampling.clone())).await.unwrap();
            assert_eq!(answer.finish_reason, FinishReason::Stop, "{path}, {constraint:?}: {}", answer.text);
            alone.push(answer.text);
        }
        let calls = cases.iter().map(|(constraint, sampling)| {
            model.generate(request(constraint.clone()).with_sampling(sampling.clone()).with_logprobs(2))
        });
        for ((answer, alone), (constraint, _)) in join_all(calls).await.into_iter().zip(&alone).zip(&cases) {
            let answer = answer.unwrap();
            assert_eq!(&answer.text, alone, "{path}, {constraint:?}");
            assert_eq!(answer.logprobs.len(), answer.usage.completion_tokens);
        }
        println!("{path}: {alone:?}");
        let digits = |text: &str| text.chars().all(|letter| letter.is_ascii_digit());
        assert!(alone[0].len() == 8 && alone[0].split('-').all(digits), "{}", alone[0]);
        assert!(["yes", "no", "perhaps"].contains(&alone[1].as_str()), "{}", alone[1]);
        assert_eq!((&alone[2], &alone[3]), (&format!("a{}c", "b".repeat(30)), &alone[2].clone()));
        assert!(alone[4].len() == 8 && alone[4].chars().all(|letter| ('a'..='f').contains(&letter)));
        assert_eq!(alone[5].chars().count(), 4);
        assert!(alone[6].starts_with('(') && alone[6].ends_with(')'), "{}", alone[6]);
        assert!(engine.shutdown().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_of_texts_respect_the_constraint() {
    let (engine, model) = engine(TRAINED).await;
    let digits = || request(regex("[0-9]{2,9}"));
    // Nothing ends the text before it satisfies the expression, and its minimum holds as far as the expression goes on.
    let long = model.generate(digits().with_min_tokens(100).with_logprobs(0)).await.unwrap();
    assert_eq!((long.text.len(), long.finish_reason), (9, FinishReason::Stop), "{}", long.text);
    let first = long.logprobs[0].chosen.token;
    let stopped = model.generate(digits().with_stop_tokens(vec![first])).await.unwrap();
    assert!(
        (2..=9).contains(&stopped.text.len()) && !stopped.text.starts_with(&long.text[..1]),
        "{}",
        stopped.text
    );
    let cut = model.generate(request(regex("[a-c]{50}")).with_max_tokens(3)).await.unwrap();
    assert_eq!((cut.finish_reason, cut.usage.completion_tokens), (FinishReason::Length, 3));
    let string = model.generate(request(regex("ab{9}c")).with_stop(vec!["bbb".to_owned()])).await.unwrap();
    assert_eq!((string.text.as_str(), string.finish_reason), ("a", FinishReason::Stop));
    let mut stream = model.stream(request(regex("ab{9}c"))).await.unwrap();
    let mut pieces = String::new();
    while let Some(piece) = stream.next().await {
        pieces.push_str(&piece.unwrap().text);
    }
    assert_eq!(pieces, "abbbbbbbbbc");
    assert!(engine.shutdown().await.is_clean());
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[allow(dead_code, reason = "the values are random")]
struct Order {
    id: u32,
    customer: Customer,
    #[schemars(length(max = 3))]
    items: Vec<Item>,
    #[schemars(length(max = 12))]
    note: Option<String>,
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[allow(dead_code, reason = "the values are random")]
struct Customer {
    #[schemars(length(max = 8))]
    name: String,
}

/// Each has an entry of its own.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(dead_code, reason = "the values are random")]
enum Item {
    /// A book.
    Book { pages: u16 },
    /// A toy.
    Toy { colour: Colour },
}

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
enum Colour {
    Red,
    Green,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_goes_in_and_a_value_comes_out() {
    let (engine, model) = engine(RANDOM).await;
    let asked = |seed, tokens| GenerateText::from("Order:").with_sampling(hot(seed)).with_max_tokens(tokens);
    let mut values = Vec::new();
    for seed in 0..10 {
        match model.generate_as::<Order>(asked(seed, 400)).await {
            Ok(order) => values.push(order),
            Err(error) => assert!(matches!(error, Error::IncompleteOutput { tokens: 400 }), "{error}"),
        }
    }
    println!("{values:?}");
    assert!(values.len() > 5, "{}", values.len());
    let cut = model.generate_as::<Order>(asked(0, 5)).await.unwrap_err();
    assert_eq!(cut, Error::IncompleteOutput { tokens: 5 });
    assert_eq!(cut.kind(), ErrorKind::InvalidInput);
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_to_is_refused_by_its_place_before_any_model_is_loaded() {
    let (engine, model) = engine(RANDOM).await;
    let inner = |schema: Value| json!({"type": "object", "properties": {"list": {"type": "array", "items": {"anyOf": [{"type": "null"}, schema]}}}});
    let place = "/properties/list/items/anyOf/1";
    let schemas = [
        (inner(json!({"type": "string", "not": {"const": "a"}})), place),
        (inner(json!({"type": "array", "uniqueItems": true})), place),
        (inner(json!({"type": "string", "format": "no such"})), place),
        (inner(json!({"type": "string", "pattern": "(["})), place),
        (inner(json!({"$ref": "#/$defs/none"})), ""),
        (inner(json!({"$ref": "https://example.org/schema.json"})), ""),
        (json!({"type": "integer", "minimum": 5, "maximum": 3}), ""),
        (json!({"type": "object", "properties": {"a": false}, "required": ["a"]}), ""),
        (json!({"type": "string", "minLength": 5, "maxLength": 3}), ""),
        (json!(false), ""),
        (json!({"type": "no such"}), ""),
        (json!({"type": "object", "x-guidance": {"lenient": true}}), "/x-guidance"),
        (json!("text"), ""),
    ];
    let mut constraints: Vec<(Constraint, String)> = schemas
        .iter()
        .map(|(schema, place)| (Constraint::json_schema(schema), (*place).to_owned()))
        .collect();
    constraints.push((Constraint::json_schema("{\"type\":\n }"), "line 2, column 2".to_owned()));
    constraints.extend([regex("a("), regex("(?=a)b")].map(|one| (one, String::new())));
    let grammars = ["start: other", "nothing here", "start: \"a", "%json"];
    constraints.extend(grammars.map(|grammar| (lark(grammar), String::new())));
    for (constraint, expected) in constraints {
        let began = Instant::now();
        let error = model.generate(request(constraint.clone())).await.unwrap_err();
        let Error::InvalidConstraint { place, reason, .. } = &error else {
            panic!("{constraint:?}: {error}")
        };
        println!("{error}");
        assert!(place.starts_with(&expected), "{constraint:?}: {error}");
        assert!(!reason.is_empty() && !reason.contains("backtrace"), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(began.elapsed() < Duration::from_secs(20), "{constraint:?}");
        let streamed = model.stream(request(constraint)).await.map(drop).unwrap_err();
        assert_eq!(streamed, error);
    }
    assert!(engine.system().status().workers().next().is_none(), "nothing was loaded");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_constraints_end_in_time_and_harm_nobody() {
    let (engine, model) = engine(RANDOM).await;
    let nested =
        |open: &str, close: &str, depth: usize| format!("{}a{}", open.repeat(depth), close.repeat(depth));
    let hostile = [
        Constraint::json_schema(nested("{\"items\":", "}", 20_000).replace('a', "{}")),
        Constraint::json_schema(nested("{\"items\":", "}", 120).replace('a', "{}")),
        regex(&nested("(", ")", 100_000)),
        regex(&nested("(b", ")?", 60_000)),
        regex(&"a?".repeat(100_000)),
        regex("(a{1,1000}){1,1000}{1,1000}"),
        regex("(a|aa)*(a|aaa)*(.*x.{0,200}y)*"),
        lark(&format!("start: {}", nested("(", ")", 100_000).replace('a', "\"a\""))),
        lark("start: start | \"a\" start start"),
        lark("start: A*\nA: /a*/"),
        lark(&format!("start: {}", (0..20_000).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(" | "))),
    ];
    for constraint in hostile {
        let began = Instant::now();
        let outcome =
            model.generate(request(constraint.clone()).with_max_tokens(20).with_sampling(hot(1))).await;
        let (took, short) = (began.elapsed(), constraint.text().chars().take(40).collect::<String>());
        match outcome {
            Err(Error::ConstraintUnavailable { reason, .. }) => println!("{short}: {reason} in {took:.1?}"),
            Ok(answer) => println!("{short}: {:?} in {took:.1?}", answer.text),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                println!("{short}: {error} in {took:.1?}");
            }
        }
        assert!(took < Duration::from_secs(60), "{short}");
    }
    assert_eq!(model.generate(request(regex("abc"))).await.unwrap().text, "abc");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_an_image_keeps_to_its_constraint_too() {
    let engine = Engine::builder().vision("looks", source("models/shapes-vision")).start().await.unwrap();
    let image =
        ImageSource::Path(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shapes/held_out/000.png"));
    let question = DescribeImage::new(image).with_question("What colour is the triangle?");
    let colours = regex("The triangle is (green|red|blue|yellow)\\.");
    let looks = engine.vision("looks").unwrap();
    let answer = looks.describe(question.clone().with_constraint(colours)).await.unwrap();
    println!("{}", answer.text);
    assert_eq!((answer.text.as_str(), answer.finish_reason), ("The triangle is red.", FinishReason::Stop));
    let refused = looks.describe(question.with_constraint(regex("("))).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidConstraint { .. }), "{refused}");
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_answered_with_json() {
    let (engine, model) = engine(TRAINED).await;
    let question =
        "There is a small red circle left of a large blue square. What is left of the blue square?";
    let schema = json!({"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "shape": {"enum": ["circle", "square"]}}, "required": ["colour", "shape"], "additionalProperties": false});
    let chat =
        GenerateText::chat([Message::user(question)]).with_constraint(Constraint::json_schema(&schema));
    let answer = model.generate(chat).await.unwrap();
    println!("{}", answer.text);
    assert!(jsonschema::is_valid(&schema, &serde_json::from_str(&answer.text).unwrap()), "{}", answer.text);
    assert!(engine.shutdown().await.is_clean());
}
