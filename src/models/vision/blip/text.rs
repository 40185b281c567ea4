//! BLIP's text half: BERT with a causal mask and, in each block, cross-attention to the image.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::models::config_file::{activation, invalid, with_defaults, without_nulls};
use crate::models::decoder::{DecoderConfig, DecoderNames, Embeddings, Head};
use crate::models::transformer::{
    CrossNames, Names, NormPlacement, QkvNames, Sizes, TransformerConfig, UpNames, Workload,
};

const NAMES: DecoderNames = DecoderNames {
    prefixes: &["text_decoder."],
    token_embeddings: "bert.embeddings.word_embeddings",
    block_inputs: "",
    positions: "bert.embeddings.position_embeddings",
    embedding_norm: "bert.embeddings.LayerNorm",
    blocks: Names {
        blocks: "bert.encoder.layer.",
        qkv: QkvNames::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
        out_proj: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        cross_attention: CrossNames {
            query: "crossattention.self.query",
            key: "crossattention.self.key",
            value: "crossattention.self.value",
            out_proj: "crossattention.output.dense",
            norm: "crossattention.output.LayerNorm",
        },
        up: UpNames::Dense("intermediate.dense"),
        down: "output.dense",
        feed_forward_norm: "output.LayerNorm",
        ..Names::NONE
    },
    norm: "cls.predictions.transform.LayerNorm",
    transform: "cls.predictions.transform.dense",
    heads: &["text_decoder.cls.predictions.decoder"],
    logit_bias: "cls.predictions.bias",
    no_effect: &[],
};

/// `text_config`.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    bos_token_id: u32,
    sep_token_id: u32,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    tie_word_embeddings: Option<bool>,
}

fn defaults() -> Value {
    json!({
        "vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "bos_token_id": 30522, "sep_token_id": 102
    })
}

/// The text half that is not loaded.
pub(super) struct TextConfig {
    pub(super) decoder: DecoderConfig,
    /// The token that begins a caption.
    pub(super) begin: u32,
    /// The token that ends it.
    pub(super) end: u32,
}

impl TextConfig {
    /// Reads and checks it; the image's rows have `image_width` numbers. The matrix of the logits is tied to the embeddings
    /// unless `tie_word_embeddings` is false in both tables: each ties it by itself in the reference implementation.
    pub(super) fn read(file: &Path, config: &Value, image_width: usize, is_tied: bool) -> Result<Self> {
        let config: Config = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        let sizes = Sizes {
            width: config.hidden_size,
            intermediate: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &config.hidden_act)?;
        let (placement, epsilon) = (NormPlacement::Post, config.layer_norm_eps);
        let bert = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
        let decoder = DecoderConfig {
            vocabulary: config.vocab_size,
            context: config.max_position_embeddings,
            embeddings: Embeddings::WithPositions,
            transformer: TransformerConfig {
                cross_attention: Some(image_width),
                workload: Workload::GrowingSequences,
                ..bert.with_mask(AttentionMask::Causal)
            },
            head: Head::Transformed {
                activation,
                is_tied: is_tied || config.tie_word_embeddings.unwrap_or(true),
            },
            logit_cap: None,
            end_tokens: vec![config.sep_token_id],
            names: &NAMES,
            modules: None,
        };
        let decoder = decoder.checked(file)?;
        let (begin, end) = (config.bos_token_id, config.sep_token_id);
        if [begin, end].iter().any(|token| *token as usize >= decoder.vocabulary) {
            return Err(invalid(file, "bos_token_id and sep_token_id must be below vocab_size"));
        }
        Ok(Self { decoder, begin, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_there_twice_while_they_grow_are_counted() {
        let config = TextConfig::read(Path::new("config.json"), &Value::Null, 768, true).unwrap().decoder;
        let more = config.scratch(1, 100_000).0 - config.scratch(1, 50_000).0;
        assert_eq!(more, 50_000 * 768 * 4);
    }
}
