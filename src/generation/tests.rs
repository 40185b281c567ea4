//! One text at a time with scripted logits: how it ends, and the log probabilities of its tokens.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::*;

/// Starts a text of a model with a vocabulary of two words and this decoder.
fn text_of(words: [&str; 2], decoder: &Value, end_tokens: &[u32]) -> Generation {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": {words[0]: 0, words[1]: 1}, "unk_token": words[0]},
    });
    let tokenizer = Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap();
    let tokens = Tokens::whole(tokenizer).unwrap();
    let greedy = TextSettings { max_tokens: 1 << 20, ..TextSettings::default() };
    Generation::new(&tokens, &greedy, &[], end_tokens).unwrap()
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

#[test]
fn a_text_that_becomes_too_long_ends_with_an_error() {
    // 256 KiB a token.
    let decoder = replace(&"b".repeat(1 << 10), &"c".repeat(16 << 10));
    let mut text = text_of(["a", &"b".repeat(16 << 10)], &decoder, &[]);
    let mut bytes = 0;
    let error = loop {
        match text.accept(&mut [0.0, 1.0]) {
            Ok(next) => bytes += next.chunk.map_or(0, |chunk| chunk.text.len()),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("16777216")), "{error}");
    assert_eq!(bytes, MAX_BYTES);
}

#[test]
fn tokens_that_cannot_be_written_end_a_text_with_an_error() {
    // A run of bytes is written at its end, and so many are too much by then.
    let sixteen = replace("a", &"a".repeat(16));
    let decoder = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, sixteen]});
    for end_tokens in [Vec::new(), vec![0]] {
        let mut text = text_of(["a", "<0x61>"], &decoder, &end_tokens);
        for _ in 0..150_000 {
            assert_eq!(text.accept(&mut [0.0, 1.0]).unwrap().chunk, None);
        }
        let error = text.accept(&mut [1.0, 0.0]).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("tokenizer")), "{error}");
    }
    // It panics on a token of fewer signs than it strips.
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 2});
    let error = text_of(["a", " "], &strip, &[]).accept(&mut [0.0, 1.0]).unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("tokenizer")), "{error}");
}

/// The tokenizer of a fixture, whose tokens are mostly letters.
fn tokens() -> Tokens {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Tokens::read_whole(root.join("tests/fixtures/text_to_text/llama/tokenizer.json")).unwrap()
}

/// Logits that prefer these tokens, the first most.
fn preferring(tokens: &Tokens, preferred: &[&str]) -> Vec<f32> {
    let mut logits = vec![0.0; 384];
    for (rank, token) in preferred.iter().enumerate() {
        logits[tokens.id(token).unwrap() as usize] = 50.0 - rank as f32;
    }
    logits
}

/// Writes with these preferences for each token until it ends: chunks and completion.
fn write(text: &mut Generation, steps: &[&[&str]]) -> (Vec<TextChunk>, Completion) {
    let (tokens, mut chunks) = (tokens(), Vec::new());
    for preferred in steps {
        let next = text.accept(&mut preferring(&tokens, preferred)).unwrap();
        chunks.extend(next.chunk);
        if let Some(completion) = next.finished {
            return (chunks, completion);
        }
    }
    panic!("it did not end: {chunks:?}")
}

const END: &str = "<|im_end|>";

#[test]
fn neither_ends_nor_stop_tokens_nor_stop_strings_end_a_text_before_its_minimum() {
    let tokens = tokens();
    let (end, stop_token) = (tokens.id(END).unwrap(), tokens.id("b").unwrap());
    let stop = ["cd".to_owned()];
    let with = |min_tokens| {
        let settings = TextSettings {
            stop: &stop,
            stop_tokens: &[stop_token],
            min_tokens,
            max_tokens: 6,
            ..TextSettings::default()
        };
        Generation::new(&tokens, &settings, &[], &[end]).unwrap()
    };
    let written = |min_tokens, steps: &[&[&str]]| {
        let completion = write(&mut with(min_tokens), steps).1;
        (completion.text, completion.finish_reason, completion.usage.completion_tokens)
    };
    let any: &[&str] = &[END, "b", "a"];
    assert_eq!(written(0, &[any]), (String::new(), FinishReason::Stop, 1));
    assert_eq!(written(3, &[any, any, any, any]), ("aaa".to_owned(), FinishReason::Stop, 4));
    assert_eq!(written(3, &[any, any, any, &["b"]]), ("aaa".to_owned(), FinishReason::Stop, 4));
    assert_eq!(written(6, &[any; 6]), ("aaaaaa".to_owned(), FinishReason::Length, 6));
    let string: &[&[&str]] = &[&["a"], &["c"], &["d"], &["c"], &["d"], &["a"]];
    assert_eq!(written(0, string), ("a".to_owned(), FinishReason::Stop, 3));
    assert_eq!(written(4, string), ("acd".to_owned(), FinishReason::Stop, 5));
    assert_eq!(written(5, string), ("acdcda".to_owned(), FinishReason::Length, 6));
}

