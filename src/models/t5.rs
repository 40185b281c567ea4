//! T5 (Raffel et al., 2020, arXiv 1910.10683; version 1.1, Flan-T5) as two stacks of the common block: an encoder that
//! sees whole texts, and a decoder that looks at what the encoder made of one. Both have learned biases by distance in
//! place of positions, and neither scales its scores. Follows `modeling_t5.py` of transformers. Tokenizers, and what the
//! encoder is given, are left to the families.

use std::path::Path;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::{invalid, unsupported, with_defaults, without_nulls};
use crate::models::decoder::{DecoderConfig, DecoderNames, Embeddings, Head};
use crate::models::transformer::{
    self, AttentionConfig, Bias, Biases, CrossNames, FeedForwardConfig, LayerConfig, MixerConfig, Names,
    Norm, NormKind, NormPlacement, QkvNames, RelativeBiasConfig, SafeTensors, Transformer, TransformerConfig,
    UpNames, Workload, layer_count,
};
use crate::weights::WeightFiles;

/// Maximum number of ranges of distances with a bias of their own.
const MAX_BUCKETS: usize = 1 << 16;
/// Largest distance from which on all share a bias.
const MAX_DISTANCE: usize = 1 << 20;
/// Maximum number of heads: each has its own bias for each distance.
const MAX_HEADS: usize = 256;
/// Maximum number of biases of all heads and distances in a table.
const MAX_BIASES: usize = 1 << 24;
/// Tokens of a text and its answer, whose positions are relative and have no end: four times what published models take.
const CONTEXT: usize = 2048;

const ENCODER: Names = Names {
    blocks: "encoder.block.",
    relative_bias: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    attention_norm: "layer.0.layer_norm",
    qkv: QkvNames::Separate([
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
    ]),
    out_proj: "layer.0.SelfAttention.o",
    feed_forward_norm: "layer.1.layer_norm",
    feed_forward: "layer.1.DenseReluDense.",
    up: UpNames::Dense("wi"),
    down: "wo",
    ..Names::NONE
};

const DECODER: Names = Names {
    blocks: "decoder.block.",
    relative_bias: "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    cross_attention: CrossNames {
        query: "layer.1.EncDecAttention.q",
        key: "layer.1.EncDecAttention.k",
        value: "layer.1.EncDecAttention.v",
        out_proj: "layer.1.EncDecAttention.o",
        norm: "layer.1.layer_norm",
    },
    feed_forward_norm: "layer.2.layer_norm",
    feed_forward: "layer.2.DenseReluDense.",
    ..ENCODER
};

const GATED: UpNames = UpNames::Separate { gate: "wi_0", up: "wi_1" };

/// Names of the decoder within a model that has it as its `language_model`.
const NAMES: DecoderNames = DecoderNames {
    prefixes: &["language_model."],
    token_embeddings: "shared",
    block_inputs: "",
    positions: "",
    embedding_norm: "",
    blocks: DECODER,
    norm: "decoder.final_layer_norm",
    transform: "",
    heads: &["language_model.lm_head"],
    logit_bias: "",
    // Copies of the shared table.
    no_effect: &["language_model.encoder.embed_tokens.", "language_model.decoder.embed_tokens."],
};

/// The same with gated feed-forward networks.
const GATED_NAMES: DecoderNames = DecoderNames { blocks: Names { up: GATED, ..DECODER }, ..NAMES };

/// `config.json`, or its part for the text.
#[derive(Deserialize)]
struct Settings {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    feed_forward_proj: String,
    tie_word_embeddings: bool,
    eos_token_id: u32,
    pad_token_id: u32,
    decoder_start_token_id: Option<u32>,
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "tie_word_embeddings": true, "eos_token_id": 1, "pad_token_id": 0
    })
}

/// A T5 that is not loaded.
#[derive(Debug, Clone)]
pub(crate) struct T5Config {
    encoder: TransformerConfig,
    encoder_names: Names,
    pub(crate) decoder: DecoderConfig,
    /// The token that an answer begins behind.
    pub(crate) start: u32,
}

