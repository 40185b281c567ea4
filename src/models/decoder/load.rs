//! From the tensors of a file to a decoder in memory. The same few steps serve every family and every kind of file;
//! what a file is, is behind [`Tensors`].

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use super::config::{
    Bias, DecoderConfig, FeedForward, Fusion, Head, HeadNorms, LayerConfig, NormWeight, Norms,
};
use super::experts::{Experts, Gated};
use super::layer::{Feed, Layer};
use super::{Decoder, Logits};
use crate::error::Result;
use crate::kernels::causal::CausalAttention;
use crate::kernels::packed::PackedLinear;
use crate::kernels::rms_norm::RmsNorm;
use crate::weights::{WeightFiles, WeightReader};

/// What names in a file may begin with, where the decoder was saved as a part of a larger model.
pub(super) const PREFIXES: [&str; 6] =
    ["model.", "", "language_model.model.", "model.language_model.", "language_model.", "embedding_model."];
/// The names of the matrix that makes logits.
pub(super) const HEADS: [&str; 3] =
    ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"];
const WORDS: &str = "embed_tokens.weight";

/// The tensors of a file, by the names of safetensors files of the Llama family, without prefix.
pub(super) trait Tensors {
    /// Whether there is a matrix of its own for logits.
    fn has_head(&self) -> bool;
    /// A vector of this length.
    fn vector(&self, name: &str, length: usize) -> Result<Tensor>;
    /// Matrices `(out, inside)` as one linear layer, one's outputs after the other's. Each has a bias or none.
    fn linear(&self, parts: &[Part<'_>], inside: usize, bias: Bias) -> Result<PackedLinear>;
    /// The matrix for logits.
    fn head(&self, outside: usize, inside: usize) -> Result<PackedLinear>;
}

/// A matrix by the name of its layer, and how many outputs it has.
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) outside: usize,
}

pub(super) fn load(config: &DecoderConfig, tensors: &dyn Tensors, device: &Device) -> Result<Decoder> {
    let words = Part { name: "embed_tokens", outside: config.vocabulary };
    let words = tensors.linear(&[words], config.width, Bias::No)?;
    let layers = config.layers.iter().enumerate();
    let layers = layers.map(|(index, layer)| Builder { config, tensors, index }.layer(layer));
    let layers = layers.collect::<Result<_>>()?;
    let norm = norm(config, tensors, "norm.weight", config.width)?;
    let logits = match config.head {
        Head::None => Logits::None,
        Head::Own if tensors.has_head() => Logits::Own(tensors.head(config.vocabulary, config.width)?),
        Head::Own | Head::Tied => Logits::Tied,
    };
    Ok(Decoder { words, layers, norm, logits, config: config.clone(), device: device.clone() })
}

fn norm(config: &DecoderConfig, tensors: &dyn Tensors, name: &str, length: usize) -> Result<RmsNorm> {
    let weight = tensors.vector(name, length)?;
    let weight = match config.norm_weight {
        NormWeight::Factor => weight,
        NormWeight::AboveOne => (weight + 1.0)?,
    };
    Ok(RmsNorm { weight, epsilon: config.epsilon })
}

/// One layer's loading.
struct Builder<'a> {
    config: &'a DecoderConfig,
    tensors: &'a dyn Tensors,
    index: usize,
}

