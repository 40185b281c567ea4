//! MPNet (Song et al., 2020; all-mpnet-base-v2, multi-qa-mpnet): BERT whose positions are counted as RoBERTa's, and
//! whose attention has learned biases by distance, which all blocks share.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::encoder::TextEncoder;
use super::{Architecture, bert, roberta};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{Names, QkvNames, RelativeBiasConfig};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "mpnet",
    architectures: &["MPNetModel", "MPNetForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "mpnet."]),
};

/// Buckets that the reference implementation looks distances up in, whatever the configuration says.
const BUCKETS: usize = 32;
/// Distance from which on all share the last bucket, fixed in the reference implementation.
const LAST_DISTANCE: usize = 128;
/// The padding token by which places are counted, fixed in the reference implementation.
const PADDING: u32 = 1;

const NAMES: TextTowerNames = TextTowerNames {
    segments: "",
    blocks: Names {
        relative_bias: "encoder.relative_attention_bias",
        qkv: QkvNames::Separate(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
        out_proj: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..bert::NAMES.blocks
    },
    ..bert::NAMES
};

/// Settings of MPNet beside BERT's.
#[derive(Deserialize)]
struct Config {
    relative_attention_num_buckets: usize,
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let defaults = json!({
        "vocab_size": 30527, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "relative_attention_num_buckets": BUCKETS
    });
    let config = with_defaults(config, defaults);
    let Config { relative_attention_num_buckets: buckets } = parse(file, &config)?;
    if buckets != BUCKETS {
        return Err(unsupported(file, "relative_attention_num_buckets", &buckets.to_string(), "32"));
    }
    let tower = bert::read(file, &config)?;
    if tower.positions == PositionsConfig::None {
        // The reference implementation does not read this setting, so that no model can have been trained with it.
        return Err(unsupported(file, "position_embedding_type", "relative_key", "absolute"));
    }
    let mut tower = roberta::after_padding(file, tower, PADDING)?;
    tower.segments = 0;
    tower.names = &NAMES;
    let bias = RelativeBiasConfig { buckets, max_distance: LAST_DISTANCE };
    tower.transformer.attention.relative_bias = Some(bias);
    Ok(tower)
}
