//! EmbeddingGemma (Google DeepMind, 2025): Gemma 3's text model, whose tokens see their whole text where the
//! configuration says so, and in the layers with a window half of it to either side. Its dense layers are modules of
//! sentence-transformers like any other.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Architecture;
use super::decoding::{AttentionDirection, Embedder};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::AttentionMask;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "gemma3_text",
    architectures: &["Gemma3TextModel", "Gemma3ForCausalLM"],
    read: |file, config| Ok(Box::new(read(file, config)?)),
};

const BOTH_WAYS: &str = "use_bidirectional_attention";

#[derive(Deserialize)]
struct Own {
    use_bidirectional_attention: Option<bool>,
}

fn read(file: &Path, config: &Value) -> Result<Embedder> {
    let both_ways = parse::<Own>(file, config)?.use_bidirectional_attention == Some(true);
    // Decoders that write refuse the setting.
    let mut config = config.clone();
    if let Value::Object(settings) = &mut config {
        settings.remove(BOTH_WAYS);
    }
    let mut embedder = Embedder::read(file, &config, AttentionDirection::Causal)?;
    if both_ways {
        for layer in &mut embedder.0.transformer.layers {
            layer.mask = match layer.mask {
                AttentionMask::SlidingWindow(window) => AttentionMask::LocalWindow(window / 2),
                _ => AttentionMask::Full,
            };
        }
    }
    Ok(embedder)
}