impl T5Config {
    /// Reads and checks the settings of `config`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig), [`Error::UnsupportedSetting`](crate::Error::UnsupportedSetting).
    pub(crate) fn read(file: &Path, config: &Value) -> Result<Self> {
        let settings: Settings = parse(file, &with_defaults(&without_nulls(config), defaults()))?;
        if settings.tie_word_embeddings {
            // The first version scales what it makes logits of, and nobody shows images to it.
            return Err(unsupported(file, "tie_word_embeddings", "true", "false"));
        }
        let (gate, activation) = match settings.feed_forward_proj.split_once('-') {
            // Version 1.1 was published with this name and uses the approximation by tanh.
            Some(("gated", "gelu")) => (true, Some(Activation::GeluTanh)),
            Some(("gated", name)) => (true, Activation::from_name(name)),
            _ => (false, Activation::from_name(&settings.feed_forward_proj)),
        };
        let Some(activation) = activation else {
            let supported = "relu, gated-gelu, gated-silu";
            return Err(unsupported(file, "feed_forward_proj", &settings.feed_forward_proj, supported));
        };
        let blocks = |layers| settings.blocks(file, layers, gate, activation);
        let encoder = blocks(settings.num_layers)?;
        let decoder = TransformerConfig {
            cross_attention: Some(settings.d_model),
            workload: Workload::GrowingSequences,
            ..blocks(settings.num_decoder_layers.unwrap_or(settings.num_layers))?
                .with_mask(AttentionMask::Causal)
        };
        let start = settings.decoder_start_token_id.unwrap_or(settings.pad_token_id);
        let decoder = DecoderConfig {
            vocabulary: settings.vocab_size,
            context: CONTEXT,
            embeddings: Embeddings::Plain,
            transformer: decoder,
            head: Head::Own(Bias::No),
            logit_cap: None,
            end_tokens: vec![settings.eos_token_id],
            names: if gate { &GATED_NAMES } else { &NAMES },
            modules: None,
        };
        let decoder = decoder.checked(file)?;
        if start as usize >= decoder.vocabulary {
            return Err(invalid(file, "decoder_start_token_id is not below vocab_size"));
        }
        let encoder_names = if gate { Names { up: GATED, ..ENCODER } } else { ENCODER };
        Ok(Self { encoder, encoder_names, decoder, start })
    }

    /// True for the tensors of the encoder that are loaded.
    pub(crate) fn encoder_uses(&self, tensor: &str) -> bool {
        let name = tensor.strip_prefix(NAMES.prefixes[0]).unwrap_or_default();
        name.starts_with(ENCODER.blocks) || name == "encoder.final_layer_norm.weight"
    }

    /// Bytes that encoding a text of so many tokens needs besides the weights.
    pub(crate) fn scratch(&self, tokens: usize) -> Bytes {
        self.encoder.scratch(tokens, tokens)
    }

    /// Reads the encoder. The table of tokens is the decoder's.
    pub(crate) fn load_encoder(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<T5Encoder> {
        let reader = weights.reader(NAMES.prefixes[0], device, context);
        let tensors = SafeTensors::new(&reader, "", self.encoder.workload);
        let norm = transformer::Tensors::norm(
            &tensors,
            "encoder.final_layer_norm",
            self.encoder.width,
            self.encoder.norm,
            self.encoder.epsilon,
        )?;
        Ok(T5Encoder {
            blocks: transformer::load(&self.encoder, &self.encoder_names, &tensors, device)?,
            norm,
        })
    }
}

impl Settings {
    /// Blocks of the encoder; the decoder's see less and more.
    fn blocks(
        &self,
        file: &Path,
        layers: usize,
        gate: bool,
        activation: Activation,
    ) -> Result<TransformerConfig> {
        let (buckets, max_distance) =
            (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if !(4..=MAX_BUCKETS).contains(&buckets) || !(buckets / 2 + 1..=MAX_DISTANCE).contains(&max_distance)
        {
            let reason = format!(
                "relative_attention_num_buckets is {buckets} and relative_attention_max_distance {max_distance}; 4 to \
                 {MAX_BUCKETS} buckets are allowed, and a distance above half of them up to {MAX_DISTANCE}"
            );
            return Err(invalid(file, reason));
        }
        if self.num_heads > MAX_HEADS || self.num_heads.saturating_mul(max_distance + 1) > MAX_BIASES {
            let reason = format!(
                "num_heads is {} and relative_attention_max_distance {max_distance}; at most {MAX_HEADS} heads are \
                 allowed, and {MAX_BIASES} biases of all heads and distances",
                self.num_heads
            );
            return Err(invalid(file, reason));
        }
        let intermediate = self.d_ff;
        let layer = LayerConfig {
            mixer: MixerConfig::Attention,
            mask: AttentionMask::Full,
            key_values_of: None,
            rope: None,
            feed_forward: match gate {
                true => FeedForwardConfig::Gated { intermediate },
                false => FeedForwardConfig::Dense { intermediate },
            },
            glu: None,
            input_is_normed: false,
            looks_beside: true,
        };
        let config = TransformerConfig {
            width: self.d_model,
            attention: AttentionConfig {
                scale: 1.0,
                relative_bias: Some(RelativeBiasConfig { buckets, max_distance }),
                ..AttentionConfig::plain(self.num_heads, self.num_heads, self.d_kv)
            },
            cross_attention: None,
            norm: NormKind::Rms,
            norm_placement: NormPlacement::Pre,
            epsilon: self.layer_norm_epsilon,
            biases: Biases::NONE,
            activation,
            glu: crate::kernels::glu::GluForm::Plain,
            streams: None,
            layers: vec![layer; layer_count(file, layers)?],
            ropes: Vec::new(),
            workload: Workload::WholeSequences,
        };
        config.check(file)?;
        Ok(config)
    }
}

/// A loaded encoder.
pub(crate) struct T5Encoder {
    blocks: Transformer,
    norm: Norm,
}

impl T5Encoder {
    /// One text's rows, `(tokens, width)`, to the rows that the decoder looks at.
    pub(crate) fn forward(&self, rows: Tensor) -> Result<Tensor> {
        let length = rows.dim(0)?;
        let hidden = self.blocks.encode(rows, &[length], 0..self.blocks.depth(), |_, _| Ok(()))?;
        self.norm.forward(&hidden)
    }
}
