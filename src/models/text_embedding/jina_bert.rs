//! Jina BERT v2 (Günther et al., 2023; jina-embeddings-v2): BERT without positions, whose attention fades
//! with distance (ALiBi), and with a gated feed-forward network. It calls itself `bert`; its architecture's
//! name tells it apart. The variant of jina-embeddings-v2-base-code, with norms of queries and keys, has
//! other names and is not covered.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::encoder::TextEncoder;
use super::{Architecture, bert};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{Bias, Names, NormPlacement, Sizes, TransformerConfig, UpNames};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["JinaBertForMaskedLM", "JinaBertModel", "JinaBertForSequenceClassification"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "bert."]),
};

const NAMES: TextTowerNames = TextTowerNames {
    positions: "",
    blocks: Names {
        feed_forward: "mlp.",
        up: UpNames::GateUp("gated_layers"),
        down: "wo",
        feed_forward_norm: "mlp.layernorm",
        ..bert::NAMES.blocks
    },
    ..bert::NAMES
};

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    feed_forward_type: Option<String>,
}

fn defaults() -> Value {
    json!({"max_position_embeddings": 8192, "type_vocab_size": 2, "layer_norm_eps": 1e-12})
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    match config.position_embedding_type.as_deref() {
        Some("alibi") => {}
        other => {
            let found = other.unwrap_or("(none)");
            return Err(unsupported(file, "position_embedding_type", found, "alibi"));
        }
    }
    let activation = match config.feed_forward_type.as_deref() {
        None | Some("geglu") => Activation::GeluErf,
        Some("reglu") => Activation::Relu,
        Some(other) => return Err(unsupported(file, "feed_forward_type", other, "geglu, reglu")),
    };
    let sizes = Sizes {
        width: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
    };
    let epsilon = config.layer_norm_eps;
    let mut transformer =
        TransformerConfig::encoder(file, sizes, NormPlacement::Post, activation, epsilon)?.gated();
    transformer.biases.up = Bias::No;
    transformer.attention.alibi_slopes = slopes(config.num_attention_heads);
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

/// ALiBi's slopes: a geometric row for a power of two of heads; for other numbers that of the next smaller
/// power, then every other slope of the next larger.
fn slopes(heads: usize) -> Vec<f32> {
    let row =
        |count: usize| (1..=count).map(move |place| 2f64.powf(-8.0 * place as f64 / count as f64) as f32);
    let power = 1 << heads.ilog2();
    row(power).chain(row(2 * power).step_by(2).take(heads - power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_any_number_of_heads() {
        assert_eq!(slopes(1), [2f32.powi(-8)]);
        assert_eq!(slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        let three = slopes(3);
        assert_eq!(&three[..2], [0.0625, 0.003_906_25]);
        assert_eq!(three[2], 0.25);
    }
}
