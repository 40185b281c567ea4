//! Jina Embeddings v3 (Sturua et al., 2024), as transformers writes it: XLM-RoBERTa with rotary positions in place of
//! learned ones. The adapters of tasks are files of their own, and are left out: vectors are those of the base model.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::encoder::TextEncoder;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{
    Names, NormPlacement, QkvNames, RopeSettings, RopeShape, Sizes, TransformerConfig, UpNames,
};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "jina_embeddings_v3",
    architectures: &["JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "roberta.", "model."]),
};

const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.word_embeddings",
    positions: "",
    segments: "embeddings.token_type_embeddings",
    embedding_norm: "emb_ln",
    embedding_projection: "",
    blocks: Names {
        blocks: "encoder.layers.",
        qkv: QkvNames::Fused("mixer.Wqkv"),
        out_proj: "mixer.out_proj",
        attention_norm: "norm1",
        feed_forward: "mlp.",
        up: UpNames::Dense("fc1"),
        down: "fc2",
        feed_forward_norm: "norm2",
        ..Names::NONE
    },
    norm: "",
};

/// `config.json`.
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
}

fn defaults() -> Value {
    json!({
        "vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "hidden_act": "gelu", "max_position_embeddings": 8194, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5
    })
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let rope: RopeSettings = parse(file, config)?;
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
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
    let transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
    let parameters = rope.parameters(file, None)?;
    if let Some(share) = parameters.partial_rotary_factor.filter(|share| *share != 1.0) {
        return Err(unsupported(file, "partial_rotary_factor", &share.to_string(), "1"));
    }
    let head_size = transformer.attention.head_size;
    if !head_size.is_multiple_of(2) {
        return Err(invalid(file, format!("rotary positions need heads of an even size, here {head_size}")));
    }
    let shape = RopeShape { head_size, context: config.max_position_embeddings, base: 20_000.0 };
    let transformer = transformer.with_rope(parameters.rope(file, shape)?);
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context: parameters.reach(config.max_position_embeddings),
        embedding_width: None,
        positions: PositionsConfig::None,
        segments: config.type_vocab_size,
        transformer,
        names: &NAMES,
    })
}
