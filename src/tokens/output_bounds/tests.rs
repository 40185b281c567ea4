//! Tokenizers that would make too much of a text, and those of real models.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::parts::{MAX_NORMALIZED, MAX_SPLIT, steps};
use super::*;

/// A tokenizer with these parts; the others are none.
fn parts(parts: Value) -> Value {
    let mut written = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
    });
    let Value::Object(parts) = parts else { panic!("{parts}") };
    written.as_object_mut().unwrap().extend(parts);
    written
}

fn tokenizer(with: Value) -> Tokenizer {
    Tokenizer::from_bytes(serde_json::to_vec(&parts(with)).unwrap()).unwrap()
}

fn of(with: Value) -> Result<OutputBounds, String> {
    OutputBounds::of(&tokenizer(with))
}

fn refused(with: Value) -> String {
    of(with).unwrap_err()
}

fn replace(pattern: &Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

#[test]
fn what_multiplies_a_text_is_refused_when_it_is_read() {
    let normalizer = |steps: &[Value]| json!({"normalizer": {"type": "Sequence", "normalizers": steps}});
    let letter = replace(&json!({"String": "a"}), &"a".repeat(200));
    assert_eq!(of(normalizer(std::slice::from_ref(&letter))).unwrap().normalizer, [200]);
    assert!(refused(normalizer(&[letter.clone(), letter])).contains("40000"));
    let everywhere = replace(&json!({"Regex": ""}), &"a".repeat(10_000));
    assert!(refused(normalizer(&[everywhere])).contains("20001"));
    assert!(of(normalizer(&[json!({"type": "Prepend", "prepend": "a".repeat(20_000)})])).is_err());
    // As ALBERT's, before its map of signs.
    let accents = ["NFKD", "StripAccents", "Lowercase"].map(|name| json!({"type": name}));
    assert_eq!(of(normalizer(&accents)).unwrap().normalizer, [11, 1, 2]);
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Sequence", "pretokenizers": vec![bytes; 20]});
    assert!(refused(json!({"pre_tokenizer": split})).contains("split"));
}

#[test]
fn a_split_into_pieces_of_no_letters_is_refused_when_it_is_read() {
    let split = |length: u64| json!({"type": "FixedLength", "length": length});
    let within = |split: Value| json!({"type": "Sequence", "pretokenizers": [split]});
    assert!(of(json!({"pre_tokenizer": within(split(1))})).is_ok());
    assert!(refused(json!({"pre_tokenizer": split(0)})).contains("no letters"));
    assert!(refused(json!({"pre_tokenizer": within(within(split(0)))})).contains("no letters"));
}

#[test]
fn no_step_is_taken_that_could_make_a_text_too_long() {
    // The second finds nothing in any short piece of a text.
    let letters = replace(&json!({"Regex": "[^\n]"}), "a");
    let many = replace(&json!({"String": "a".repeat(3000)}), &"b".repeat(3000 * 2048));
    let tokenizer = tokenizer(json!({"normalizer": {"type": "Sequence", "normalizers": [letters, many]}}));
    let output_bounds = OutputBounds::of(&tokenizer).unwrap();
    let text = "x".repeat(100_000);
    let refused = output_bounds.check(&tokenizer, &text).unwrap_err();
    assert!(refused.contains("100000") && refused.contains(&MAX_BYTES.to_string()), "{refused}");
    let mut part = NormalizedString::from(text.as_str());
    output_bounds.trial(&tokenizer).normalize(&mut part).unwrap();
    assert_eq!(part.get(), "a".repeat(100_000), "only the first step was taken");

    // A text comes in parts, and all of them count.
    let trial = output_bounds.trial(&tokenizer);
    trial.bytes.store(MAX_BYTES - 10, Ordering::Relaxed);
    let mut part = NormalizedString::from("xxxxx");
    trial.normalize(&mut part).unwrap();
    assert_eq!(part.get(), "xxxxx");
    assert!(trial.bytes.into_inner() > MAX_BYTES);
    assert_eq!(output_bounds.check(&tokenizer, &"x".repeat(2000)), Ok(()));
}

#[test]
fn a_step_is_measured_by_what_those_before_it_left() {
    let spaces = replace(&json!({"String": " "}), &"b".repeat(1000));
    let steps = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, spaces]});
    let added = json!([{"id": 2, "content": "<a>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}]);
    let tokenizer = tokenizer(json!({"normalizer": steps, "added_tokens": added}));
    let output_bounds = OutputBounds::of(&tokenizer).unwrap();
    // What becomes eleven times as long; what stays, also in many parts.
    assert!(output_bounds.check(&tokenizer, &"ﷺ".repeat(1000)).is_err());
    assert_eq!(output_bounds.check(&tokenizer, &"é".repeat(1500)), Ok(()));
    assert_eq!(output_bounds.check(&tokenizer, &"é<a>".repeat(1500)), Ok(()));

    let [nfkc, spaces] = steps_of(&tokenizer);
    let (grows, stays) = ("ﷺ".repeat(130_000), "é".repeat(200_000));
    assert_eq!(most_after(nfkc, 11, &grows).unwrap(), 11 * grows.len());
    assert_eq!(most_after(nfkc, 11, &stays).unwrap(), stays.len());
    assert_eq!(most_after(spaces, 1000, &stays).unwrap(), 1000 * stays.len());
}

fn steps_of<const N: usize>(tokenizer: &Tokenizer) -> [&NormalizerWrapper; N] {
    steps(tokenizer.get_normalizer().unwrap()).try_into().unwrap()
}

#[test]
fn added_tokens_are_refused_before_the_normalizer_runs_over_them() {
    let file = |length: usize| {
        let content = "a".repeat(length);
        let added = json!([{"id": 2, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": false}]);
        let normalizer = replace(&json!({"String": "a"}), &"a".repeat(16_000));
        serde_json::to_vec(&parts(json!({"normalizer": normalizer, "added_tokens": added}))).unwrap()
    };
    assert_eq!(check_added(&file(100)), Ok(()));
    assert!(check_added(&file(1_000_000)).unwrap_err().contains("16000000000"));
}

#[test]
fn a_decoder_that_multiplies_is_refused_and_so_is_a_token_of_any_length() {
    let step = replace(&json!({"String": "a"}), &"a".repeat(1000));
    let decoder = json!({"type": "Sequence", "decoders": vec![step; 5]});
    assert!(refused(json!({"decoder": decoder})).contains("decoder can make 1000000000000000"));
    let spaces = replace(&json!({"String": "▁"}), " ");
    let usual = json!([spaces, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
    let usual = of(json!({"decoder": {"type": "Sequence", "decoders": usual}})).unwrap();
    assert_eq!(usual.decoder, 1);

    let token = |bytes: usize| json!({"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b".repeat(bytes): 1}});
    assert!(refused(json!({"model": token(MAX_TOKEN + 1)})).contains("16385 bytes"));
    let tokenizer = tokenizer(json!({"model": token(MAX_TOKEN)}));
    let output_bounds = OutputBounds::of(&tokenizer).unwrap();
    assert!(
        output_bounds.can_decode(&tokenizer, &[1; 1000])
            && output_bounds.can_decode(&tokenizer, &[0; 100_000])
    );
    assert!(!output_bounds.can_decode(&tokenizer, &[1; 1024]), "with the spaces between them");
}

#[test]
fn a_template_that_cannot_be_applied_is_refused_when_it_is_read() {
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let special = json!({"SpecialToken": {"id": "a", "type_id": 0}});
    let template = |pieces: &[&Value], ids: &[u32], tokens: &[&str]| {
        json!({"type": "TemplateProcessing", "single": pieces, "pair": [text("A"), text("B")],
            "special_tokens": {"a": {"id": "a", "ids": ids, "tokens": tokens}}})
    };
    let refused = |processor: &Value| refused(json!({"post_processor": processor}));
    let (first, second) = (text("A"), text("B"));
    let sound = template(&[&special, &first, &special], &[1], &["a"]);
    assert!(of(json!({"post_processor": sound})).is_ok());

    assert!(refused(&template(&[&first, &first], &[1], &["a"])).contains("for 2"));
    assert!(refused(&template(&[&second], &[1], &["a"])).contains("or for a second"));
    let unknown = json!({"SpecialToken": {"id": "z", "type_id": 0}});
    assert!(refused(&template(&[&first, &unknown], &[1], &["a"])).contains("\"z\""));
    assert!(refused(&template(&[&first, &special], &[1, 1], &["a"])).contains("\"a\""));
    assert!(refused(&template(&[&special; 65], &[], &[])).contains("65 pieces"));
    assert!(refused(&template(&[&special; 3], &[1; 22], &["a"; 22])).contains("66 tokens"));
    let twice = json!({"type": "Sequence", "processors": [sound, sound]});
    assert!(refused(&twice).contains("2 templates"));
    let deeper = json!({"type": "Sequence", "processors": [twice]});
    assert!(refused(&deeper).contains("2 templates"));
}

#[test]
fn every_fixtures_tokenizer_is_far_from_the_limit() {
    fn find(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => find(&entry, found),
                false if entry.ends_with("tokenizer.json") => found.push(entry),
                false => {}
            }
        }
    }
    let (mut files, mut largest) = (Vec::new(), 0);
    find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), &mut files);
    for file in &files {
        check_added(&std::fs::read(file).unwrap()).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let output_bounds = OutputBounds::of(&Tokenizer::from_file(file).unwrap());
        let output_bounds = output_bounds.unwrap_or_else(|error| panic!("{file:?}: {error}"));
        assert!(
            output_bounds.split.max(output_bounds.decoder) <= MAX_SPLIT / 4
                && output_bounds.token <= MAX_TOKEN / 4
        );
        largest = largest.max(output_bounds.normalizer.iter().product());
    }
    println!("{} tokenizers; a byte becomes at most {largest}", files.len());
    assert!(files.len() > 20 && largest <= MAX_NORMALIZED / 2, "{} files, {largest}", files.len());
}
