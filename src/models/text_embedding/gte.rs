//! GTE v1.5 and multilingual (Zhang et al., 2024), which calls itself `new`, and with it Stella en 400M v5; and the
//! same as transformers writes it, `gte` (Snowflake Arctic m v2.0): rotary positions, with NTK-aware scaling where the
//! configuration says so, and a gated feed-forward network.

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
    Bias, Names, NormPlacement, QkvNames, Rope, Sizes, TransformerConfig, UpNames,
};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "new",
    architectures: &["NewModel", "NewForMaskedLM", "NewForSequenceClassification"],
    read: |file, config| TextEncoder::architecture(file, read(file, config, defaults())?, &["", "new."]),
};

/// That of the same models under the name that transformers has for them.
pub(super) const OF_TRANSFORMERS: Family<Box<dyn Architecture>> = Family {
    model_type: "gte",
    architectures: &["GteModel", "GteForMaskedLM", "GteForSequenceClassification"],
    read: |file, config| {
        let own = json!({"type_vocab_size": 1, "rope_theta": 160000.0});
        let defaults = with_defaults(&own, defaults());
        TextEncoder::architecture(file, read(file, config, defaults)?, &["", "new.", "model."])
    },
};

const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.word_embeddings",
    positions: "",
    segments: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    embedding_projection: "",
    blocks: Names {
        blocks: "encoder.layer.",
        qkv: QkvNames::Fused("attention.qkv_proj"),
        out_proj: "attention.o_proj",
        attention_norm: "attn_ln",
        feed_forward: "mlp.",
        up: UpNames::UpGate("up_gate_proj"),
        down: "down_proj",
        feed_forward_norm: "mlp_ln",
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
    layer_norm_type: Option<String>,
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    rope_theta: f64,
    rope_scaling: Option<Scaling>,
    /// The base and scaling in files of transformers 5.
    rope_parameters: Option<Parameters>,
    logn_attention_scale: bool,
    pack_qkv: Option<bool>,
}

#[derive(Deserialize)]
struct Parameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

#[derive(Deserialize)]
struct Scaling {
    #[serde(rename = "type")]
    kind: String,
    factor: f64,
    mixed_b: Option<f64>,
}

fn defaults() -> Value {
    json!({
        "hidden_act": "gelu", "max_position_embeddings": 8192, "type_vocab_size": 0, "layer_norm_eps": 1e-12,
        "rope_theta": 10000.0, "logn_attention_scale": false
    })
}

fn read(file: &Path, config: &Value, defaults: Value) -> Result<TextTowerConfig> {
    let config: Config = parse(file, &with_defaults(config, defaults))?;
    config.check(file)?;
    let sizes = Sizes {
        width: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
    };
    let activation = activation(file, "hidden_act", &config.hidden_act)?;
    let (placement, epsilon) = (NormPlacement::Post, config.layer_norm_eps);
    let transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
    let rope = config.rope(file, transformer.attention.head_size)?;
    let mut transformer = transformer.gated().with_rope(rope);
    transformer.biases.up = Bias::No;
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        embedding_width: None,
        positions: PositionsConfig::None,
        segments: config.type_vocab_size,
        transformer,
        names: &NAMES,
    })
}

impl Config {
    /// Refuses what no published model has.
    fn check(&self, file: &Path) -> Result<()> {
        let kinds = [
            ("position_embedding_type", self.position_embedding_type.as_deref(), "rope"),
            ("layer_norm_type", self.layer_norm_type.as_deref(), "layer_norm"),
        ];
        for (what, found, supported) in kinds {
            if let Some(found) = found.filter(|found| *found != supported) {
                return Err(unsupported(file, what, found, supported));
            }
        }
        if self.logn_attention_scale {
            return Err(unsupported(file, "logn_attention_scale", "true", "false"));
        }
        if self.pack_qkv == Some(false) {
            return Err(unsupported(file, "pack_qkv", "false", "true"));
        }
        Ok(())
    }

    fn rope(&self, file: &Path, head_size: usize) -> Result<Rope> {
        if let Some(Parameters { rope_theta, rope_type }) = &self.rope_parameters {
            return match rope_type.as_deref() {
                None | Some("default") => Rope::plain(file, head_size, rope_theta.unwrap_or(self.rope_theta)),
                Some(other) => Err(unsupported(file, "rope_parameters", other, "default")),
            };
        }
        let Some(Scaling { kind, factor, mixed_b }) = &self.rope_scaling else {
            return Rope::plain(file, head_size, self.rope_theta);
        };
        if kind != "ntk" || mixed_b.is_some() {
            return Err(unsupported(file, "rope_scaling", kind, "ntk without mixed_b"));
        }
        if !(factor.is_finite() && *factor > 0.0) {
            return Err(invalid(file, format!("rope_scaling has the factor {factor}")));
        }
        Rope::ntk(file, head_size, self.rope_theta, *factor)
    }
}
