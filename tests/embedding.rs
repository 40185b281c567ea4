//! Text embedding agrees with sentence-transformers, for each text alone and in any batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::{Source, StandaloneModel, TextEmbeddingModel};
use common::{Case, difference, minilm, references, similarity, small_model};

/// The references are rounded to seven digits.
const TOLERANCE: f32 = 1e-4;

fn largest(cases: &[Case], vectors: &[Vec<f32>]) -> f32 {
    let differences = cases.iter().zip(vectors).map(|(case, vector)| difference(&case.embedding, vector));
    differences.fold(0.0, f32::max)
}

/// Embeds each text alone and all in mixed batches, and compares with the references and with each other.
fn compare(model: &TextEmbeddingModel, cases: &[Case]) {
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let alone: Vec<Vec<f32>> =
        texts.iter().map(|text| model.embed(&[text]).unwrap().swap_remove(0)).collect();
    let together = model.embed(&texts).unwrap();
    let reversed: Vec<&str> = texts.iter().rev().copied().collect();
    let mut by_sevens: Vec<Vec<f32>> =
        reversed.chunks(7).flat_map(|batch| model.embed(batch).unwrap()).collect();
    by_sevens.reverse();
    for (name, vectors) in [("alone", &alone), ("together", &together), ("by sevens", &by_sevens)] {
        let largest = largest(cases, vectors);
        println!("{name}: {} texts, largest difference {largest:.2e}", cases.len());
        assert!(largest <= TOLERANCE, "{name}: {largest}");
    }
    for (alone, together) in alone.iter().zip(&together) {
        assert!(difference(alone, together) <= 1e-5);
    }
}

#[test]
fn minilm_agrees_with_its_references() {
    let Some(directory) = minilm() else { return };
    let model = TextEmbeddingModel::load(Source::directory(directory)).unwrap();
    assert_eq!((model.dimensions(), model.max_tokens()), (384, 256));
    compare(&model, &references("minilm"));
}

#[test]
fn the_small_model_agrees_with_its_references() {
    let model = TextEmbeddingModel::load(Source::directory(small_model())).unwrap();
    compare(&model, &references("english_small"));
}

#[test]
fn paraphrases_are_nearer_than_unrelated_sentences() {
    let model = TextEmbeddingModel::load(Source::directory(small_model())).unwrap();
    let vectors = model
        .embed(&[
            "A man is playing a guitar.",
            "Someone plays the guitar.",
            "The stock market fell sharply on Tuesday.",
            "Share prices dropped on Tuesday.",
        ])
        .unwrap();
    for (paraphrases, unrelated) in [((0, 1), (0, 2)), ((2, 3), (1, 3))] {
        let near = similarity(&vectors[paraphrases.0], &vectors[paraphrases.1]);
        let far = similarity(&vectors[unrelated.0], &vectors[unrelated.1]);
        assert!(near > far, "{near} against {far}");
    }
}
