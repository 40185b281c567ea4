//! DistilBERT (Sanh et al., 2019): BERT with fewer layers, no segments, and names of its own.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::encoder::TextEncoder;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{Names, NormPlacement, QkvNames, Sizes, TransformerConfig, UpNames};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "distilbert",
    architectures: &["DistilBertModel", "DistilBertForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "distilbert."]),
};

/// Fixed in the reference implementation.
const EPSILON: f64 = 1e-12;

const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    segments: "",
    embedding_norm: "embeddings.LayerNorm",
    embedding_projection: "",
    blocks: Names {
        blocks: "transformer.layer.",
        qkv: QkvNames::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        out_proj: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        feed_forward: "ffn.",
        up: UpNames::Dense("lin1"),
        down: "lin2",
        feed_forward_norm: "output_layer_norm",
        ..Names::NONE
    },
    norm: "",
};

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    activation: String,
    max_position_embeddings: usize,
}

fn defaults() -> Value {
    json!({"activation": "gelu", "max_position_embeddings": 512})
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    let sizes = Sizes {
        width: config.dim,
        intermediate: config.hidden_dim,
        layers: config.n_layers,
        heads: config.n_heads,
    };
    let activation = activation(file, "activation", &config.activation)?;
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        embedding_width: None,
        positions: PositionsConfig::Places(config.max_position_embeddings),
        segments: 0,
        transformer: TransformerConfig::encoder(file, sizes, NormPlacement::Post, activation, EPSILON)?,
        names: &NAMES,
    })
}
