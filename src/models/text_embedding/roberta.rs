//! RoBERTa (Liu et al., 2019), XLM-RoBERTa (Conneau et al., 2020; multilingual E5, BGE-M3's dense vectors) and
//! CamemBERT: BERT with positions counted from the one after padding's.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::encoder::TextEncoder;
use super::{Architecture, bert, jina_v3};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{invalid, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig};

/// The families' entries in the list.
pub(in crate::models) const FAMILY: Family<Box<dyn Architecture>> =
    family("roberta", &["RobertaModel", "RobertaForMaskedLM"]);
pub(in crate::models) const MULTILINGUAL: Family<Box<dyn Architecture>> = Family {
    read: |file, config| match jina_v3::is_published(config) {
        true => jina_v3::read_published(file, config),
        false => architecture(file, config),
    },
    ..family("xlm-roberta", &["XLMRobertaModel", "XLMRobertaForMaskedLM"])
};
pub(in crate::models) const FRENCH: Family<Box<dyn Architecture>> =
    family("camembert", &["CamembertModel", "CamembertForMaskedLM"]);

const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
) -> Family<Box<dyn Architecture>> {
    Family { model_type, architectures, read: architecture }
}

fn architecture(file: &Path, config: &Value) -> Result<Box<dyn Architecture>> {
    TextEncoder::architecture(file, read(file, config)?, &["", "roberta."])
}

/// Settings of RoBERTa beside BERT's.
#[derive(Deserialize)]
struct Config {
    pad_token_id: Option<u32>,
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let tower = bert::read(file, config)?;
    let Config { pad_token_id } = parse(file, &with_defaults(config, json!({"pad_token_id": 1})))?;
    let padding = pad_token_id.ok_or_else(|| invalid(file, "pad_token_id is null"))?;
    match tower.positions {
        // It has vectors of distances in their place.
        PositionsConfig::None => Ok(tower),
        _ => after_padding(file, tower, padding),
    }
}

/// The same encoder with positions counted from the one after padding's.
pub(super) fn after_padding(file: &Path, tower: TextTowerConfig, padding: u32) -> Result<TextTowerConfig> {
    let count = tower.context;
    match count.checked_sub(padding as usize + 1) {
        Some(context @ 1..) => {
            let positions = PositionsConfig::AfterPadding { count, padding };
            Ok(TextTowerConfig { context, positions, ..tower })
        }
        _ => {
            let reason = format!("{count} positions leave none after that of the padding token {padding}");
            Err(invalid(file, reason))
        }
    }
}
