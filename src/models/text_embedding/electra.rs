//! ELECTRA's discriminator (Clark et al., 2020): BERT, whose embeddings may be shorter than the rows of its blocks.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::encoder::TextEncoder;
use super::{Architecture, bert};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::with_defaults;
use crate::models::towers::{TextTowerConfig, TextTowerNames};
use crate::models::transformer::check_side;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "electra",
    architectures: &["ElectraModel", "ElectraForPreTraining", "ElectraForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "electra."]),
};

const NAMES: TextTowerNames = TextTowerNames { embedding_projection: "embeddings_project", ..bert::NAMES };

/// Settings of ELECTRA beside BERT's.
#[derive(Deserialize)]
struct Config {
    embedding_size: usize,
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let defaults = json!({
        "vocab_size": 30522, "embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 12,
        "num_attention_heads": 4, "intermediate_size": 1024
    });
    let config = with_defaults(config, defaults);
    let Config { embedding_size } = parse(file, &config)?;
    check_side(file, "embedding_size", embedding_size)?;
    let mut tower = bert::read(file, &config)?;
    tower.embedding_width = (embedding_size != tower.transformer.width).then_some(embedding_size);
    tower.names = &NAMES;
    Ok(tower)
}
