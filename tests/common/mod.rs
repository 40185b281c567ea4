//! Helpers of several test files: paths of models and references, and comparison of vectors.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod folders;
pub(crate) mod fixtures;
pub(crate) mod fragile;
pub(crate) mod gguf;
pub(crate) mod large_llama;
pub(crate) mod model;
pub(crate) mod photographs;
pub(crate) mod text;
#[cfg(feature = "hub")]
pub(crate) mod server;
pub(crate) mod web;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_actors::{CallOptions, Capability, ModelHandle};
use serde::Deserialize;

/// Root folder of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Small text embedding model of the repository.
pub(crate) fn small_model() -> PathBuf {
    root().join("models/english-embedding-small")
}

/// Path of all-MiniLM-L6-v2 in the folder that `CANDLE_ACTORS_MODELS` names; none with a message if it is not
/// there.
pub(crate) fn minilm() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("CANDLE_ACTORS_MODELS") else {
        eprintln!("skipped: CANDLE_ACTORS_MODELS is not set");
        return None;
    };
    Some(Path::new(&folder).join("all-MiniLM-L6-v2"))
}

/// Text and its embedding by the reference implementation.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) embedding: Vec<f32>,
}

/// Reads `tests/references/<name>.json`.
pub(crate) fn references(name: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let path = root().join(format!("tests/references/{name}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice::<File>(&text).unwrap().cases
}

/// Waits until no worker of a model runs: each worker ends after its batch, and an unload ends after them.
/// The next request starts new ones.
pub(crate) async fn until_nothing_runs<C: Capability>(model: &ModelHandle<C>) {
    model.unload(Duration::from_secs(60)).await.unwrap();
}

/// Reads so many chunks of a stream and drops it. Returns the number of steps that the model, whose counter
/// is `steps`, begins after that.
pub(crate) async fn steps_after_drop<C: Capability>(
    model: &ModelHandle<C>,
    request: C::Request,
    pieces: usize,
    steps: impl Fn() -> u64,
) -> u64 {
    let mut stream = model.stream(request, CallOptions::default()).await.unwrap();
    for _ in 0..pieces {
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    let dropped = steps();
    until_nothing_runs(model).await;
    steps() - dropped
}

/// Largest difference between two vectors of one length.
pub(crate) fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Cosine similarity of two vectors.
pub(crate) fn similarity(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}
