//! Preprocessing of images agrees with the reference processors. For photographs of odd sizes one value in
//! 401 is compared, and the mean of all; for every resampling filter every pixel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{ImageEmbeddingModel, Picture, Source, StandaloneModel};
use common::photographs::photograph;
use common::{root, similarity};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    resizes: Vec<Resize>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    photograph: String,
    height: usize,
    width: usize,
    sum: f64,
    stride: usize,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Resize {
    filter: u32,
    photograph: String,
    width: usize,
    height: usize,
    hash: u32,
}

fn expected() -> Expected {
    let path = root().join("tests/fixtures/image_embedding/pixels.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Model that takes images of any size, with a preprocessing of its own.
fn model_with(config: &Value) -> ImageEmbeddingModel {
    let folder = tempfile::tempdir().unwrap();
    let fixture = root().join("tests/fixtures/image_embedding/dinov2");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("preprocessor_config.json"), config.to_string()).unwrap();
    ImageEmbeddingModel::load(Source::directory(folder.path())).unwrap()
}

/// Size of a step of 1/255 after normalization, for each channel.
fn steps(config: &Value) -> [f32; 3] {
    let deviation: [f32; 3] = serde_json::from_value(config["image_std"].clone()).unwrap();
    deviation.map(|deviation| 1.0 / 255.0 / deviation)
}

#[test]
fn photographs_are_preprocessed_like_the_reference() {
    let mut names: Vec<(String, f32)> = Vec::new();
    let cases = expected().cases;
    assert!(cases.iter().any(|case| case.photograph == "rocket.webp"));
    for case in cases {
        let model = model_with(&case.config);
        let (width, height, values) = model.preprocess(&photograph(&case.photograph)).unwrap();
        assert_eq!((width, height), (case.width, case.height), "{} {}", case.name, case.photograph);
        let steps = steps(&case.config);
        let step = |index: usize| steps[index * case.stride / (width * height)];
        let found = values.iter().step_by(case.stride);
        let differences = found.zip(&case.values).enumerate();
        let largest = differences
            .map(|(index, (found, expected))| (found - expected).abs() / step(index))
            .fold(0.0, f32::max);
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        let drift = (sum - case.sum).abs() / values.len() as f64;
        assert!(drift < 1e-7, "{} {}: the mean is off by {drift}", case.name, case.photograph);
        assert!(largest <= 0.001, "{} {}: {largest}/255", case.name, case.photograph);
        match names.iter_mut().find(|(other, _)| *other == case.name) {
            Some((_, all)) => *all = all.max(largest),
            None => names.push((case.name, largest)),
        }
    }
    for (name, largest) in names {
        println!("{name}: largest difference {largest:.4}/255");
    }
}

#[test]
fn every_filter_gives_pillows_bytes() {
    let cases = expected().resizes;
    assert_eq!(cases.len(), 42);
    for case in cases {
        let config = json!({
            "size": {"height": case.height, "width": case.width}, "resample": case.filter, "do_center_crop": false,
            "do_rescale": false, "do_normalize": false
        });
        let (width, height, values) = model_with(&config).preprocess(&photograph(&case.photograph)).unwrap();
        assert_eq!((width, height), (case.width, case.height));
        let hash = values.iter().fold(0u32, |hash, value| hash.wrapping_mul(31).wrapping_add(*value as u32));
        assert_eq!(hash, case.hash, "filter {} {} {width}x{height}", case.filter, case.photograph);
    }
}

/// A JPEG of the tests, as it is decoded and as the references decode it.
fn both_ways(file: &str, pixels: &str) -> (Picture, Picture) {
    let decoded = photograph(file);
    let reference = photograph(pixels);
    assert_eq!((decoded.width, decoded.height), (reference.width, reference.height), "{file}");
    (decoded, reference)
}

#[test]
fn a_jpeg_gives_the_vectors_of_the_pixels_that_the_references_decode() {
    let (decoded, reference) = both_ways("rocket.jpg", "rocket.webp");
    let differences = || decoded.rgb.iter().zip(&reference.rgb).map(|(left, right)| left.abs_diff(*right));
    let share =
        differences().filter(|difference| *difference > 0).count() as f64 / reference.rgb.len() as f64;
    let largest = differences().max().unwrap();
    println!("rocket.jpg: up to {largest} of 255, in {:.2} % of the bytes", share * 100.0);
    assert!(largest <= 2 && share < 0.01, "{largest}, {share}");

    let mut cases = vec![("rocket.jpg".to_owned(), decoded, reference)];
    // With half the resolution in colour, which the image crate rounds differently everywhere: by 0.4 of 255 on
    // average.
    for name in ["cat", "coffee", "face"] {
        let (decoded, reference) = both_ways(&format!("{name}.jpg"), &format!("{name}_jpg.webp"));
        cases.push((format!("{name}.jpg"), decoded, reference));
    }
    // Random weights tell more of a difference than trained ones do.
    let models = [
        ("models/shapes-image-embedding", 0.9999),
        ("tests/fixtures/image_embedding/clip", 0.9999),
        ("tests/fixtures/image_embedding/siglip", 0.9998),
    ];
    for (folder, least) in models {
        let model = ImageEmbeddingModel::load(Source::directory(root().join(folder))).unwrap();
        for (name, decoded, reference) in &cases {
            let vectors = model.embed_images(&[decoded.clone(), reference.clone()]).unwrap();
            let cosine = similarity(&vectors[0], &vectors[1]);
            println!("{folder}, {name}: cosine {cosine:.7}");
            assert!(cosine >= least, "{folder}, {name}: {cosine}");
        }
    }
}
