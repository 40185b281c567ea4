//! DistilBERT (Sanh et al., 2019): BERT with fewer layers, no segments, and names of its own.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::encoder::{
    EncoderFamily, Layer, Norms, Positions, Sizes, Transformer, activation, layer_norm, linear, stacked,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::{Activation, AttentionMask};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "distilbert",
    architectures: &["DistilBertModel", "DistilBertForMaskedLM"],
    read: |file, config| Ok(Box::new(DistilBert::read(file, config)?)),
};

/// Fixed in the reference implementation.
const EPSILON: f64 = 1e-12;

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    #[serde(default = "gelu")]
    activation: String,
    #[serde(default = "positions")]
    max_position_embeddings: usize,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn positions() -> usize {
    512
}

struct DistilBert {
    sizes: Sizes,
    activation: Activation,
}

impl DistilBert {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let config: Config = parse(file, config)?;
        let sizes = Sizes {
            vocabulary: config.vocab_size,
            width: config.dim,
            layers: config.n_layers,
            heads: config.n_heads,
            middle: config.hidden_dim,
            longest: config.max_position_embeddings,
        };
        let activation = activation(file, "activation", &config.activation)?;
        Ok(Self { sizes: sizes.check(file)?, activation })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes;
        let name = |part: &str| format!("transformer.layer.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, EPSILON, true);
        let queries = ["q_lin", "k_lin", "v_lin"].map(|part| name(&format!("attention.{part}")));
        Ok(Layer {
            mixed: stacked(reader, &queries, [width, width], true)?,
            attended: linear(reader, &name("attention.out_lin"), [width, width], true)?,
            norms: Norms::After { attention: norm("sa_layer_norm")?, feed: norm("output_layer_norm")? },
            wide: linear(reader, &name("ffn.lin1"), [middle, width], true)?,
            activation: self.activation,
            gated: false,
            narrow: linear(reader, &name("ffn.lin2"), [width, middle], true)?,
            mask: AttentionMask::Full,
            rope: None,
        })
    }
}

impl EncoderFamily for DistilBert {
    const PREFIXES: &'static [&'static str] = &["", "distilbert."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn is_part(&self, name: &str) -> bool {
        name.starts_with("transformer.")
            || (name.starts_with("embeddings.") && !name.ends_with("position_ids"))
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        let Sizes { vocabulary, width, layers, heads, longest, .. } = self.sizes;
        let layers = (0..layers).map(|index| self.layer(reader, index));
        Ok(Transformer {
            words: reader.tensor(Self::WORDS, &[vocabulary, width])?,
            positions: Some(Positions {
                table: reader.tensor("embeddings.position_embeddings.weight", &[longest, width])?,
                padding: None,
            }),
            norm: layer_norm(reader, "embeddings.LayerNorm", width, EPSILON, true)?,
            layers: layers.collect::<Result<_>>()?,
            last_norm: None,
            heads,
            slopes: Vec::new(),
            frequencies: Vec::new(),
        })
    }
}
