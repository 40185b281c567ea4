//! Text encoders of candle-transformers: T5 (sentence-t5, GTR) and DeBERTa-v2 and v3. Texts go through one by one, since the
//! library's batches are padded; who has gone is looked for between them.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_transformers::models::debertav2::{self, DebertaV2Model};
use candle_transformers::models::t5::{self, T5EncoderModel};
use model_actors::{Bytes, LoadContext};
use serde_json::{Value, json};

use super::{Architecture, Encoder};
use crate::architecture::{Family, parse};
use crate::device::ComputeThreads;
use crate::error::Result;
use crate::models::answers::Watch;
use crate::models::config_file::{MAX_LAYERS, MAX_SIDE, invalid, unsupported, with_defaults};
use crate::models::token_batch::TokenBatch;
use crate::models::transformer::is_buffer;
use crate::models::transformers::build;
use crate::weights::WeightFiles;

/// T5's encoder.
pub(super) const T5: Family<Box<dyn Architecture>> = Family {
    model_type: "t5",
    architectures: &["T5EncoderModel", "T5Model", "T5ForConditionalGeneration"],
    read: |file, config| Ok(Box::new(T5::read(file, config)?)),
};

/// DeBERTa-v2 and v3.
pub(super) const DEBERTA_V2: Family<Box<dyn Architecture>> = Family {
    model_type: "deberta-v2",
    architectures: &["DebertaV2Model", "DebertaV2ForMaskedLM"],
    read: |file, config| Ok(Box::new(Deberta::read(file, config)?)),
};

/// Tokens of a text for T5, whose positions are relative and have no end: four times what published models take.
const T5_CONTEXT: usize = 2048;

/// The sizes that memory is computed from.
struct Sizes {
    width: usize,
    heads: usize,
    intermediate: usize,
    layers: usize,
    vocabulary: usize,
    longest: usize,
}

impl Sizes {
    fn checked(self, file: &Path) -> Result<Self> {
        let sides = [self.width, self.heads, self.intermediate, self.vocabulary, self.longest];
        match sides.into_iter().find(|side| !(1..=MAX_SIDE).contains(side)) {
            Some(side) => Err(invalid(file, format!("a side is {side}; 1 to {MAX_SIDE} are allowed"))),
            None if !(1..=MAX_LAYERS).contains(&self.layers) => {
                let layers = self.layers;
                Err(invalid(file, format!("it has {layers} layers; 1 to {MAX_LAYERS} are allowed")))
            }
            None => Ok(self),
        }
    }

    /// Bytes of a pass, in which a text has at most `longest` tokens: scores, biases and weights of attention beside each
    /// other, and the rows of one text in all their forms.
    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        let product =
            |sides: &[usize]| sides.iter().fold(4, |bytes: u64, side| bytes.saturating_mul(*side as u64));
        let scores = product(&[6, self.heads, longest, longest]);
        let rows =
            product(&[16, self.width, longest]).saturating_add(product(&[4, self.intermediate, longest]));
        Bytes(scores.saturating_add(rows).saturating_add(product(&[3, self.width, tokens])))
    }
}

struct T5 {
    config: t5::Config,
    sizes: Sizes,
}

impl T5 {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let defaults = json!({
            "is_encoder_decoder": true, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
            "relative_attention_num_buckets": 32, "pad_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "relu",
        });
        let config: t5::Config = parse(file, &with_defaults(config, defaults))?;
        let sizes = Sizes {
            width: config.d_model,
            heads: config.num_heads,
            intermediate: config.d_ff.max(config.d_kv.saturating_mul(config.num_heads)),
            layers: config.num_layers,
            vocabulary: config.vocab_size,
            longest: T5_CONTEXT,
        };
        let buckets = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        // Half of the buckets are for each direction, and half of those for single distances.
        if buckets.0 < 4 || buckets.0 > MAX_SIDE || buckets.1 <= buckets.0 / 4 || buckets.1 > MAX_SIDE {
            let (buckets, distance) = buckets;
            let reason = format!("{buckets} buckets of relative positions do not reach to {distance}");
            return Err(invalid(file, reason));
        }
        Ok(Self { config, sizes: sizes.checked(file)? })
    }
}

