//! Matrices that are quantised to 8 bits at load: vectors stay near those of 32 bits, rankings and answers stay, memory
//! is less, and other capabilities refuse it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use candle_actors::{
    Error, GenerateText, ImageEmbeddingModel, LoadOptions, Message, Source, StandaloneModel,
    TextEmbeddingModel, TextGenerationModel,
};
use common::{minilm, references, similarity, small_model};

fn options() -> LoadOptions {
    LoadOptions::default().with_eight_bit(true)
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// Compares with the vectors of 32 bits; gives the smallest cosine.
fn nearest(folder: &Path, texts: &[&str]) -> f32 {
    let wide = TextEmbeddingModel::load(Source::directory(folder)).unwrap();
    let short = TextEmbeddingModel::load_with(Source::directory(folder), options()).unwrap();
    let (memory, less) = (wide.footprint().shared, short.footprint().shared);
    assert!(less < memory, "{less} of {memory}");
    let alone: Vec<Vec<f32>> =
        texts.iter().map(|text| short.embed(&[text]).unwrap().swap_remove(0)).collect();
    let (wide, short) = (wide.embed(texts).unwrap(), short.embed(texts).unwrap());
    for (alone, together) in alone.iter().zip(&short) {
        assert!(similarity(alone, together) > 0.999_99, "a text alone and in a batch");
    }
    assert!(wide != short, "nothing was rounded");
    wide.iter().zip(&short).map(|(wide, short)| similarity(wide, short)).fold(1.0, f32::min)
}

#[test]
fn vectors_stay_near_those_of_32_bits() {
    let cases = references("english_small");
    let texts: Vec<&str> =
        cases.iter().map(|case| case.text.as_str()).filter(|text| !text.is_empty()).collect();
    let cosine = nearest(&small_model(), &texts);
    println!("the small model: smallest cosine {cosine:.5}");
    assert!(cosine >= 0.99, "{cosine}");
    let Some(folder) = minilm() else { return };
    let cases = references("minilm");
    let texts: Vec<&str> =
        cases.iter().map(|case| case.text.as_str()).filter(|text| !text.is_empty()).collect();
    let cosine = nearest(&folder, &texts);
    println!("MiniLM: smallest cosine {cosine:.5}");
    assert!(cosine >= 0.99, "{cosine}");
}

#[test]
fn rankings_of_held_out_triples_stay() {
    let json = std::fs::read_to_string(model("english-embedding-small/paraphrases.json")).unwrap();
    let triples: Vec<[String; 3]> = serde_json::from_str(&json).unwrap();
    let rank = |options: LoadOptions| -> Vec<bool> {
        let model = TextEmbeddingModel::load_with(Source::directory(small_model()), options).unwrap();
        let rank = |triple: &[String; 3]| {
            let vectors = model.embed(triple).unwrap();
            similarity(&vectors[0], &vectors[1]) > similarity(&vectors[0], &vectors[2])
        };
        triples.iter().map(rank).collect()
    };
    assert_eq!(rank(options()), rank(LoadOptions::default()));
}

#[test]
fn a_chat_answers_as_with_32_bits() {
    let ask = |options: LoadOptions| {
        let model = TextGenerationModel::load_with(Source::directory(model("shapes-chat")), options).unwrap();
        let request = GenerateText::chat([Message::user("How many sides does a triangle have?")]);
        (model.footprint().shared, model.generate(&[request]).unwrap().swap_remove(0).text)
    };
    let ((less, short), (memory, wide)) = (ask(options()), ask(LoadOptions::default()));
    assert_eq!(short, wide);
    assert!(less < memory, "{less} of {memory}");
}

#[test]
fn other_capabilities_refuse_it() {
    let folder = Source::directory(model("shapes-image-embedding"));
    let error = ImageEmbeddingModel::load_with(folder, options()).err().unwrap();
    assert!(matches!(&error, Error::InvalidSetting { setting, .. } if setting == "eight_bit"), "{error}");
}
