//! Tokenizers of GGUF files against those that the models come with, and against llama.cpp.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use super::*;
use crate::gguf::GgufFile;
use crate::source::read_json;
use crate::tokens::Specials;

fn gguf(name: &str) -> GgufTokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text").join(name);
    let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|name| name == "gguf")).unwrap();
    GgufFile::open(&file).unwrap().tokenizer().unwrap()
}

/// Texts with words, spaces and characters of all kinds, and with special tokens.
const TEXTS: [&str; 7] = [
    "The cat sleeps on the warm windowsill.",
    " two  spaces   and\n\nlines\t tab",
    "naïve café — 日本語 🦀 \u{301}",
    "<|im_start|>user\nHello<|im_end|>\n<start_of_turn>model\n<|user|>x<|end|><s></s><bos>",
    "The train leaves from platform nine in ten minutes, and the rain has not stopped since noon.",
    "",
    "<0x0A> ▁ Ġ",
];

#[test]
fn special_tokens_that_a_file_does_not_mark_are_known_by_name() {
    let mut file = gguf("gguf_llama");
    let begins = |file: &GgufTokenizer| {
        let ids = tokens_of(file).unwrap().encode_prompt("The cat", Specials::Added).unwrap();
        ids.first().copied() == file.beginning
    };
    assert!(file.beginning.is_some());
    (file.adds_beginning, file.pre) = (None, Some("llama-bpe".into()));
    assert!(begins(&file));
    file.pre = Some("gpt-2".into());
    assert!(!begins(&file));
    assert!(file.ends().all(|id| file.tokens[id as usize].contains("end")));
    file.tokens[7] = "<|eot_id|>".into();
    assert!(file.ends().any(|id| id == 7));
}

#[test]
fn token_ids_are_those_of_the_original_tokenizer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_to_text");
    for name in ["llama", "qwen2", "qwen3", "phi2", "phi3", "gemma3"] {
        let made = tokens_of(&gguf(&format!("gguf_{name}"))).unwrap();
        let original = Tokens::read_whole(root.join(name).join("tokenizer.json")).unwrap();
        let mut count = 0;
        for text in TEXTS {
            for specials in [Specials::Added, Specials::AsWritten] {
                let ids = original.encode_prompt(text, specials).unwrap();
                assert_eq!(made.encode_prompt(text, specials).unwrap(), ids, "{name}: {text:?}");
                assert_eq!(made.decode(&ids).unwrap(), original.decode(&ids).unwrap(), "{name}: {text:?}");
                count += ids.len();
            }
        }
        assert!((0..384).all(|id| made.has_text(id) == original.has_text(id)), "{name}");
        println!("{name}: {count} tokens of {} texts, the same", TEXTS.len());
    }
}

#[derive(serde::Deserialize)]
struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Splits {
    pre: Vec<String>,
    tokens: Vec<Vec<u32>>,
}

#[derive(serde::Deserialize)]
struct Expected {
    texts: Vec<String>,
    cases: Vec<Splits>,
}