impl Builder<'_> {
    fn name(&self, part: &str) -> String {
        format!("layers.{}.{part}", self.index)
    }

    fn norm(&self, part: &str, length: usize) -> Result<RmsNorm> {
        norm(self.config, self.tensors, &self.name(&format!("{part}.weight")), length)
    }

    fn linear(&self, parts: &[(&str, usize)], inside: usize, bias: Bias) -> Result<PackedLinear> {
        let names: Vec<String> = parts.iter().map(|(part, _)| self.name(part)).collect();
        let parts = names.iter().zip(parts).map(|(name, (_, outside))| Part { name, outside: *outside });
        self.tensors.linear(&parts.collect::<Vec<_>>(), inside, bias)
    }

    fn layer(&self, layer: &LayerConfig) -> Result<Layer> {
        let config = self.config;
        let width = config.width;
        let around = |name: &str| match config.norms {
            Norms::Before => Ok(None),
            Norms::Around => self.norm(name, width).map(Some),
        };
        let feed_norm = match config.norms {
            Norms::Before => "post_attention_layernorm",
            Norms::Around => "pre_feedforward_layernorm",
        };
        let queries = config.heads * config.head_size;
        Ok(Layer {
            attention_norm: self.norm("input_layernorm", width)?,
            mixed: self.mixed()?,
            attention: self.attention(layer)?,
            attended: self.linear(&[("self_attn.o_proj", width)], queries, config.biases.attended)?,
            attended_norm: around("post_attention_layernorm")?,
            feed_norm: self.norm(feed_norm, width)?,
            feed: self.feed(layer)?,
            fed_norm: around("post_feedforward_layernorm")?,
            rope: layer.rope,
        })
    }

    fn mixed(&self) -> Result<PackedLinear> {
        let config = self.config;
        let (queries, shared) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let parts = match config.fusion {
            Fusion::Fused => vec![("self_attn.qkv_proj", queries + 2 * shared)],
            Fusion::Separate => vec![
                ("self_attn.q_proj", queries),
                ("self_attn.k_proj", shared),
                ("self_attn.v_proj", shared),
            ],
        };
        self.linear(&parts, config.width, config.biases.query_key_value)
    }

    fn attention(&self, layer: &LayerConfig) -> Result<CausalAttention> {
        let config = self.config;
        let head_norms = match config.head_norms {
            HeadNorms::None => None,
            HeadNorms::EachHead => Some((
                self.norm("self_attn.q_norm", config.head_size)?,
                self.norm("self_attn.k_norm", config.head_size)?,
            )),
        };
        Ok(CausalAttention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            size: config.head_size,
            scale: config.attention_scale,
            soft_cap: config.attention_cap,
            mask: layer.mask,
            head_norms,
        })
    }

    fn feed(&self, layer: &LayerConfig) -> Result<Feed> {
        match layer.feed_forward {
            FeedForward::Dense { middle } => Ok(Feed::Dense(self.gated("mlp", middle)?)),
            FeedForward::Experts { middle, count, chosen, weights } => {
                let router = self.linear(&[("mlp.gate", count)], self.config.width, Bias::No)?;
                let experts = (0..count).map(|expert| self.gated(&format!("mlp.experts.{expert}"), middle));
                Ok(Feed::Experts(Experts {
                    router,
                    experts: experts.collect::<Result<_>>()?,
                    chosen,
                    weights,
                }))
            }
        }
    }

    fn gated(&self, part: &str, middle: usize) -> Result<Gated> {
        let config = self.config;
        let [gate, up, both, down] =
            ["gate_proj", "up_proj", "gate_up_proj", "down_proj"].map(|name| format!("{part}.{name}"));
        let wide = match config.fusion {
            Fusion::Fused => vec![(both.as_str(), 2 * middle)],
            Fusion::Separate => vec![(gate.as_str(), middle), (up.as_str(), middle)],
        };
        let bias = config.biases.feed_forward;
        Ok(Gated {
            wide: self.linear(&wide, config.width, bias)?,
            narrow: self.linear(&[(down.as_str(), config.width)], middle, bias)?,
            activation: config.activation,
        })
    }
}

/// The tensors of safetensors files.
pub(super) struct SafeTensors<'a> {
    reader: WeightReader<'a>,
    /// For the head, whose name has no prefix.
    whole: WeightReader<'a>,
    device: &'a Device,
}

impl<'a> SafeTensors<'a> {
    pub(super) fn new(weights: &'a WeightFiles, device: &'a Device, context: &'a LoadContext) -> Self {
        let prefix = PREFIXES.into_iter().find(|prefix| weights.contains(&format!("{prefix}{WORDS}")));
        Self {
            reader: weights.reader(prefix.unwrap_or(PREFIXES[0]), device, context),
            whole: weights.reader("", device, context),
            device,
        }
    }

    fn head_name(&self) -> Option<&'static str> {
        HEADS.into_iter().find(|name| self.whole.contains(name))
    }
}

impl Tensors for SafeTensors<'_> {
    fn has_head(&self) -> bool {
        self.head_name().is_some()
    }

    fn vector(&self, name: &str, length: usize) -> Result<Tensor> {
        self.reader.tensor(name, &[length])
    }

    fn linear(&self, parts: &[Part<'_>], inside: usize, bias: Bias) -> Result<PackedLinear> {
        let (mut weight, mut biases) = (Vec::new(), Vec::new());
        for Part { name, outside } in parts {
            self.reader.append(&format!("{name}.weight"), &[*outside, inside], &mut weight)?;
            if bias == Bias::Yes {
                self.reader.append(&format!("{name}.bias"), &[*outside], &mut biases)?;
            }
        }
        let length = biases.len();
        let bias = match bias {
            Bias::Yes => Some(self.reader.place(biases, &[length])?),
            Bias::No => None,
        };
        PackedLinear::new(weight, inside, bias, self.device)
    }

    fn head(&self, outside: usize, inside: usize) -> Result<PackedLinear> {
        let mut weight = Vec::new();
        self.whole.append(self.head_name().unwrap_or(HEADS[0]), &[outside, inside], &mut weight)?;
        PackedLinear::new(weight, inside, None, self.device)
    }
}
