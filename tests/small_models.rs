//! The small trained models of this repository give answers that make sense, not only answers of the right shape:
//! sentences of one meaning are near, and words find the picture that they are about.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use candle_actors::{Engine, Source};
use model_actors::ImageSource;
use serde::Deserialize;

/// Of so many captions, each among the pictures of its group, at least nine in ten must find their own.
const GROUPS: usize = 2;

#[derive(Deserialize)]
struct HeldOut {
    group: usize,
    pictures: Vec<Scene>,
}

#[derive(Deserialize)]
struct Scene {
    file: String,
    caption: String,
}

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn similarity(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(x, y)| x * y).sum()
}

#[tokio::test]
async fn the_similar_sentence_ranks_first() {
    let source = Source::directory(models().join("english-embedding-small"));
    let engine = Engine::builder().text_embedding("english", source).start().await.unwrap();
    let sentences = [
        "The cat is sleeping on the sofa.",
        "The stock market fell sharply on Monday.",
        "A kitten naps on the couch.",
        "She plays the violin in an orchestra.",
    ];
    let vectors = engine.text_embedding("english").unwrap().embed_batch(sentences).await.unwrap();
    let near = |index: usize| similarity(&vectors[0], &vectors[index]);
    assert!(near(2) > near(1) && near(2) > near(3), "{} {} {}", near(1), near(2), near(3));
    assert!(engine.shutdown().await.is_clean());
}

#[tokio::test]
async fn words_find_their_picture_among_twenty_that_no_training_saw() {
    let source = Source::directory(models().join("shapes-image-embedding"));
    let engine = Engine::builder().image_embedding("finder", source).start().await.unwrap();
    let finder = engine.image_embedding("finder").unwrap();
    let folder = models().join("shapes/held_out");
    let data: HeldOut =
        serde_json::from_slice(&std::fs::read(folder.join("held_out.json")).unwrap()).unwrap();
    let (mut found, mut asked) = (0, 0);
    for scenes in data.pictures.chunks(data.group).take(GROUPS) {
        let images = scenes.iter().map(|scene| ImageSource::Path(folder.join(&scene.file)));
        let images = finder.embed_images(images).await.unwrap();
        let texts = finder.embed_texts(scenes.iter().map(|scene| scene.caption.clone())).await.unwrap();
        for (own, text) in texts.iter().enumerate() {
            let near = |image: &usize| similarity(text, &images[*image]);
            let nearest = (0..images.len()).max_by(|a, b| near(a).total_cmp(&near(b)));
            found += usize::from(nearest == Some(own));
            asked += 1;
        }
    }
    assert_eq!(asked, 20 * GROUPS);
    assert!(found * 10 >= asked * 9, "{found} of {asked} captions found their picture");
    assert!(engine.shutdown().await.is_clean());
}
