//! Jina Embeddings v3 (Sturua et al., 2024): XLM-RoBERTa with rotary positions in place of learned ones, and an adapter for
//! each task. As it is published, it calls itself `xlm-roberta` and has the adapters beside the weights; a named prompt
//! turns on that of its name. As transformers writes it, the adapters are files of their own, which are left out.

mod adapters;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::adapters::MAX_TASKS;
use super::encoder::TextEncoder;
use super::{Architecture, Task};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{
    Names, NormPlacement, QkvNames, RopeSettings, RopeShape, Sizes, TransformerConfig, UpNames, check_side,
};
use adapters::AdaptedEncoder;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "jina_embeddings_v3",
    architectures: &["JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "roberta.", "model."]),
};

/// The name of positions in the file as it is published.
const ROTARY: &str = "rotary";

/// True for a file of `xlm-roberta` that is one of these.
pub(super) fn is_published(config: &Value) -> bool {
    config.get("position_embedding_type").and_then(Value::as_str) == Some(ROTARY)
}

/// Settings as they are published, beside those that transformers writes.
#[derive(Deserialize)]
#[serde(default)]
struct Published {
    rotary_emb_base: f64,
    /// Names of the tasks, in the order of their adapters.
    lora_adaptations: Option<Vec<String>>,
    /// Text before each text of a task.
    task_instructions: BTreeMap<String, String>,
    lora_rank: usize,
    lora_alpha: f64,
}

impl Default for Published {
    /// As in the published code.
    fn default() -> Self {
        Self {
            rotary_emb_base: 10_000.0,
            lora_adaptations: None,
            task_instructions: BTreeMap::new(),
            lora_rank: 4,
            lora_alpha: 1.0,
        }
    }
}

/// The encoder of a published file, with the adapters that it names.
pub(super) fn read_published(file: &Path, config: &Value) -> Result<Box<dyn Architecture>> {
    let own: Published = parse(file, config)?;
    let mut config = config.clone();
    if let Some(settings) = config.as_object_mut() {
        // One way to say it counts, whatever else the file has.
        settings.retain(|name, _| !["rope_parameters", "rope_scaling"].contains(&name.as_str()));
        settings.insert("rope_theta".to_owned(), json!(own.rotary_emb_base));
    }
    let tower = read(file, &config)?;
    let Some(names) = own.lora_adaptations else {
        return TextEncoder::architecture(file, tower, &["", "roberta."]);
    };
    if tower.segments != 1 {
        return Err(unsupported(file, "type_vocab_size", &tower.segments.to_string(), "1"));
    }
    let is_sound = own.lora_alpha.is_finite() && (1..=MAX_TASKS).contains(&names.len());
    if !is_sound {
        return Err(invalid(file, format!("adapters cannot be: lora_alpha {}, {names:?}", own.lora_alpha)));
    }
    check_side(file, "lora_rank", own.lora_rank)?;
    check_side(file, "vocab_size", tower.vocabulary)?;
    check_side(file, "max_position_embeddings", tower.context)?;
    let mut instructions = own.task_instructions;
    let mut task = |name: String| {
        let instruction = Some(instructions.remove(&name).unwrap_or_default());
        Task { name, instruction, folder: None }
    };
    Ok(Box::new(AdaptedEncoder {
        tower,
        tasks: names.into_iter().map(&mut task).collect(),
        rank: own.lora_rank,
        scaling: own.lora_alpha / own.lora_rank as f64,
    }))
}

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
