//! Tokenizers of all their files against the tokens that transformers makes by them: `tests/references/tokenizer_files.py`
//! writes both down.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model_actors::{LoadContext, ModelId};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::source::Files;

#[derive(Deserialize)]
struct Recorded {
    /// Maximum number of tokens of the texts that are cut.
    longest: usize,
    texts: Vec<String>,
    /// Contents of files: texts, or bytes in base64.
    files: Vec<Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// Places in the list of contents, by the files' names.
    files: BTreeMap<String, usize>,
    ids: Vec<Vec<u32>>,
    cut: Vec<Vec<u32>>,
    special: BTreeMap<String, String>,
}

fn context() -> LoadContext {
    LoadContext::detached(&ModelId::from("a"))
}

fn recorded() -> Recorded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/tokenizers.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder(recorded: &Recorded, case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, place) in &case.files {
        let content = match &recorded.files[*place] {
            Value::String(text) => text.clone().into_bytes(),
            bytes => STANDARD.decode(bytes["base64"].as_str().unwrap()).unwrap(),
        };
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn a_tokenizer_is_all_its_files() {
    let recorded = recorded();
    assert!(recorded.cases.len() > 30);
    let context = context();
    let mut faults = Vec::new();
    for case in &recorded.cases {
        let folder = folder(&recorded, case);
        let files = Files::directory(folder.path());
        let mut compare = |what: &str, text: &str, found: Result<Vec<u32>>, expected: &Vec<u32>| {
            if found.as_ref().ok() != Some(expected) {
                faults.push(format!("{}, {what} {text:?}: {found:?}\n   right is {expected:?}", case.name));
            }
        };
        let found = TokenizerFiles::find(&files, "", &context).unwrap();
        let whole = Tokens::read_whole(&found);
        let cut = Tokens::read(&found, recorded.longest, false);
        let settings = TokenizerSettings::read(&files, "", &context).unwrap();
        for (at, text) in recorded.texts.iter().enumerate() {
            let whole = whole.as_ref().map_err(Clone::clone);
            let ids = whole.and_then(|tokens| tokens.encode_prompt(text, Specials::Added));
            // Whether prompts are split is the registration's to say, as templates write special tokens.
            if !settings.splits_special_tokens() {
                compare("whole", text, ids, &case.ids[at]);
            }
            let ids = cut.as_ref().map_err(Clone::clone).and_then(|tokens| tokens.encode(text));
            if !text.is_empty() {
                compare("cut", text, ids.map(|ids| ids.ids), &case.cut[at]);
            }
        }
        for (name, token) in &case.special {
            if settings.token(name).as_ref() != Some(token) {
                faults.push(format!(
                    "{}, {name}: {:?}\n   right is {token:?}",
                    case.name,
                    settings.token(name)
                ));
            }
        }
        // Prompts are taken apart for what people write.
        if let Ok(tokens) = whole {
            tokens.splitting_special_tokens(true, &[]).unwrap();
        }
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn a_token_without_a_row_fails_only_the_texts_that_have_it() {
    let recorded = recorded();
    let case = recorded.cases.iter().find(|case| case.name == "tokens that only the settings have").unwrap();
    let folder = folder(&recorded, case);
    let files = Files::directory(folder.path());
    let found = TokenizerFiles::find(&files, "", &context()).unwrap();
    let tokens = Tokens::read_whole(&found).unwrap();
    let turn = tokens.id("<|turn|>").unwrap() as usize;
    let tokens = tokens.with_rows(turn);
    assert!(tokens.encode_prompt("The cat.", Specials::Added).is_ok());
    let error = tokens.encode_prompt("The <|turn|> cat.", Specials::Added).unwrap_err();
    assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("<|turn|>")), "{error}");
}

#[test]
fn a_folder_without_a_vocabulary_lacks_its_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::directory(folder.path());
    let error = TokenizerFiles::find(&files, "", &context()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    for (name, content) in
        [("tokenizer.model", &b"\xff\xff\xff"[..]), ("spiece.model", b""), ("vocab.txt", b"\xff")]
    {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), content).unwrap();
        let files = Files::directory(folder.path());
        let found = TokenizerFiles::find(&files, "", &context()).unwrap();
        let error = Tokens::read_whole(&found).err().unwrap();
        assert!(matches!(error, Error::InvalidTokenizer { .. }), "{name}: {error}");
    }
}

#[test]
fn what_a_tokenizer_is_built_from_is_counted_before_it_is_built() {
    let reason = |contents: &[(&str, String)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in contents {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let found = TokenizerFiles::find(&Files::directory(folder.path()), "", &context()).unwrap();
        Tokens::read_whole(&found).err().unwrap().to_string()
    };
    let settings = ("tokenizer_config.json", r#"{"tokenizer_class": "GPT2Tokenizer"}"#.to_owned());
    let pairs = |vocabulary: String, merges: String| {
        reason(&[settings.clone(), ("vocab.json", vocabulary), ("merges.txt", merges)])
    };
    let (small, one) = (r#"{"a": 0, "b": 1, "ab": 2}"#.to_owned(), "a b\n".to_owned());
    let many = pairs(small, one.repeat((2 << 20) + 1));
    assert!(many.contains("1398101 merges"), "{many}");
    let nested = pairs(format!(r#"{{"a": [{}0]}}"#, "0,".repeat(1 << 20)), one);
    assert!(nested.contains("too many values"), "{nested}");
    let lines = reason(&[("vocab.txt", "[UNK]\n".repeat((1 << 20) + 1))]);
    assert!(lines.contains("1048576 tokens"), "{lines}");
}

#[test]
fn classes_that_read_a_vocabulary_in_their_own_way_are_refused_by_name() {
    let find = |file: &str, class: &str, kind: &str| {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write(file, "[UNK]\na\n".to_owned());
        write("tokenizer_config.json", class.to_owned());
        write("config.json", format!(r#"{{"model_type": "{kind}"}}"#));
        TokenizerFiles::find(&Files::directory(folder.path()), "", &context()).map(drop)
    };
    let named = |class: &str| format!(r#"{{"tokenizer_class": "{class}"}}"#);
    for (file, class, kind) in [
        ("vocab.txt", "BertJapaneseTokenizer", "bert"),
        ("vocab.txt", "PhobertTokenizer", "roberta"),
        ("vocab.txt", "BertweetTokenizer", "roberta"),
        ("sentencepiece.bpe.model", "CamembertTokenizer", "camembert"),
        ("tokenizer.model", "GemmaTokenizerFast", "gemma"),
        ("spiece.model", "AlbertTokenizer", "albert"),
    ] {
        let error = find(file, &named(class), kind).unwrap_err();
        let Error::UnsupportedSetting { found, .. } = &error else { panic!("{error}") };
        assert_eq!(found, class);
    }
    assert!(find("tokenizer.model", "{}", "gemma").unwrap_err().to_string().contains("GemmaTokenizer"));
    for (file, settings, kind) in [
        ("vocab.txt", "{}".to_owned(), "bert"),
        ("vocab.txt", named("ElectraTokenizerFast"), "electra"),
        ("tokenizer.model", named("LlamaTokenizer"), "mistral"),
        ("spiece.model", named("PegasusTokenizer"), "bigbird_pegasus"),
        ("tokenizer.model", "{}".to_owned(), "internlm2"),
    ] {
        assert_eq!(find(file, &settings, kind), Ok(()), "{file} {settings}");
    }
}
