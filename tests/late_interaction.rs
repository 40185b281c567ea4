//! Models of late interaction (ColBERT) in the files of Stanford and of PyLate give the vectors of their references for
//! queries and for documents, alone and in any batch, and refuse what they do not understand. The models are tiny and
//! random; `tests/references/late_interaction.py` makes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_actors::{
    EmbedOutputs, EmbedPrompt, EmbedTexts, Engine, Error, LoadOptions, Source, StandaloneModel,
    TextEmbeddingModel, Truncate,
};
use candle_core::{DType, Device, Tensor};
use common::difference;
use common::folders::{copied, families_of};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Largest difference from the reference, and between a text alone and the same in a batch.
const TOLERANCE: f32 = 1e-4;
const BATCH_TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    max_sim: f32,
    cases: Vec<Case>,
}

/// Input of the reference, and its output.
#[derive(Deserialize)]
struct Case {
    side: String,
    text: String,
    vectors: Vec<Vec<f32>>,
}

fn folder(family: &str) -> PathBuf {
    common::root().join("tests/fixtures/late_interaction").join(family)
}

fn load(family: &str) -> TextEmbeddingModel {
    TextEmbeddingModel::load(Source::directory(folder(family))).unwrap()
}

fn expected(family: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(folder(family).join("expected.json")).unwrap()).unwrap()
}

const TOKEN_VECTORS: fn() -> EmbedOutputs =
    || EmbedOutputs::default().with_vectors(false).with_token_vectors(true);

fn request(side: &str, texts: &[&str]) -> EmbedTexts {
    let prompt = EmbedPrompt::Named(side.to_owned());
    EmbedTexts::new(texts.iter().copied()).with_outputs(TOKEN_VECTORS()).with_prompt(prompt)
}

#[test]
fn queries_and_documents_get_the_vectors_of_the_reference() {
    for family in families_of("late_interaction") {
        let (model, expected) = (load(&family), expected(&family));
        let (mut largest, mut apart) = (0.0f32, 0.0f32);
        for side in ["query", "document"] {
            let cases: Vec<&Case> = expected.cases.iter().filter(|case| case.side == side).collect();
            let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
            let together = model.embeddings(&request(side, &texts)).unwrap().token_vectors;
            for (case, together) in cases.iter().zip(&together) {
                let alone = model.embeddings(&request(side, &[&case.text])).unwrap();
                let alone = &alone.token_vectors[0];
                assert_eq!(alone.len(), case.vectors.len(), "{family}: {side} {:?}", case.text);
                for (row, expected) in alone.rows().zip(&case.vectors) {
                    largest = largest.max(difference(row, expected));
                }
                for (row, other) in alone.rows().zip(together.rows()) {
                    apart = apart.max(difference(row, other));
                }
            }
        }
        let of = |side: &str| {
            let case = expected.cases.iter().find(|case| case.side == side).unwrap();
            model.embeddings(&request(side, &[&case.text])).unwrap().token_vectors.remove(0)
        };
        let score = of("query").max_sim(&of("document"));
        println!("{family}: largest difference {largest:.2e}, in batches {apart:.2e}, score {score}");
        assert!(largest <= TOLERANCE && apart <= BATCH_TOLERANCE, "{family}: {largest}, {apart}");
        assert!((score - expected.max_sim).abs() < 1e-3, "{family}: {score}, {}", expected.max_sim);
    }
}

#[test]
fn texts_are_documents_unless_they_are_named_queries() {
    let model = load("stanford");
    let plain = EmbedTexts::from("The cat sleeps.").with_outputs(TOKEN_VECTORS());
    let written = plain.clone().with_prompt(EmbedPrompt::Text(String::new()));
    let document = model.embeddings(&request("document", &["The cat sleeps."])).unwrap();
    let query = model.embeddings(&request("query", &["The cat sleeps."])).unwrap();
    for other in [plain, written] {
        assert_eq!(model.embeddings(&other).unwrap(), document);
    }
    // A query is filled up.
    assert_eq!((query.token_vectors[0].len(), query.usage.prompt_tokens), (16, 16));
    assert!(document.token_vectors[0].len() < document.usage.prompt_tokens, "a full stop has no vector");
    assert_eq!((model.dimensions(), model.max_tokens()), (12, 24));
}

