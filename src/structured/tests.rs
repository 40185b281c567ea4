//! Constraints with vocabularies of a few words, which come to dead ends, and of many, for what a token costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::*;

/// A vocabulary of these words.
fn tokens(words: impl IntoIterator<Item = String>) -> Tokens {
    let words: Map<String, Value> =
        words.into_iter().zip(0..).map(|(word, id): (String, u32)| (word, id.into())).collect();
    let unknown = words.keys().next().cloned().unwrap();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": unknown},
    });
    Tokens::whole(Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap()).unwrap()
}

fn regex(expression: &str) -> Constraint {
    Constraint::Regex(expression.to_owned())
}

/// The tokens that a text may go on with.
fn left(grammar: &mut Grammar, rows: usize, ends: &[u32], bars_ends: bool) -> Result<Vec<u32>> {
    let mut logits = vec![0.0; rows];
    grammar.bar(&mut logits, ends, bars_ends)?;
    Ok((0..).zip(logits).filter(|(_, logit)| *logit == 0.0).map(|(token, _)| token).collect())
}

#[test]
fn a_dead_end_is_an_error_of_its_text_and_another_text_begins_anew() {
    let grammars = Grammars::new(&tokens(["a", "b", "end"].map(str::to_owned)), &[2], 5);
    for _ in 0..2 {
        let mut grammar = grammars.begin(&regex("a?bc")).unwrap();
        assert_eq!(left(&mut grammar, 5, &[2], false).unwrap(), [0, 1]);
        assert_eq!(grammar.take(1).unwrap(), Progress::More);
        let error = left(&mut grammar, 5, &[2], false).unwrap_err();
        assert!(matches!(error, Error::ConstraintFailed { tokens: 1, .. }), "{error}");
        assert!(grammar.take(0).is_err(), "what may not be chosen is refused too");
    }
    let error = grammars.begin(&regex("c")).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::InvalidConstraint { .. }), "{error}");
}

#[test]
fn an_end_is_left_only_where_the_text_is_whole() {
    let grammars = Grammars::new(&tokens(["a", "b", "end"].map(str::to_owned)), &[2], 3);
    let mut grammar = grammars.begin(&regex("ab?")).unwrap();
    // The second end stands for a letter too, and is none of it.
    assert_eq!(left(&mut grammar, 3, &[2, 1], false).unwrap(), [0]);
    assert_eq!(grammar.take(0).unwrap(), Progress::More);
    assert_eq!(left(&mut grammar, 3, &[2], false).unwrap(), [1, 2]);
    assert_eq!(left(&mut grammar, 3, &[2], true).unwrap(), [1]);
    assert_eq!(left(&mut grammar, 3, &[2, 1], true).unwrap(), [1, 2], "nothing else is left");
    assert_eq!(grammar.take(1).unwrap(), Progress::Complete);
}

/// `cargo test --lib structured -- --ignored --nocapture`, best with `--release`.
#[test]
#[ignore = "measures"]
fn cost_of_a_token_of_a_large_vocabulary() {
    const ROWS: usize = 131_072;
    let mut random = fastrand::Rng::with_seed(3);
    let letters = (32..127u8).map(|letter| char::from(letter).to_string());
    let mut words: Vec<String> = letters.chain(["\n".to_owned(), "end".to_owned()]).collect();
    let mut seen: std::collections::HashSet<String> = words.iter().cloned().collect();
    while words.len() < ROWS {
        let space = if random.bool() { " " } else { "" };
        let length = random.usize(2..10);
        let word = format!("{space}{}", (0..length).map(|_| random.lowercase()).collect::<String>());
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    let tokens = tokens(words);
    let memory = || memory_stats::memory_stats().unwrap().physical_mem;
    let (before, began) = (memory(), Instant::now());
    let grammars = Grammars::new(&tokens, &[96], ROWS);
    grammars.begin(&regex("a")).unwrap();
    let bytes = memory().saturating_sub(before);
    println!("trie of {ROWS} tokens: {:.0?}, {bytes} bytes, {} a token", began.elapsed(), bytes / ROWS);
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 5},
        "kind": {"enum": ["person", "place", "thing"]}, "at": {"type": "string", "format": "date-time"}
    }, "required": ["name", "age", "tags", "kind", "at"], "additionalProperties": false});
    for (name, constraint) in
        [("schema", Constraint::json_schema(&schema)), ("object", Constraint::json_object())]
    {
        let began = Instant::now();
        drop(grammars.begin(&constraint).unwrap());
        let (first, mut steps, mut longest, mut spent) =
            (began.elapsed(), 0u32, Duration::ZERO, Duration::ZERO);
        for _ in 0..20 {
            let mut grammar = grammars.begin(&constraint).unwrap();
            for _ in 0..100 {
                let mut logits: Vec<f32> = (0..ROWS).map(|_| random.f32()).collect();
                let began = Instant::now();
                grammar.bar(&mut logits, &[96], false).unwrap();
                let chosen = Instant::now();
                let token = (0..)
                    .zip(&logits)
                    .max_by(|one, other| one.1.total_cmp(other.1))
                    .map(|(token, _)| token)
                    .unwrap();
                let took = chosen - began;
                (steps, spent, longest) = (steps + 1, spent + took, longest.max(took));
                if token == 96 || grammar.take(token).unwrap() == Progress::Complete {
                    break;
                }
            }
        }
        println!(
            "{name}: compiled in {first:.1?}; {steps} tokens, {:.1?} each, {longest:.1?} at most",
            spent / steps
        );
    }
}