#[test]
fn each_token_has_its_log_probability_in_one_chunk_and_in_the_whole() {
    let tokens = tokens();
    let stop = ["ax".to_owned()];
    let settings = TextSettings { stop: &stop, max_tokens: 9, logprobs: Some(2), ..TextSettings::default() };
    let mut text = Generation::new(&tokens, &settings, &[], &[tokens.id(END).unwrap()]).unwrap();
    // The second is held back, as it may begin the stop string; the last has no text.
    let (chunks, completion) = write(&mut text, &[&["b"], &["a", "c"], &["b"], &[END, "d"]]);
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert_eq!(texts, ["b", "ab", ""]);
    let told: Vec<TokenLogprobs> = chunks.iter().flat_map(|chunk| chunk.logprobs.clone()).collect();
    assert_eq!(told, completion.logprobs);
    assert_eq!(completion.usage.completion_tokens, completion.logprobs.len());
    let chosen: Vec<_> = told.iter().map(|token| token.chosen.text()).collect();
    assert_eq!(chosen, ["b", "a", "b", END]);
    let second: Vec<_> = told.iter().filter_map(|token| token.top.get(1)).map(|top| top.text()).collect();
    assert_eq!((second[1].as_ref(), second[3].as_ref()), ("c", "d"));
    assert!(told.iter().all(|token| token.top.len() == 2 && token.top[0] == token.chosen));
    let silent = TextSettings { max_tokens: 9, ..TextSettings::default() };
    let mut text = Generation::new(&tokens, &silent, &[], &[tokens.id(END).unwrap()]).unwrap();
    let (chunks, completion) = write(&mut text, &[&["b"], &[END]]);
    assert!(completion.logprobs.is_empty() && chunks.len() == 1 && chunks[0].logprobs.is_empty());
}

#[test]
fn log_probabilities_are_those_of_the_model_whatever_a_request_changes() {
    let tokens = tokens();
    let (a, b) = (tokens.id("a").unwrap(), tokens.id("b").unwrap());
    let plain = preferring(&tokens, &["a", "b"]);
    let own = logprobs::of(&tokens, &plain, b, 3);
    let sampling = Sampling::default()
        .with_temperature(0.2)
        .with_top_k(1)
        .with_repetition_penalty(1.3)
        .with_presence_penalty(0.5)
        .with_logit_bias([(a, -100.0)].into());
    let settings = TextSettings { sampling, max_tokens: 9, logprobs: Some(3), ..TextSettings::default() };
    let mut text = Generation::new(&tokens, &settings, &[b], &[]).unwrap();
    for _ in 0..3 {
        assert_eq!(text.accept(&mut plain.clone()).unwrap().token, b);
    }
    assert_eq!(text.logprobs, vec![own; 3]);
}

#[derive(Deserialize)]
struct Reference {
    logprobs: Vec<LogprobsOf>,
}

#[derive(Deserialize)]
struct LogprobsOf {
    logits: Vec<f32>,
    logprobs: Vec<f64>,
    top: Vec<u32>,
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/sampling.json");
    let reference: Reference = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (tokens, mut largest) = (tokens(), 0f64);
    for LogprobsOf { logits, logprobs, top } in reference.logprobs {
        for chosen in 0..logits.len() as u32 {
            let found = logprobs::of(&tokens, &logits, chosen, if chosen == 0 { 20 } else { 0 });
            let expected = logprobs[chosen as usize];
            // Of numbers of 32 bits.
            let scale = expected.abs().max(1.0);
            largest = largest.max((f64::from(found.chosen.logprob) - expected).abs() / scale);
            if chosen == 0 {
                assert_eq!(found.top.iter().map(|top| top.token).collect::<Vec<_>>(), top);
            }
        }
    }
    println!("log probabilities, largest relative difference {largest:.2e}");
    assert!(largest < 1e-6, "{largest}");
}

#[test]
fn tokens_that_a_model_lacks_are_refused() {
    let request = GenerateText::from("a").with_stop_tokens(vec![3, 384]);
    assert!(TextSettings::of(&request, 385).is_ok());
    let error = TextSettings::of(&request, 384).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidInput(reason) if reason.contains("stop_tokens has the token 384"))
    );
    let sampling = Sampling::default().with_logit_bias([(9, 1.0)].into());
    let error = TextSettings::of(&GenerateText::from("a").with_sampling(sampling), 9).unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("logit_bias has the token 9")));
}