#[test]
fn a_text_that_is_too_long_is_cut_or_refused_by_the_length_of_its_side() {
    let model = load("pylate");
    let long = "the quick brown fox ".repeat(9);
    for (side, most) in [("query", 16), ("document", 24)] {
        let cut = model.embeddings(&request(side, &["a", &long])).unwrap();
        assert_eq!(cut.cut, [1], "{side}");
        assert_eq!(cut.token_vectors[1].len(), most, "{side}");
        let refused = request(side, &["a", &long]).with_truncate(Truncate::Refuse);
        match model.embeddings(&refused).unwrap_err() {
            Error::TextTooLong { index: 1, tokens, limit } => assert!(limit == most && tokens > most),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_such_a_model_does_not_have_is_refused() {
    let model = load("pylate");
    let asked = |outputs| EmbedTexts::from("a").with_outputs(outputs);
    for request in [
        EmbedTexts::from("a"),
        asked(EmbedOutputs::default().with_token_vectors(true)),
        asked(TOKEN_VECTORS().with_sparse(true)),
        asked(TOKEN_VECTORS()).with_dimensions(4),
    ] {
        let error = model.embeddings(&request).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(words) if words.contains("token_vectors")), "{error}");
    }
}

/// A copy of a model whose file has this value in place of its own.
fn changed(family: &str, file: &str, name: &str, value: Value) -> TempDir {
    let own = copied(&folder(family));
    change(&own, file, name, value);
    own
}

fn change(own: &TempDir, file: &str, name: &str, value: Value) {
    let path = own.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[name] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn settings_that_change_the_vectors_and_are_not_understood_are_refused_by_name() {
    const METADATA: &str = "artifact.metadata";
    const PYLATE: &str = "config_sentence_transformers.json";
    let cases = [
        ("stanford", METADATA, "similarity", json!("l2")),
        ("stanford", METADATA, "interaction", json!("flipr")),
        ("stanford", METADATA, "relu", json!(true)),
        ("stanford", METADATA, "pool_factor", json!(2)),
        ("stanford", METADATA, "a_new_setting", json!(1)),
        ("stanford", METADATA, "query_maxlen", json!(0)),
        ("stanford", METADATA, "query_token_id", json!("[unused9]")),
        ("stanford", "tokenizer_config.json", "padding_side", json!("left")),
        ("pylate", PYLATE, "similarity_fn_name", json!("cosine")),
        ("pylate", PYLATE, "a_new_setting", json!("x")),
        ("pylate", PYLATE, "truncate_dim", json!(8)),
        ("pylate", PYLATE, "document_prefix", json!("[X] ")),
        ("pylate", "1_Dense/config.json", "a_new_setting", json!(true)),
        ("pylate", "1_Dense/config.json", "activation_function", json!("torch.nn.modules.activation.Mish")),
        ("pylate", "3_Dense/config.json", "use_residual", json!(true)),
    ];
    for (family, file, name, value) in cases {
        let own = changed(family, file, name, value.clone());
        let error = TextEmbeddingModel::load(Source::directory(own.path())).err();
        let words = error.unwrap_or_else(|| panic!("{file}: {name} {value} is taken")).to_string();
        let told = [name, value.as_str().unwrap_or(name), "length", "activation", "residual"];
        assert!(told.iter().any(|told| words.contains(told)), "{file}: {name}: {words}");
    }
    let own = changed("stanford", METADATA, "a_new_setting", json!(1));
    let options = LoadOptions::default().with_allow_unread(true);
    assert!(TextEmbeddingModel::load_with(Source::directory(own.path()), options).is_ok());
}

#[test]
fn files_that_do_not_go_together_are_refused() {
    const PYLATE: &str = "config_sentence_transformers.json";
    let refused = |own: &TempDir, told: &str| {
        let error = TextEmbeddingModel::load(Source::directory(own.path())).err();
        let words = error.unwrap_or_else(|| panic!("a model is loaded, not refused for {told}")).to_string();
        assert!(words.contains(told), "{told}: {words}");
    };
    // A table in place of the encoder.
    let modules = json!([
        {"idx": 0, "path": "", "type": "sentence_transformers.models.StaticEmbedding"},
        {"idx": 1, "path": "1_Dense", "type": "pylate.models.Dense.Dense"}
    ]);
    let own = changed("pylate", PYLATE, "do_query_expansion", json!(false));
    std::fs::write(own.path().join("modules.json"), modules.to_string()).unwrap();
    let table = Tensor::zeros((400, 32), DType::F32, &Device::Cpu).unwrap();
    let table = HashMap::from([("embedding.weight", table)]);
    candle_core::safetensors::save(&table, own.path().join("model.safetensors")).unwrap();
    refused(&own, "a table of tokens");
    // Vectors of tokens are asked for, and the layers that make them are not there.
    let own = copied(&folder("pylate"));
    std::fs::remove_file(own.path().join("modules.json")).unwrap();
    refused(&own, "modules.json");
    // Each query would be filled up to as many.
    let own = changed("pylate", PYLATE, "query_length", json!(5000));
    change(&own, "config.json", "max_position_embeddings", json!(5000));
    change(&own, "sentence_bert_config.json", "max_seq_length", json!(5000));
    change(&own, "tokenizer_config.json", "model_max_length", json!(5000));
    refused(&own, "1024 are the most");
    // The markers are the last two tokens, 400 and 401.
    let own = with_rows("word_embeddings.weight", 401);
    change(&own, "config.json", "vocab_size", json!(401));
    refused(&own, "the model has 401 rows");
    let own = with_rows("linear.weight", 0);
    change(&own, "artifact.metadata", "dim", Value::Null);
    refused(&own, "vectors of no length");
}

/// A copy of Stanford's model with so many rows of a tensor.
fn with_rows(tensor: &str, rows: usize) -> TempDir {
    let own = copied(&folder("stanford"));
    let file = own.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let whole = tensors.iter_mut().find(|(name, _)| name.ends_with(tensor)).unwrap().1;
    *whole = whole.narrow(0, 0, rows).unwrap().contiguous().unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    own
}

#[test]
fn tokens_are_counted_with_the_marker() {
    for family in families_of("late_interaction") {
        let model = load(&family);
        let made = model.embeddings(&request("document", &["A cat, asleep."])).unwrap();
        assert_eq!(model.count_tokens("A cat, asleep.").unwrap(), made.usage.prompt_tokens, "{family}");
    }
}

#[test]
fn each_setting_of_a_side_changes_its_vectors() {
    let side =
        |model: &TextEmbeddingModel, side| model.embeddings(&request(side, &["A cat, asleep."])).unwrap();
    for (family, file, name, value, changes) in [
        ("stanford", "artifact.metadata", "attend_to_mask_tokens", json!(true), "query"),
        ("stanford", "artifact.metadata", "query_maxlen", json!(12), "query"),
        ("stanford", "artifact.metadata", "mask_punctuation", json!(false), "document"),
        ("pylate", "config_sentence_transformers.json", "attend_to_expansion_tokens", json!(true), "query"),
        ("pylate", "config_sentence_transformers.json", "do_query_expansion", json!(false), "query"),
        ("pylate", "config_sentence_transformers.json", "skiplist_words", json!(["."]), "document"),
        ("pylate", "config_sentence_transformers.json", "document_length", json!(5), "document"),
        ("pylate", "config_sentence_transformers.json", "query_prefix", json!("[D] "), "query"),
    ] {
        let own = changed(family, file, name, value);
        let (model, other) = (load(family), TextEmbeddingModel::load(Source::directory(own.path())).unwrap());
        for name_of_side in ["query", "document"] {
            let same = side(&model, name_of_side).token_vectors == side(&other, name_of_side).token_vectors;
            assert_eq!(same, name_of_side != changes, "{family}: {name}, {name_of_side}");
        }
    }
}

#[tokio::test]
async fn through_the_actors_queries_and_documents_are_in_one_batch() {
    let engine = Engine::builder().text_embedding("colbert", Source::directory(folder("pylate")));
    let engine = engine.start().await.unwrap();
    let handle = engine.text_embedding("colbert").unwrap().outputs(TOKEN_VECTORS());
    let (queries, documents) = (handle.clone().prompt("query"), handle.prompt("document"));
    let texts = ["Where does the cat sleep?", "a"];
    let (queries, documents) = tokio::join!(queries.embeddings(texts), documents.embeddings(texts));
    let model = load("pylate");
    for (side, found) in [("query", queries.unwrap()), ("document", documents.unwrap())] {
        let alone = model.embeddings(&request(side, &texts)).unwrap();
        for (found, alone) in found.token_vectors.iter().zip(&alone.token_vectors) {
            assert!(difference(found.values(), alone.values()) < BATCH_TOLERANCE, "{side}");
        }
    }
    engine.shutdown().await;
}
