//! Tokenizer from the metadata of a GGUF file. It is converted to the `tokenizer.json` that transformers
//! would make of the same vocabulary, and read as such; what its tokens are written as follows from their kinds.

mod splits;

use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::template::SpecialTokens;
use crate::gguf::{GgufTokenizer, TokenKind};
use crate::tokens::{Pieces, Tokens};
use splits::Split;

/// Most bytes of a piece that others merge to; no vocabulary has longer ones.
const MAX_PIECE: usize = 256;
/// Most merges: far more than a vocabulary has, and few enough to be kept in memory.
const MAX_MERGES: usize = 2 << 20;

/// Builds the tokenizer of a file.
///
/// # Errors
/// A sentence about the setting that is not supported or makes no sense.
pub(crate) fn tokens_of(gguf: &GgufTokenizer) -> Result<Tokens, String> {
    let parts = match gguf.model.as_str() {
        "gpt2" => byte_level(gguf)?,
        "llama" => sentence_piece(gguf)?,
        other => {
            return Err(format!("the tokenizer model {other:?} is not supported; supported are gpt2, llama"));
        }
    };
    let written = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(gguf),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.split,
        "post_processor": post_processor(gguf),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let bytes = serde_json::to_vec(&written).map_err(|error| error.to_string())?;
    drop(written);
    let tokens = Tokens::whole(Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?)?;
    Ok(tokens.written_by(pieces(gguf)))
}

/// The text of each token, as `token_to_piece` of llama.cpp writes it.
fn pieces(gguf: &GgufTokenizer) -> Pieces {
    let sentence_piece = gguf.model == "llama";
    let bytes = if sentence_piece { HashMap::new() } else { bytes_by_letter() };
    let piece = |(id, token): (usize, &String)| -> Vec<u8> {
        match gguf.kind(id) {
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => Vec::new(),
            TokenKind::UserDefined => token.clone().into_bytes(),
            TokenKind::Byte => byte_of(token).map_or_else(|| token.clone().into_bytes(), |byte| vec![byte]),
            TokenKind::Normal if sentence_piece => token.replace('▁', " ").into_bytes(),
            TokenKind::Normal => {
                let of_bytes: Option<Vec<u8>> =
                    token.chars().map(|letter| bytes.get(&letter).copied()).collect();
                of_bytes.unwrap_or_else(|| token.clone().into_bytes())
            }
        }
    };
    let pieces = gguf.tokens.iter().enumerate().map(|token| piece(token).into_boxed_slice());
    Pieces::new(pieces.collect(), sentence_piece && gguf.adds_space.unwrap_or(true))
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The byte that each letter of byte-level BPE stands for: those that can be printed for themselves, the others in their
/// order for the letters from 256 on.
fn bytes_by_letter() -> HashMap<char, u8> {
    let printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let own = (0..=255u8).filter(printed).map(|byte| (char::from(byte), byte));
    let others = (0..=255u8).filter(|byte| !printed(byte)).zip(256u32..);
    own.chain(others.filter_map(|(byte, letter)| Some((char::from_u32(letter)?, byte)))).collect()
}

/// Special tokens that chat templates write by name.
pub(crate) fn special_tokens_of(gguf: &GgufTokenizer) -> SpecialTokens {
    let name = |id: Option<u32>| gguf.tokens.get(id? as usize).cloned();
    SpecialTokens {
        bos: name(gguf.beginning),
        eos: name(gguf.end),
        unk: name(gguf.unknown),
        pad: name(gguf.padding),
        ..SpecialTokens::default()
    }
}

/// Sections of `tokenizer.json` that differ between the two kinds of tokenizer.
struct Parts {
    normalizer: Value,
    split: Value,
    decoder: Value,
    model: Value,
}

fn vocabulary(gguf: &GgufTokenizer) -> Value {
    let entries = gguf.tokens.iter().enumerate().map(|(id, token)| (token.clone(), Value::from(id)));
    Value::Object(entries.collect())
}

/// The pre-tokenizer that a file of byte-level BPE names.
fn split(gguf: &GgufTokenizer) -> Result<Split, String> {
    match gguf.pre.as_deref() {
        // llama.cpp takes a split of its own then, which no model was trained with, and warns of bad texts.
        None | Some("" | "default") => {
            Err("it does not say how its tokenizer splits text (tokenizer.ggml.pre), as files made before May 2024 do \
                 not; take a newer file of the model, or load the directory that holds this one and the model's \
                 tokenizer.json"
                .to_owned())
        }
        Some(name) => Split::named(name).ok_or_else(|| {
            let supported = splits::names().collect::<Vec<_>>().join(", ");
            format!("the split {name:?} of its tokenizer is not supported; supported are {supported}")
        }),
    }
}

/// Byte-level BPE, with the merges of the file.
fn byte_level(gguf: &GgufTokenizer) -> Result<Parts, String> {
    let split = split(gguf)?;
    let merges: Vec<Value> = gguf
        .merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(format!("the merge {merge:?} is no pair")),
        })
        .collect::<Result<_, _>>()?;
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": split.whole_words,
        "vocab": vocabulary(gguf), "merges": merges,
    });
    let normalizer = if split.composes { json!({"type": "NFC"}) } else { Value::Null };
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Ok(Parts { normalizer, split: split.written(), decoder, model })
}

