//! BLIP-2's text half, OPT (Zhang et al. 2022): a decoder with layer norms before its sublayers, learned positions and
//! ReLU. Follows `modeling_opt.py` of transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::models::config_file::{activation, unsupported, with_defaults, without_nulls};
use crate::models::decoder::{DecoderConfig, DecoderNames, Embeddings, Head};
use crate::models::transformer::{
    Biases, Names, NormPlacement, QkvNames, Sizes, TransformerConfig, UpNames, Workload,
};

const NAMES: DecoderNames = DecoderNames {
    prefixes: &["language_model.model.decoder."],
    token_embeddings: "embed_tokens",
    block_inputs: "",
    positions: "embed_positions",
    embedding_norm: "",
    blocks: Names {
        blocks: "layers.",
        attention_norm: "self_attn_layer_norm",
        qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        out_proj: "self_attn.out_proj",
        feed_forward_norm: "final_layer_norm",
        up: UpNames::Dense("fc1"),
        down: "fc2",
        ..Names::NONE
    },
    norm: "final_layer_norm",
    transform: "",
    heads: &["language_model.lm_head"],
    logit_bias: "",
    no_effect: &[],
};

/// Positions of the table that stand for no place.
const UNUSED_POSITIONS: usize = 2;
/// Of all norms.
const EPSILON: f64 = 1e-5;

/// `text_config`.
#[derive(Deserialize)]
struct Settings {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    ffn_dim: usize,
    max_position_embeddings: usize,
    activation_function: String,
    word_embed_proj_dim: Option<usize>,
    do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    without_last_norm: bool,
    enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    eos_token_id: u32,
}

fn defaults() -> Value {
    json!({
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "ffn_dim": 3072, "max_position_embeddings": 2048, "activation_function": "relu",
        "do_layer_norm_before": true, "_remove_final_layer_norm": false, "enable_bias": true,
        "layer_norm_elementwise_affine": true, "eos_token_id": 2
    })
}

/// Reads the text half's part of `config.json`.
pub(super) fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
    if settings.model_type != "opt" {
        return Err(unsupported(file, "the text half", &settings.model_type, "opt"));
    }
    let width = settings.hidden_size;
    let needed = [
        ("do_layer_norm_before", settings.do_layer_norm_before, true),
        ("_remove_final_layer_norm", settings.without_last_norm, false),
        ("layer_norm_elementwise_affine", settings.layer_norm_elementwise_affine, true),
    ];
    if let Some((name, found, only)) = needed.into_iter().find(|(_, found, only)| found != only) {
        return Err(unsupported(file, name, &found.to_string(), only.to_string()));
    }
    if let Some(other) = settings.word_embed_proj_dim.filter(|other| *other != width) {
        return Err(unsupported(file, "word_embed_proj_dim", &other.to_string(), "hidden_size"));
    }
    let sizes = Sizes {
        width,
        intermediate: settings.ffn_dim,
        layers: settings.num_hidden_layers,
        heads: settings.num_attention_heads,
    };
    let activation = activation(file, "activation_function", &settings.activation_function)?;
    let blocks = TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, EPSILON)?;
    let decoder = DecoderConfig {
        vocabulary: settings.vocab_size,
        context: settings.max_position_embeddings,
        embeddings: Embeddings::PlusPositions { unused: UNUSED_POSITIONS },
        transformer: TransformerConfig {
            biases: if settings.enable_bias { Biases::ALL } else { Biases::NONE },
            workload: Workload::GrowingSequences,
            ..blocks.with_mask(AttentionMask::Causal)
        },
        head: Head::Tied,
        logit_cap: None,
        end_tokens: vec![settings.eos_token_id],
        names: &NAMES,
        modules: None,
    };
    decoder.checked(file)
}
