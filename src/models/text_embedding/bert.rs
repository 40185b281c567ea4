//! BERT and what shares its shape (MiniLM, BGE, GTE, E5): learned absolute positions, post-norm layers. Pooling and
//! tokenizing are left to the modules that every family shares.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;

use super::{Architecture, Encoder, TokenBatch};
use crate::error::{Error, Result};
use crate::families::{Family, parse};
use crate::kernels::{Activation, LayerNorm, Linear, attention};
use crate::weights::{WeightFiles, WeightReader};

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"],
    read: |file, config| Ok(Box::new(Config::read(file, config)?)),
};

/// `config.json`. What has a default in transformers has it here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "positions")]
    max_position_embeddings: usize,
    #[serde(default = "types")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
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

/// The names in the file begin with this where the encoder was saved as a part of a larger model.
const PREFIXES: [&str; 2] = ["", "bert."];
const WORDS: &str = "embeddings.word_embeddings.weight";

impl Config {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let mut config: Self = parse(file, config)?;
        let unsupported = |what, found: &str, supported| {
            Err(Error::UnsupportedSetting { file: file.to_owned(), what, found: found.to_owned(), supported })
        };
        config.activation = Activation::from_name(&config.hidden_act);
        if config.activation.is_none() {
            return unsupported("hidden_act", &config.hidden_act, Activation::NAMES);
        }
        match config.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return unsupported("position_embedding_type", other, "absolute"),
        }
        if config.is_decoder {
            return unsupported("is_decoder", "true", "false");
        }
        let divisible = config.num_attention_heads > 0
            && config.hidden_size > 0
            && config.hidden_size.is_multiple_of(config.num_attention_heads);
        if !divisible || config.type_vocab_size == 0 {
            let reason = format!(
                "hidden_size {} is no multiple of num_attention_heads {}, or type_vocab_size is 0",
                config.hidden_size, config.num_attention_heads
            );
            return Err(Error::InvalidConfig { file: file.to_owned(), reason });
        }
        Ok(config)
    }
}

impl Architecture for Config {
    fn width(&self) -> usize {
        self.hidden_size
    }

    fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    fn longest(&self) -> usize {
        self.max_position_embeddings
    }

    fn uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("bert.").unwrap_or(tensor);
        name.starts_with("encoder.") || (name.starts_with("embeddings.") && !name.ends_with("position_ids"))
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // The widest moment of a layer: its input, the middle layer, and what comes out; or the mixed queries, keys
        // and values with one head's scores.
        let (width, middle) = (self.hidden_size as u64, self.intermediate_size as u64);
        let row = middle.max(width.saturating_mul(4)).saturating_add(width.saturating_mul(2));
        let scores = (longest as u64).saturating_mul(longest as u64);
        Bytes(row.saturating_mul(tokens as u64).saturating_add(scores).saturating_mul(4))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let prefix = PREFIXES.into_iter().find(|prefix| weights.contains(&format!("{prefix}{WORDS}")));
        let reader = weights.reader(prefix.unwrap_or_default(), device, context);
        Ok(Arc::new(Bert::load(self, &reader)?))
    }
}

struct Bert {
    words: Tensor,
    /// Each position's vector with that of the first segment, which is the only one in use, added already.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
}

struct Layer {
    /// Query, key and value in one product.
    mixed: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

impl Bert {
    fn load(config: &Config, reader: &WeightReader<'_>) -> Result<Self> {
        let width = config.hidden_size;
        let words = reader.tensor(WORDS, &[config.vocab_size, width])?;
        let shape = [config.max_position_embeddings, width];
        let positions = reader.tensor("embeddings.position_embeddings.weight", &shape)?;
        let types =
            reader.tensor("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width])?;
        let norm = layer_norm(reader, "embeddings.LayerNorm", config)?;
        let layers = (0..config.num_hidden_layers).map(|index| Layer::load(config, reader, index));
        Ok(Self {
            words,
            positions: positions.broadcast_add(&types.get(0)?)?,
            norm,
            layers: layers.collect::<Result<_>>()?,
            heads: config.num_attention_heads,
            activation: config.activation.unwrap_or(Activation::GeluErf),
        })
    }
}

impl Encoder for Bert {
    fn encode(&self, batch: &TokenBatch) -> Result<Tensor> {
        let device = self.words.device();
        let ids = Tensor::new(batch.ids.as_slice(), device)?;
        let places: Vec<u32> = batch.lengths.iter().flat_map(|length| 0..*length as u32).collect();
        let words = self.words.index_select(&ids, 0)?;
        let positions = self.positions.index_select(&Tensor::new(places, device)?, 0)?;
        let mut hidden = self.norm.of_sum(&words, &positions)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &batch.lengths, self.heads, self.activation)?;
        }
        Ok(hidden)
    }
}

impl Layer {
    fn load(config: &Config, reader: &WeightReader<'_>, index: usize) -> Result<Self> {
        let (width, middle) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for part in ["query", "key", "value"] {
            reader.append(&name(&format!("attention.self.{part}.weight")), &[width, width], &mut weight)?;
            reader.append(&name(&format!("attention.self.{part}.bias")), &[width], &mut bias)?;
        }
        let weight = reader.place(weight, &[3 * width, width])?;
        let mixed = Linear::new(&weight, Some(reader.place(bias, &[3 * width])?))?;
        Ok(Self {
            mixed,
            attended: linear(reader, &name("attention.output.dense"), width, width)?,
            attended_norm: layer_norm(reader, &name("attention.output.LayerNorm"), config)?,
            wide: linear(reader, &name("intermediate.dense"), middle, width)?,
            narrow: linear(reader, &name("output.dense"), width, middle)?,
            norm: layer_norm(reader, &name("output.LayerNorm"), config)?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        lengths: &[usize],
        heads: usize,
        activation: Activation,
    ) -> Result<Tensor> {
        let mixed = self.mixed.forward(input, Activation::Identity)?;
        let attended = attention(&mixed, lengths, heads)?;
        drop(mixed);
        let attended = self.attended.forward(&attended, Activation::Identity)?;
        let attended = self.attended_norm.of_sum(&attended, input)?;
        let wide = self.wide.forward(&attended, activation)?;
        let narrow = self.narrow.forward(&wide, Activation::Identity)?;
        self.norm.of_sum(&narrow, &attended)
    }
}

fn linear(reader: &WeightReader<'_>, name: &str, outside: usize, inside: usize) -> Result<Linear> {
    let weight = reader.tensor(&format!("{name}.weight"), &[outside, inside])?;
    Linear::new(&weight, Some(reader.tensor(&format!("{name}.bias"), &[outside])?))
}

fn layer_norm(reader: &WeightReader<'_>, name: &str, config: &Config) -> Result<LayerNorm> {
    // Checkpoints converted from TensorFlow call the two gamma and beta.
    let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
    let (weight, bias) = match reader.contains(&weight) {
        true => (weight, bias),
        false if reader.contains(&format!("{name}.gamma")) => {
            (format!("{name}.gamma"), format!("{name}.beta"))
        }
        false => (weight, bias),
    };
    let shape = [config.hidden_size];
    Ok(LayerNorm {
        weight: reader.tensor(&weight, &shape)?,
        bias: reader.tensor(&bias, &shape)?,
        epsilon: config.layer_norm_eps,
    })
}
