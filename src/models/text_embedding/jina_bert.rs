//! Jina BERT v2 (Günther et al., 2023; jina-embeddings-v2): BERT without positions, whose attention fades with distance
//! (ALiBi), and with a gated feed-forward. It calls itself `bert`; its architecture's name tells it apart. The variant
//! of jina-embeddings-v2-base-code, with norms of queries and keys, has other names and is not covered.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::bert::{is_part, mixed};
use super::encoder::{
    EncoderFamily, Layer, Norms, Sizes, Transformer, layer_norm, linear, unsupported, words_of_first_segment,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::{Activation, AttentionMask};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["JinaBertForMaskedLM", "JinaBertModel", "JinaBertForSequenceClassification"],
    read: |file, config| Ok(Box::new(JinaBert::read(file, config)?)),
};

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "positions")]
    max_position_embeddings: usize,
    #[serde(default = "types")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    feed_forward_type: Option<String>,
}

fn positions() -> usize {
    8192
}

fn types() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}

struct JinaBert {
    sizes: Sizes,
    segments: usize,
    epsilon: f64,
    activation: Activation,
}

impl JinaBert {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let config: Config = parse(file, config)?;
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
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            middle: config.intermediate_size.saturating_mul(2),
            longest: config.max_position_embeddings,
        };
        let (segments, epsilon) = (config.type_vocab_size, config.layer_norm_eps);
        Ok(Self { sizes: sizes.check(file)?, segments, epsilon, activation })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes;
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, self.epsilon, true);
        Ok(Layer {
            mixed: mixed(reader, &name("attention.self."), width)?,
            attended: linear(reader, &name("attention.output.dense"), [width, width], true)?,
            norms: Norms::After {
                attention: norm("attention.output.LayerNorm")?,
                feed: norm("mlp.layernorm")?,
            },
            wide: linear(reader, &name("mlp.gated_layers"), [middle, width], false)?,
            activation: self.activation,
            gated: true,
            narrow: linear(reader, &name("mlp.wo"), [width, middle / 2], true)?,
            mask: AttentionMask::Full,
            rope: None,
        })
    }
}

impl EncoderFamily for JinaBert {
    const PREFIXES: &'static [&'static str] = &["", "bert."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn is_part(&self, name: &str) -> bool {
        is_part(name) && !name.starts_with("embeddings.position_embeddings")
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        let names = [Self::WORDS, "embeddings.token_type_embeddings.weight"];
        let layers = (0..self.sizes.layers).map(|index| self.layer(reader, index));
        Ok(Transformer {
            words: words_of_first_segment(reader, names, self.sizes, self.segments)?,
            positions: None,
            norm: layer_norm(reader, "embeddings.LayerNorm", self.sizes.width, self.epsilon, true)?,
            layers: layers.collect::<Result<_>>()?,
            last_norm: None,
            heads: self.sizes.heads,
            slopes: slopes(self.sizes.heads),
            frequencies: Vec::new(),
        })
    }
}

/// ALiBi's slopes: a geometric row for a power of two of heads; for other numbers that of the next smaller power, then
/// every other slope of the next larger.
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
