//! Nomic BERT (Nussbaum et al., 2024; nomic-embed-text v1 and v1.5): rotary positions, a gated feed-forward, and no
//! biases in the products. Its mixture of experts (v2) is refused.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::encoder::{
    EncoderFamily, Layer, Norms, Sizes, Transformer, layer_norm, linear, stacked, unsupported,
    words_of_first_segment,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::rotary::RotaryEmbedding;
use crate::kernels::{Activation, AttentionMask};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "nomic_bert",
    architectures: &["NomicBertModel", "NomicBertForPreTraining", "NomicBertForMaskedLM"],
    read: |file, config| Ok(Box::new(NomicBert::read(file, config)?)),
};

/// `config.json`, in the names of the published models or in those of transformers.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(alias = "hidden_size")]
    n_embd: usize,
    #[serde(alias = "num_hidden_layers")]
    n_layer: usize,
    #[serde(alias = "num_attention_heads")]
    n_head: usize,
    #[serde(alias = "intermediate_size")]
    n_inner: Option<usize>,
    #[serde(alias = "max_position_embeddings", default = "positions")]
    n_positions: usize,
    #[serde(default = "types")]
    type_vocab_size: usize,
    #[serde(alias = "layer_norm_eps", default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(alias = "hidden_act", default = "swiglu")]
    activation_function: String,
    #[serde(default = "base")]
    rotary_emb_base: f64,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
    #[serde(default = "whole")]
    rotary_emb_fraction: f64,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default)]
    rotary_scaling_factor: Option<f64>,
    #[serde(default = "trained")]
    max_trained_positions: usize,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    use_rms_norm: Option<bool>,
    #[serde(default)]
    causal: bool,
    #[serde(default)]
    num_experts: usize,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
}

fn positions() -> usize {
    2048
}

fn trained() -> usize {
    2048
}

fn types() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}

fn swiglu() -> String {
    "swiglu".to_owned()
}

fn base() -> f64 {
    1000.0
}

fn whole() -> f64 {
    1.0
}

impl Config {
    /// Refuses what no published text embedding model has.
    fn check(&self, file: &Path) -> Result<()> {
        let switches = [
            ("prenorm", self.prenorm),
            ("parallel_block", self.parallel_block),
            ("use_rms_norm", self.use_rms_norm == Some(true)),
            ("causal", self.causal),
            ("rotary_emb_interleaved", self.rotary_emb_interleaved),
        ];
        if let Some((what, _)) = switches.into_iter().find(|(_, on)| *on) {
            return Err(unsupported(file, what, "true", "false"));
        }
        if self.num_experts > 0 {
            return Err(unsupported(file, "num_experts", &self.num_experts.to_string(), "0"));
        }
        if self.rotary_emb_fraction != 1.0 {
            let found = self.rotary_emb_fraction.to_string();
            return Err(unsupported(file, "rotary_emb_fraction", &found, "1"));
        }
        Ok(())
    }
}

struct NomicBert {
    sizes: Sizes,
    frequencies: RotaryEmbedding,
    activation: Activation,
    config: Config,
}

impl NomicBert {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let config: Config = parse(file, config)?;
        config.check(file)?;
        let activation = match config.activation_function.as_str() {
            "swiglu" | "silu" => Activation::Silu,
            "geglu" => Activation::GeluErf,
            other => return Err(unsupported(file, "activation_function", other, "swiglu, geglu")),
        };
        let inner = config.n_inner.unwrap_or_else(|| config.n_embd.saturating_mul(4));
        // Where positions are stretched, the reference stretches them by the longest text of a batch, once that is
        // beyond what was trained. A vector must not depend on its batch, so texts end where that would begin.
        let longest = match config.rotary_scaling_factor {
            Some(_) => config.n_positions.min(config.max_trained_positions),
            None => config.n_positions,
        };
        let sizes = Sizes {
            vocabulary: config.vocab_size,
            width: config.n_embd,
            layers: config.n_layer,
            heads: config.n_head,
            middle: inner.saturating_mul(2),
            longest,
        };
        let sizes = sizes.check(file)?;
        let theta = config.rope_parameters.as_ref().map_or(config.rotary_emb_base, |rope| rope.rope_theta);
        Ok(Self { sizes, frequencies: sizes.frequencies(file, theta)?, activation, config })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes;
        let Config { qkv_proj_bias, mlp_fc1_bias, mlp_fc2_bias, .. } = self.config;
        let name = |part: &str| format!("encoder.layers.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, self.config.layer_norm_epsilon, true);
        let gate_and_up = [name("mlp.fc12"), name("mlp.fc11")];
        Ok(Layer {
            mixed: linear(reader, &name("attn.Wqkv"), [3 * width, width], qkv_proj_bias)?,
            attended: linear(reader, &name("attn.out_proj"), [width, width], qkv_proj_bias)?,
            norms: Norms::After { attention: norm("norm1")?, feed: norm("norm2")? },
            wide: stacked(reader, &gate_and_up, [middle / 2, width], mlp_fc1_bias)?,
            activation: self.activation,
            gated: true,
            narrow: linear(reader, &name("mlp.fc2"), [width, middle / 2], mlp_fc2_bias)?,
            mask: AttentionMask::Full,
            rope: Some(0),
        })
    }
}

impl EncoderFamily for NomicBert {
    const PREFIXES: &'static [&'static str] = &["", "bert.", "nomic_bert."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn is_part(&self, name: &str) -> bool {
        ["encoder.", "embeddings.", "emb_ln."].iter().any(|part| name.starts_with(part))
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        let names = [Self::WORDS, "embeddings.token_type_embeddings.weight"];
        let layers = (0..self.sizes.layers).map(|index| self.layer(reader, index));
        Ok(Transformer {
            words: words_of_first_segment(reader, names, self.sizes, self.config.type_vocab_size)?,
            positions: None,
            norm: layer_norm(reader, "emb_ln", self.sizes.width, self.config.layer_norm_epsilon, true)?,
            layers: layers.collect::<Result<_>>()?,
            last_norm: None,
            heads: self.sizes.heads,
            slopes: Vec::new(),
            frequencies: vec![self.frequencies.clone()],
        })
    }
}
