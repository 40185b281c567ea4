//! BERT and what shares its shape (MiniLM, BGE, GTE, E5; Devlin et al., 2019): learned absolute positions, norms after
//! each sum. Pooling and tokenizing are left to the modules that every family shares.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::encoder::{
    EncoderFamily, Layer, Norms, Positions, Sizes, Transformer, activation, invalid, layer_norm, linear,
    stacked, unsupported,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::{Activation, AttentionMask, Linear};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"],
    read: |file, config| Ok(Box::new(Bert { shape: Shape::read(file, config)? })),
};

/// `config.json` of BERT and RoBERTa. What has a default in transformers has it here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Shape {
    pub(super) vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "positions")]
    pub(super) max_position_embeddings: usize,
    #[serde(default = "types")]
    pub(super) type_vocab_size: usize,
    #[serde(default = "epsilon")]
    pub(super) layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(skip)]
    activation: Option<Activation>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn positions() -> usize {
    512
}

fn types() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}

impl Shape {
    pub(super) fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let mut shape: Self = parse(file, config)?;
        shape.activation = Some(activation(file, "hidden_act", &shape.hidden_act)?);
        match shape.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(unsupported(file, "position_embedding_type", other, "absolute")),
        }
        if shape.is_decoder {
            return Err(unsupported(file, "is_decoder", "true", "false"));
        }
        if shape.type_vocab_size == 0 {
            return Err(invalid(file, "type_vocab_size is 0".to_owned()));
        }
        shape.sizes().check(file)?;
        Ok(shape)
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            middle: self.intermediate_size,
            longest: self.max_position_embeddings,
        }
    }

    /// The encoder, in the names that BERT and RoBERTa share. `padding` is RoBERTa's.
    pub(super) fn assemble(&self, reader: &WeightReader<'_>, padding: Option<u32>) -> Result<Transformer> {
        let sizes = self.sizes();
        let width = sizes.width;
        let words = reader.tensor("embeddings.word_embeddings.weight", &[sizes.vocabulary, width])?;
        let shape = [self.max_position_embeddings, width];
        let positions = reader.tensor("embeddings.position_embeddings.weight", &shape)?;
        let types =
            reader.tensor("embeddings.token_type_embeddings.weight", &[self.type_vocab_size, width])?;
        let norm = layer_norm(reader, "embeddings.LayerNorm", width, self.layer_norm_eps, true)?;
        let layers = (0..sizes.layers).map(|index| self.layer(reader, index));
        Ok(Transformer {
            words,
            // The first segment is the only one in use.
            positions: Some(Positions { table: positions.broadcast_add(&types.get(0)?)?, padding }),
            norm,
            layers: layers.collect::<Result<_>>()?,
            last_norm: None,
            heads: sizes.heads,
            slopes: Vec::new(),
            frequencies: Vec::new(),
        })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes();
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, self.layer_norm_eps, true);
        Ok(Layer {
            mixed: mixed(reader, &name("attention.self."), width)?,
            attended: linear(reader, &name("attention.output.dense"), [width, width], true)?,
            norms: Norms::After {
                attention: norm("attention.output.LayerNorm")?,
                feed: norm("output.LayerNorm")?,
            },
            wide: linear(reader, &name("intermediate.dense"), [middle, width], true)?,
            activation: self.activation.unwrap_or(Activation::GeluErf),
            gated: false,
            narrow: linear(reader, &name("output.dense"), [width, middle], true)?,
            mask: AttentionMask::Full,
            rope: None,
        })
    }
}

/// Query, key and value of an attention whose names begin with `prefix`.
pub(super) fn mixed(reader: &WeightReader<'_>, prefix: &str, width: usize) -> Result<Linear> {
    let names = ["query", "key", "value"].map(|part| format!("{prefix}{part}"));
    stacked(reader, &names, [width, width], true)
}

/// What is a part of the encoder, in the names that BERT and RoBERTa share.
pub(super) fn is_part(name: &str) -> bool {
    name.starts_with("encoder.") || (name.starts_with("embeddings.") && !name.ends_with("position_ids"))
}

struct Bert {
    shape: Shape,
}

impl EncoderFamily for Bert {
    const PREFIXES: &'static [&'static str] = &["", "bert."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.shape.sizes()
    }

    fn is_part(&self, name: &str) -> bool {
        is_part(name)
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        self.shape.assemble(reader, None)
    }
}
