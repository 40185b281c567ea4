//! Moondream's text half, like Phi's: attention and feed-forward network work side by side on one norm, and
//! half of each head is rotated.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::EPSILON;
use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::{invalid, unsupported, with_defaults, without_nulls};
use crate::models::decoder::{DecoderConfig, DecoderNames, Embeddings, Head};
use crate::models::transformer::{
    Bias, Names, NormPlacement, QkvNames, RopeParameters, RopeShape, Sizes, TransformerConfig, UpNames,
    Workload,
};

const NAMES: DecoderNames = DecoderNames {
    prefixes: &["model.text.", "text."],
    token_embeddings: "wte",
    block_inputs: "",
    positions: "",
    embedding_norm: "",
    blocks: Names {
        blocks: "blocks.",
        attention_norm: "ln",
        qkv: QkvNames::Fused("attn.qkv"),
        out_proj: "attn.proj",
        feed_forward: "mlp.",
        up: UpNames::Dense("fc1"),
        down: "fc2",
        ..Names::NONE
    },
    norm: "post_ln",
    transform: "",
    heads: &["model.text.lm_head", "text.lm_head"],
    logit_bias: "",
    no_effect: &[],
};

/// `text` in the `config` of `config.json`.
#[derive(Deserialize)]
struct Config {
    dim: usize,
    vocab_size: usize,
    max_context: usize,
    ff_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    /// Of quantized weights.
    group_size: Option<usize>,
}

fn defaults() -> Value {
    json!({
        "dim": 2048, "ff_dim": 8192, "n_layers": 24, "vocab_size": 51200, "max_context": 2048, "n_heads": 32
    })
}

/// Reads and checks the text half.
pub(super) fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config: Config = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
    if config.group_size.is_some() {
        return Err(unsupported(file, "group_size", "of quantized weights", "none"));
    }
    let sizes = Sizes {
        width: config.dim,
        intermediate: config.ff_dim,
        layers: config.n_layers,
        heads: config.n_heads,
    };
    let (placement, activation) = (NormPlacement::Parallel, Activation::GeluTanh);
    let mut transformer = TransformerConfig::encoder(file, sizes, placement, activation, EPSILON)?;
    let head_size = transformer.attention.head_size;
    if head_size < 4 {
        return Err(invalid(file, "dim and n_heads leave less than 4 numbers for a head"));
    }
    let rope = RopeParameters { partial_rotary_factor: Some(0.5), ..RopeParameters::default() };
    let shape = RopeShape { head_size, context: config.max_context, base: 10_000.0 };
    transformer.attention.kv_heads = config.n_kv_heads.unwrap_or(config.n_heads);
    transformer.workload = Workload::GrowingSequences;
    let transformer = transformer.with_mask(AttentionMask::Causal).with_rope(rope.rope(file, shape)?);
    DecoderConfig {
        vocabulary: config.vocab_size,
        context: config.max_context,
        embeddings: Embeddings::Plain,
        transformer,
        head: Head::Own(Bias::Yes),
        logit_cap: None,
        end_tokens: Vec::new(),
        names: &NAMES,
        modules: None,
    }
    .checked(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_there_twice_while_they_grow_are_counted() {
        let config = read(Path::new("config.json"), &Value::Null).unwrap();
        let more = config.scratch(1, 100_000).0 - config.scratch(1, 50_000).0;
        assert_eq!(more, 50_000 * 2048 * 4);
    }
}
