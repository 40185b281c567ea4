//! Encoders of candle-transformers, of texts and of images: their vectors are those of their references, alone and in a batch,
//! and what they do not support is refused by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "transformers")]

mod common;

use std::path::PathBuf;

use candle_actors::{Error, ImageEmbeddingModel, Picture, Source, StandaloneModel, TextEmbeddingModel};
use common::photographs::photograph;
use common::{Case, difference, root};
use serde::Deserialize;
use serde_json::Value;

const OF_TEXTS: [&str; 3] = ["sentence_t5", "t5_gated", "deberta_v3"];
const OF_IMAGES: [&str; 2] = ["vit", "chinese_clip"];

fn folder(capability: &str, name: &str) -> PathBuf {
    root().join("tests/fixtures").join(capability).join(name)
}

#[test]
fn texts_have_the_vectors_of_their_references() {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    for name in OF_TEXTS {
        let folder = folder("transformers_text_embedding", name);
        let model = TextEmbeddingModel::load(Source::directory(&folder)).unwrap();
        let file: File =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let texts: Vec<&str> = file.cases.iter().map(|case| case.text.as_str()).collect();
        let together = model.embed(&texts).unwrap();
        let mut most: f32 = 0.0;
        for (case, vector) in file.cases.iter().zip(&together) {
            most = most.max(difference(vector, &case.embedding));
            assert_eq!(&model.embed(&[&case.text]).unwrap()[0], vector, "{name}: {:?}", case.text);
        }
        println!("{name}: {most:e}");
        assert!(most < 1e-4, "{name}: {most}");
    }
}

#[test]
fn images_have_the_vectors_of_their_references() {
    #[derive(Deserialize)]
    struct Image {
        photograph: String,
        features: Vec<f32>,
    }
    #[derive(Deserialize)]
    struct Text {
        text: String,
        features: Vec<f32>,
    }
    #[derive(Deserialize)]
    struct File {
        images: Vec<Image>,
        texts: Vec<Text>,
    }
    // Vectors are of length 1 here.
    let unit = |vector: &[f32]| {
        let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
        vector.iter().map(|number| number / length).collect::<Vec<f32>>()
    };
    let mut folders = OF_IMAGES.map(|name| folder("transformers_image_embedding", name)).to_vec();
    // Models of published sizes, which tests/references/open_clip_models.py writes elsewhere.
    folders.extend(std::env::var_os("CANDLE_ACTORS_OPEN_CLIP").map(PathBuf::from));
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = ImageEmbeddingModel::load(Source::directory(&folder)).unwrap();
        let file: File =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let pictures: Vec<Picture> = file.images.iter().map(|image| photograph(&image.photograph)).collect();
        let vectors = model.embed_images(&pictures).unwrap();
        let pairs = vectors.iter().zip(&file.images);
        let most =
            pairs.map(|(vector, image)| difference(vector, &unit(&image.features))).fold(0.0, f32::max);
        println!("{name}: {most:e}");
        assert!(most < 2e-3, "{name}: {most}");
        assert_eq!(model.has_text_side(), !file.texts.is_empty(), "{name}");
        let texts: Vec<&str> = file.texts.iter().map(|case| case.text.as_str()).collect();
        let vectors = if texts.is_empty() { Vec::new() } else { model.embed_texts(&texts).unwrap() };
        let pairs = vectors.iter().zip(&file.texts);
        let most = pairs.map(|(vector, text)| difference(vector, &unit(&text.features))).fold(0.0, f32::max);
        println!("{name}, texts: {most:e}");
        assert!(most < 1e-4, "{name}: {most}");
    }
}

#[test]
fn what_the_library_does_not_finish_is_refused_before_it_begins() {
    let own = tempfile::tempdir().unwrap();
    let fixture = folder("transformers_text_embedding", "deberta_v3");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), own.path().join(file)).unwrap();
    }
    let file = own.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["conv_kernel_size"] = 3.into();
    std::fs::write(&file, config.to_string()).unwrap();
    let error = TextEmbeddingModel::load(Source::directory(own.path())).err().unwrap();
    assert!(
        matches!(&error, Error::UnsupportedSetting { what, .. } if what == "conv_kernel_size"),
        "{error}"
    );
}