/// BPE of SentencePiece, whose merges follow from the scores.
fn sentence_piece(gguf: &GgufTokenizer) -> Result<Parts, String> {
    let prefix = gguf.adds_space.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let begin = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Value> = begin.into_iter().chain([spaces]).collect();
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(strip).collect();
    let unknown = (0..gguf.tokens.len()).find(|id| gguf.kind(*id) == TokenKind::Unknown);
    let unknown = gguf.unknown.map(|id| id as usize).or(unknown).and_then(|id| gguf.tokens.get(id));
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary(gguf), "merges": merges_by_score(gguf)?,
    });
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        split: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    })
}

/// Lists every pair of pieces that make another piece, those of the highest scores first: SentencePiece
/// merges the pair whose result has the highest score, BPE the pair that is listed first.
fn merges_by_score(gguf: &GgufTokenizer) -> Result<Vec<Value>, String> {
    let is_piece =
        |id: usize| matches!(gguf.kind(id), TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
    let pieces: HashMap<&str, usize> = gguf
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut found = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate().filter(|(id, _)| is_piece(*id)) {
        if token.len() > MAX_PIECE {
            continue;
        }
        let score = gguf.scores.get(id).copied().unwrap_or(0.0);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (pieces.get(left), pieces.get(right)) {
                found.push((score, *first, *second, left, right));
            }
        }
        if found.len() > MAX_MERGES {
            return Err(format!("its pieces merge in more than {MAX_MERGES} ways"));
        }
    }
    found.sort_by(|left, right| right.0.total_cmp(&left.0).then((left.1, left.2).cmp(&(right.1, right.2))));
    Ok(found.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect())
}

/// Tokens that are matched in text before the model runs (`added_tokens`).
fn added_tokens(gguf: &GgufTokenizer) -> Vec<Value> {
    let named = [gguf.beginning, gguf.end, gguf.end_of_turn, gguf.unknown, gguf.padding];
    let added = |(id, token): (usize, &String)| {
        let special = match gguf.kind(id) {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal if gguf.kinds.is_empty() => {
                named.into_iter().flatten().any(|named| named as usize == id).then_some(true)?
            }
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
        };
        let strips =
            gguf.strips_after_special && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_str());
        Some(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": strips,
            "normalized": false, "special": special,
        }))
    };
    gguf.tokens.iter().enumerate().filter_map(added).collect()
}

/// Post-processor that puts the tokens of beginning and end around a text, where the file asks for it.
fn post_processor(gguf: &GgufTokenizer) -> Value {
    // Where the file does not say, llama.cpp's own answer holds.
    let split_begins = || gguf.pre.as_deref().and_then(Split::named).is_some_and(|split| split.begins);
    let begins = gguf.adds_beginning.unwrap_or_else(|| gguf.model == "llama" || split_begins());
    let first = gguf.beginning.filter(|_| begins);
    let last = gguf.end.filter(|_| gguf.adds_end.unwrap_or(false));
    let name = |id: u32| gguf.tokens.get(id as usize).cloned().unwrap_or_default();
    let token = |id: u32| json!({"SpecialToken": {"id": name(id), "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around = |id: &str| -> Vec<Value> {
        first.map(token).into_iter().chain([text(id)]).chain(last.map(token)).collect()
    };
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let entry = |id: u32| (name(id), json!({"id": name(id), "ids": [id], "tokens": [name(id)]}));
    let special: serde_json::Map<String, Value> = first.into_iter().chain(last).map(entry).collect();
    let pair: Vec<Value> = around("A").into_iter().chain(around("B")).collect();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special})
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
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
        for name in ["llama", "qwen2", "qwen3", "phi3", "gemma3"] {
            let made = tokens_of(&gguf(&format!("gguf_{name}"))).unwrap();
            let original = Tokens::read_whole(root.join(name).join("tokenizer.json")).unwrap();
            let mut count = 0;
            for text in TEXTS {
                for specials in [Specials::Added, Specials::AsWritten] {
                    let ids = original.encode_prompt(text, specials).unwrap();
                    assert_eq!(made.encode_prompt(text, specials).unwrap(), ids, "{name}: {text:?}");
                    assert_eq!(
                        made.decode(&ids).unwrap(),
                        original.decode(&ids).unwrap(),
                        "{name}: {text:?}"
                    );
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
        for (pre, case) in expected.cases.iter().flat_map(|case| case.pre.iter().map(move |pre| (pre, case)))
        {
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
        let ends: Vec<u32> = file.ends().collect();
        assert!([3, 4, 5, 101, 102, 103].iter().all(|id| ends.contains(id)), "{ends:?}");
        // It ends a part of an answer where other tokens end the answer.
        assert!(!ends.contains(&100) && file.kind(100) == TokenKind::UserDefined);
        file.tokens[101] = "other".to_owned();
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
        for pre in splits::names() {
            let gguf = GgufTokenizer { pre: Some(pre.to_owned()), ..gguf("gguf_llama") };
            let tokens = tokens_of(&gguf).unwrap_or_else(|error| panic!("{pre}: {error}"));
            let text = "Hello World123 it's\n";
            let ids = tokens.encode_prompt(text, Specials::Added).unwrap();
            assert_eq!(tokens.decode(&ids).unwrap(), text, "{pre}");
        }
    }
}
