//! Tests of encoding, cutting and decoding, with tokenizers of a few tokens.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A sound tokenizer with these parts in place of its own, read for texts and for prompts.
fn with(parts: Value) -> [Result<Tokens>; 2] {
    let sound =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text/llama/tokenizer.json");
    let mut written: Value = serde_json::from_slice(&std::fs::read(sound).unwrap()).unwrap();
    let Value::Object(parts) = parts else { unreachable!("{parts}") };
    written.as_object_mut().unwrap().extend(parts);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, serde_json::to_vec(&written).unwrap()).unwrap();
    [Tokens::read(&file, 100, false), Tokens::read_whole(&file)]
}

#[test]
fn what_a_tokenizer_panics_on_is_an_error() {
    let split = json!({"type": "FixedLength", "length": 0});
    // A map of signs without the first node of its tree.
    let map = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="});
    let added = json!({"id": 9999, "content": "a", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": true, "special": false});
    for parts in [
        json!({"pre_tokenizer": split}),
        json!({"normalizer": map, "added_tokens": [added]}),
        json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}),
    ] {
        for tokens in with(parts) {
            assert!(matches!(tokens.err(), Some(Error::InvalidTokenizer { .. })));
        }
    }
    for tokens in with(json!({"normalizer": map})) {
        let tokens = tokens.unwrap();
        assert!(matches!(tokens.encode("a"), Err(Error::InvalidInput(_))));
        assert!(matches!(tokens.encode_prompt("a", Specials::Added), Err(Error::InvalidInput(_))));
    }
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
    for tokens in with(json!({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]}})) {
        let tokens = tokens.unwrap();
        assert!(tokens.decode(&[70]).is_ok());
        assert!(matches!(tokens.decode(&[]), Err(Error::InvalidInput(_))));
    }
}

#[test]
fn texts_and_prompts_are_guarded_alike() {
    let replace =
        |bytes: usize| json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(bytes)});
    assert!(with(json!({"normalizer": replace(3)})).iter().all(Result::is_ok));

    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "z", "type_id": 0}}]});
    let long = json!({"id": 9999, "content": "a".repeat(1100), "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": true, "special": false});
    for parts in [
        json!({"normalizer": replace(20_000)}),
        json!({"decoder": replace(20)}),
        json!({"post_processor": template}),
        json!({"normalizer": replace(16_000), "added_tokens": [long]}),
    ] {
        for tokens in with(parts) {
            assert!(matches!(tokens.err(), Some(Error::InvalidTokenizer { .. })));
        }
    }

    let [_, tokens] = with(json!({"decoder": replace(16)}));
    let tokens = tokens.unwrap();
    assert!(tokens.decode(&[70; 1000]).is_ok());
    assert!(tokens.decode(&[70; 1 << 20]).is_err(), "a byte and a space each, sixteen times");
}

#[test]
fn a_long_text_is_cut_to_the_tokens_of_all_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_embedding");
    for family in std::fs::read_dir(root).unwrap() {
        let file = family.unwrap().path().join("tokenizer.json");
        let tokens = Tokens::read(&file, 64, false).unwrap();
        for part in ["The cat sleeps. ", "naïve 猫", "x", " ", "\u{301}é", "a\n\n"] {
            let text = part.repeat(100_000 / part.len());
            let whole = tokens.output_bounds.encode(&tokens.tokenizer, &text, Specials::Added).unwrap();
            assert_eq!(tokens.encode(&text).unwrap().ids, whole, "{}: {part:?}", file.display());
        }
    }
}
