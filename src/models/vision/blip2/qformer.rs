//! BLIP-2's Q-Former: a few learned queries that go through the blocks of a BERT, some of which look at the image.

use std::path::Path;

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::Ahead;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults, without_nulls};
use crate::models::transformer::{
    self, CrossNames, Names, NormPlacement, QkvNames, SafeTensors, Segment, Sizes, Transformer,
    TransformerConfig, UpNames, Workload, check_side,
};

const BLOCKS: Names = Names {
    blocks: "encoder.layer.",
    qkv: QkvNames::Separate([
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ]),
    out_proj: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    cross_attention: CrossNames {
        query: "crossattention.attention.query",
        key: "crossattention.attention.key",
        value: "crossattention.attention.value",
        out_proj: "crossattention.output.dense",
        norm: "crossattention.output.LayerNorm",
    },
    up: UpNames::Dense("intermediate_query.dense"),
    down: "output_query.dense",
    feed_forward_norm: "output_query.LayerNorm",
    ..Names::NONE
};

/// `qformer_config`.
#[derive(Deserialize)]
struct Settings {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    cross_attention_frequency: usize,
    use_qformer_text_input: bool,
    /// The reference takes the vision tower's width, whatever it says.
    encoder_hidden_size: Option<usize>,
}

fn defaults() -> Value {
    json!({
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2, "use_qformer_text_input": false
    })
}

/// The Q-Former that is not loaded.
pub(super) struct QFormerConfig {
    transformer: TransformerConfig,
    /// Number of queries: rows that the text gets.
    pub(super) queries: usize,
}

impl QFormerConfig {
    /// Reads a `qformer_config`; the image's rows have `image_width` numbers.
    pub(super) fn read(file: &Path, config: &Value, queries: usize, image_width: usize) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        check_side(file, "num_query_tokens", queries)?;
        if settings.use_qformer_text_input {
            return Err(unsupported(file, "use_qformer_text_input", "true", "false"));
        }
        let seen = settings.encoder_hidden_size.unwrap_or(image_width);
        if seen != image_width {
            let reason =
                format!("encoder_hidden_size is {seen}; the vision tower's hidden_size is {image_width}");
            return Err(invalid(file, reason));
        }
        if settings.cross_attention_frequency == 0 {
            return Err(invalid(file, "cross_attention_frequency is 0"));
        }
        let sizes = Sizes {
            width: settings.hidden_size,
            intermediate: settings.intermediate_size,
            layers: settings.num_hidden_layers,
            heads: settings.num_attention_heads,
        };
        let activation = activation(file, "hidden_act", &settings.hidden_act)?;
        let blocks = TransformerConfig::encoder(
            file,
            sizes,
            NormPlacement::Post,
            activation,
            settings.layer_norm_eps,
        )?;
        let mut transformer = TransformerConfig {
            cross_attention: Some(image_width),
            workload: Workload::GrowingSequences,
            ..blocks
        };
        for (index, layer) in transformer.layers.iter_mut().enumerate() {
            layer.looks_beside = index.is_multiple_of(settings.cross_attention_frequency);
        }
        Ok(Self { transformer, queries })
    }

    /// Length of a query.
    pub(super) fn width(&self) -> usize {
        self.transformer.width
    }

    /// Bytes that a pass over an image of `rows` rows needs besides the weights.
    pub(super) fn scratch(&self, rows: usize) -> Bytes {
        let beside = (2 * self.width() as u64).saturating_mul(rows as u64);
        let beside = Bytes(beside.saturating_mul(4 * self.transformer.layers.len() as u64));
        self.transformer.scratch(self.queries, rows.max(self.queries))
            + self.transformer.cache_bytes(self.queries, 1)
            + beside
    }

    /// Loads it from the tensors of the whole model.
    pub(super) fn load(&self, tensors: &SafeTensors<'_>) -> Result<QFormer> {
        let width = self.width();
        let queries = tensors.tensor("query_tokens", &[1, self.queries, width])?.squeeze(0)?;
        let tensors = tensors.at("qformer.");
        let norm = tensors.layer_norm("layernorm", width, self.transformer.epsilon)?;
        Ok(QFormer {
            queries: norm.forward(&queries)?,
            transformer: transformer::load(&self.transformer, &BLOCKS, &tensors, tensors.device())?,
        })
    }
}

/// The loaded Q-Former.
pub(super) struct QFormer {
    /// The normed queries, `(queries, width)`: they are the same for every image.
    queries: Tensor,
    transformer: Transformer,
}

impl QFormer {
    /// An image's rows to `(queries, width)`.
    pub(super) fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let length = self.queries.dim(0)?;
        let mut cache = self.transformer.cache_beside(length, image)?;
        let mut segments = [Segment { cache: &mut cache, length, positions: None, adapter: None }];
        self.transformer.forward(self.queries.clone(), &mut segments, Ahead::Hidden, |_, hidden| Ok(hidden))
    }
}