impl Architecture for T5 {
    fn width(&self) -> usize {
        self.sizes.width
    }

    fn vocabulary(&self) -> usize {
        self.sizes.vocabulary
    }

    fn longest(&self) -> usize {
        self.sizes.longest
    }

    fn uses(&self, tensor: &str) -> bool {
        tensor.starts_with("encoder.") || tensor == "shared.weight"
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        // The embedding under other names, and what writes.
        tensor.ends_with("embed_tokens.weight")
            || tensor.starts_with("decoder.")
            || tensor == "lm_head.weight"
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        self.sizes.scratch(tokens, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let model = build(weights, device, context, |weights| T5EncoderModel::load(weights, &self.config))?;
        Ok(Arc::new(Library {
            device: device.clone(),
            forward: Box::new(move |tokens| model.clone().forward(tokens)),
        }))
    }
}

struct Deberta {
    config: debertav2::Config,
    sizes: Sizes,
}

impl Deberta {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let defaults = json!({
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
            "type_vocab_size": 0, "layer_norm_eps": 1e-7, "relative_attention": false, "max_relative_positions": -1,
            "position_biased_input": true, "pos_att_type": [],
        });
        let config: debertav2::Config = parse(file, &with_defaults(config, defaults))?;
        if let Some(size) = config.conv_kernel_size.filter(|size| *size > 0) {
            return Err(unsupported(file, "conv_kernel_size", &size.to_string(), "0"));
        }
        let sizes = Sizes {
            width: config.hidden_size,
            heads: config.num_attention_heads,
            intermediate: config.intermediate_size,
            layers: config.num_hidden_layers,
            vocabulary: config.vocab_size,
            longest: config.max_position_embeddings,
        };
        let sizes = sizes.checked(file)?;
        if !sizes.width.is_multiple_of(sizes.heads) {
            return Err(invalid(file, format!("a width of {} has no {} heads", sizes.width, sizes.heads)));
        }
        Ok(Self { config, sizes })
    }
}

/// Beginnings of the names of heads of other tasks.
const HEADS: [&str; 5] = ["pooler.", "cls.", "classifier.", "lm_predictions.", "mask_predictions."];

impl Architecture for Deberta {
    fn width(&self) -> usize {
        self.sizes.width
    }

    fn vocabulary(&self) -> usize {
        self.sizes.vocabulary
    }

    fn longest(&self) -> usize {
        self.sizes.longest
    }

    fn uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("deberta.").unwrap_or(tensor);
        name.starts_with("embeddings.") || name.starts_with("encoder.")
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        is_buffer(tensor) || HEADS.iter().any(|head| tensor.starts_with(head))
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        self.sizes.scratch(tokens, longest)
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let is_part = weights.contains("deberta.embeddings.word_embeddings.weight");
        let model = build(weights, device, context, |weights| {
            let weights = if is_part { weights.pp("deberta") } else { weights };
            DebertaV2Model::load(weights, &self.config)
        })?;
        let forward = move |tokens: &Tensor| model.forward(tokens, None, None);
        Ok(Arc::new(Library { device: device.clone(), forward: Box::new(forward) }))
    }
}

/// Tokens of one text, `(1, tokens)`, to their vectors, `(1, tokens, width)`.
type Forward = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync>;

/// An encoder of the library in memory.
struct Library {
    forward: Forward,
    device: Device,
}

impl Encoder for Library {
    fn threads(&self, threads: usize) -> Result<ComputeThreads> {
        ComputeThreads::pool(threads)
    }

    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        let (mut rest, mut rows) = (batch.ids.as_slice(), Vec::with_capacity(batch.lengths.len()));
        for length in &batch.lengths {
            watch()?;
            let (text, others) = rest.split_at_checked(*length).unwrap_or((rest, &[]));
            rest = others;
            let tokens = Tensor::new(text, &self.device)?.unsqueeze(0)?;
            rows.push((self.forward)(&tokens)?.squeeze(0)?);
        }
        watch()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}
