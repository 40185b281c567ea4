//! BERT and its relatives of the same form (MiniLM, BGE, GTE, E5; Devlin et al., 2019): learned absolute
//! positions or vectors of distances, and norms after each sum. Pooling and tokenizing are left to the modules that every family
//! shares.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::encoder::TextEncoder;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::DistanceRows;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{
    DistanceVectorsConfig, Names, NormPlacement, QkvNames, Sizes, TransformerConfig, UpNames,
};

/// The family's entry in the list.
pub(in crate::models) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "bert."]),
};

/// Tensor names of BERT and RoBERTa.
pub(super) const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    segments: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    embedding_projection: "",
    blocks: Names {
        blocks: "encoder.layer.",
        qkv: QkvNames::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
        distance_vectors: "attention.self.distance_embedding",
        out_proj: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: UpNames::Dense("intermediate.dense"),
        down: "output.dense",
        feed_forward_norm: "output.LayerNorm",
        ..Names::NONE
    },
    norm: "",
};

/// `config.json` of BERT and RoBERTa.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    is_decoder: bool,
}

fn defaults() -> Value {
    json!({
        "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "is_decoder": false
    })
}

/// The encoder of BERT and, but for its positions, of RoBERTa.
pub(super) fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    let reach = config.max_position_embeddings;
    let distances = match config.position_embedding_type.as_deref() {
        None | Some("absolute") => None,
        Some("relative_key") => Some(DistanceRows::Queries),
        Some("relative_key_query") => Some(DistanceRows::QueriesAndKeys),
        Some(other) => {
            let supported = "absolute, relative_key or relative_key_query";
            return Err(unsupported(file, "position_embedding_type", other, supported));
        }
    };
    if config.is_decoder {
        return Err(unsupported(file, "is_decoder", "true", "false"));
    }
    if config.type_vocab_size == 0 {
        return Err(invalid(file, "type_vocab_size is 0"));
    }
    let sizes = Sizes {
        width: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
    };
    let activation = activation(file, "hidden_act", &config.hidden_act)?;
    let (placement, epsilon) = (NormPlacement::Post, config.layer_norm_eps);
    let mut transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
    transformer.attention.distance_vectors = distances.map(|rows| DistanceVectorsConfig { reach, rows });
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context: reach,
        embedding_width: None,
        positions: match distances {
            Some(_) => PositionsConfig::None,
            None => PositionsConfig::Places(reach),
        },
        segments: config.type_vocab_size,
        transformer,
        names: &NAMES,
    })
}