/// Of `tests/references/gguf_tokenizers.py`.
#[test]
fn every_split_gives_the_tokens_that_llama_cpp_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_tokenizers");
    let vocabulary: Vocabulary = read_json(&folder.join("vocabulary.json")).unwrap();
    let expected: Expected = read_json(&folder.join("expected.json")).unwrap();
    let compared: Vec<&String> = expected.cases.iter().flat_map(|case| &case.pre).collect();
    assert!(splits::names().all(|name| compared.iter().any(|pre| *pre == name)));
    let mut wrong = Vec::new();
    for (pre, case) in expected.cases.iter().flat_map(|case| case.pre.iter().map(move |pre| (pre, case))) {
        let none = None::<u32>;
        let file = GgufTokenizer {
            tokens: vocabulary.tokens.clone(),
            merges: vocabulary.merges.clone(),
            pre: Some(pre.clone()),
            kinds: Vec::new(),
            // Without kinds, these are looked for in texts.
            beginning: none,
            end: none,
            end_of_turn: none,
            unknown: none,
            padding: none,
            ..gguf("gguf_llama")
        };
        let tokens = tokens_of(&file).unwrap();
        for (text, right) in expected.texts.iter().zip(&case.tokens) {
            // What the models' own tokenizers compose or count as letters, llama.cpp does not.
            let own_marks = Split::named(pre).is_some_and(Split::has_own_marks);
            if own_marks && text.contains('\u{301}') {
                continue;
            }
            let ids = tokens.encode_prompt(text, Specials::AsWritten).unwrap();
            if ids != *right {
                wrong.push(format!("{pre}: {text:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tokens_are_written_by_their_kinds() {
    let kinds = [
        TokenKind::Normal,
        TokenKind::Unknown,
        TokenKind::Control,
        TokenKind::UserDefined,
        TokenKind::Unused,
        TokenKind::Byte,
        TokenKind::Normal,
        TokenKind::Control,
    ];
    // Of the last two, the name counts for more.
    let names = ["Ġqz", "<unk2>", "<ctl>", "Ġu2", "[PAD1]", "<0x0A>", "<|eot_id|>", "<|message|>"];
    let with = |base: &str, names: [&str; 8]| {
        let mut file = gguf(base);
        file.tokens.extend(names.map(str::to_owned));
        file.kinds.extend(kinds);
        file.scores.resize(if file.scores.is_empty() { 0 } else { file.tokens.len() }, -1e6);
        file
    };
    let file = with("gguf_llama", names);
    let tokens = tokens_of(&file).unwrap();
    let first = file.tokens.len() as u32 - 8;
    let written: Vec<String> = (0..8).map(|id| tokens.decode(&[first + id]).unwrap()).collect();
    assert_eq!(written, [" qz", "", "", "Ġu2", "", "\n", "", "<|message|>"]);
    let shown: Vec<bool> = (0..8).map(|id| tokens.has_text(first + id)).collect();
    assert_eq!(shown, written.iter().map(|text| !text.is_empty()).collect::<Vec<_>>());
    assert!(file.ends().any(|id| id == first + 6));
    // SentencePiece: a space at the beginning is the tokenizer's.
    let pieces = ["▁qz", "<unk2>", "<ctl>", "▁u2", "[PAD1]", "<0x0A>", "<|eot_id|>", "<|message|>"];
    let file = with("gguf_phi3", pieces);
    let first = file.tokens.len() as u32 - 8;
    let ids: Vec<u32> = [0, 1, 2, 3, 4, 5, 6, 7, 0].map(|id| first + id).to_vec();
    assert_eq!(tokens_of(&file).unwrap().decode(&ids).unwrap(), "qz▁u2\n<|message|> qz");
}

#[test]
fn ends_follow_from_keys_and_names() {
    let mut file = gguf("gguf_llama");
    (file.end, file.end_of_turn, file.other_ends) = (Some(3), Some(4), vec![5]);
    for (id, name) in ["<|end|>", "<|return|>", "<|call|>", "<|fim_pad|>"].into_iter().enumerate() {
        file.tokens[100 + id] = name.to_owned();
    }
    file.has_parts = GgufTokenizer::has_parts(&file.tokens);
    let ends: Vec<u32> = file.ends().collect();
    assert!([3, 4, 5, 101, 102, 103].iter().all(|id| ends.contains(id)), "{ends:?}");
    // It ends a part of an answer where other tokens end the answer.
    assert!(!ends.contains(&100) && file.kind(100) == TokenKind::UserDefined);
    file.tokens[101] = "other".to_owned();
    file.has_parts = GgufTokenizer::has_parts(&file.tokens);
    assert!(file.ends().any(|id| id == 100) && file.kind(100) == TokenKind::Control);
}

#[test]
fn spaces_after_special_tokens_of_phi_3_belong_to_these() {
    let mut file = gguf("gguf_phi3");
    let encode = |file: &GgufTokenizer, text: &str| {
        tokens_of(file).unwrap().encode_prompt(text, Specials::AsWritten).unwrap()
    };
    let (with, without) = ("<|user|>\nHello", "<|user|>Hello");
    assert_ne!(encode(&file, with), encode(&file, without));
    file.strips_after_special = true;
    assert_eq!(encode(&file, with), encode(&file, without));
}

#[test]
fn unsupported_settings_are_named() {
    let mut unknown = gguf("gguf_llama");
    unknown.pre = Some("a-new-one".to_owned());
    assert!(tokens_of(&unknown).err().unwrap().contains("a-new-one"));
    for pre in [None, Some("default".to_owned())] {
        let reason = tokens_of(&GgufTokenizer { pre, ..gguf("gguf_llama") }).err().unwrap();
        assert!(reason.contains("tokenizer.ggml.pre") && reason.contains("tokenizer.json"), "{reason}");
    }
    // SentencePiece splits nothing.
    assert!(tokens_of(&GgufTokenizer { pre: None, ..gguf("gguf_phi3") }).is_ok());
    unknown.model = "t5".to_owned();
    assert!(tokens_of(&unknown).err().unwrap().contains("t5"));
    let mut broken = gguf("gguf_llama");
    broken.merges.push("nopair".to_owned());
    assert!(tokens_of(&broken).is_err());
    broken.merges = vec!["not there".to_owned()];
    assert!(tokens_of(&broken).is_err());
    broken.merges.clear();
    assert!(tokens_of(&broken).err().unwrap().contains("tokenizer.ggml.merges"));
    for pre in splits::names() {
        let gguf = GgufTokenizer { pre: Some(pre.to_owned()), ..gguf("gguf_llama") };
        let tokens = tokens_of(&gguf).unwrap_or_else(|error| panic!("{pre}: {error}"));
        let text = "Hello World123 it's\n";
        let ids = tokens.encode_prompt(text, Specials::Added).unwrap();
        assert_eq!(tokens.decode(&ids).unwrap(), text, "{pre}");
    }
}

#[test]
fn tokens_of_the_same_name_take_no_time_for_each_other() {
    let base = gguf("gguf_llama");
    let tokens = vec!["<|end|>".to_owned(); 1 << 20];
    let file =
        GgufTokenizer { kinds: Vec::new(), has_parts: GgufTokenizer::has_parts(&tokens), tokens, ..base };
    // Each would look at all of them: the test would not end.
    assert!((0..file.tokens.len()).all(|id| file.kind(id) == TokenKind::Control));
    assert!(file.ends().count() >= file.tokens.len());
}

#[test]
fn what_a_file_makes_is_bounded_as_a_tokenizer_file_is() {
    let reason = |file: &GgufTokenizer| tokens_of(file).err().unwrap_or_default();
    let file = gguf("gguf_llama");
    let merges = vec![file.merges[0].clone(); MAX_MERGES + 1];
    assert!(reason(&GgufTokenizer { merges, ..file.clone() }).contains("1398102 merges"));
    // The tokens are values of it as well.
    let merges = vec![file.merges[0].clone(); MAX_MERGES];
    assert!(reason(&GgufTokenizer { merges, ..file.clone() }).contains("1398101 merges"));
    let controls = || (0..=MAX_ADDED_TOKENS).map(|id| format!("<c{id}>"));
    let added = GgufTokenizer {
        kinds: vec![TokenKind::Control; MAX_ADDED_TOKENS + 1],
        tokens: controls().collect(),
        ..file.clone()
    };
    assert!(reason(&added).contains("65536"), "{}", reason(&added));
    let tokens = (0..=MAX_TOKENS).map(|id| format!("a{id}")).collect();
    assert!(reason(&GgufTokenizer { tokens, ..file }).contains("1048577 tokens"));
}
