//! ModernBERT (Warner et al., 2024): rotary positions, norms before each step, a gated feed-forward, and layers of
//! which most see only their surroundings, with a base of their own for the rotary positions.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::encoder::{
    EncoderFamily, Layer, Norms, Sizes, Transformer, activation, invalid, layer_norm, linear, unsupported,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::rotary::RotaryEmbedding;
use crate::kernels::{Activation, AttentionMask};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "modernbert",
    architectures: &["ModernBertModel", "ModernBertForMaskedLM"],
    read: |file, config| Ok(Box::new(ModernBert::read(file, config)?)),
};

/// `config.json`, of transformers before version 5 or after.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "positions")]
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "window")]
    local_attention: usize,
    #[serde(default = "every")]
    global_attn_every_n_layers: usize,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default = "global_base")]
    global_rope_theta: f64,
    /// Null for the same as the layers that see everything.
    #[serde(default = "local_base")]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn positions() -> usize {
    8192
}

fn epsilon() -> f64 {
    1e-5
}

fn window() -> usize {
    128
}

fn every() -> usize {
    3
}

fn global_base() -> f64 {
    160_000.0
}

fn local_base() -> Option<f64> {
    Some(10_000.0)
}

struct ModernBert {
    sizes: Sizes,
    activation: Activation,
    /// Those of layers that see everything, and those of the others.
    frequencies: Vec<RotaryEmbedding>,
    config: Config,
}

impl ModernBert {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let config: Config = parse(file, config)?;
        let sizes = Sizes {
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            middle: config.intermediate_size.saturating_mul(2),
            longest: config.max_position_embeddings,
        };
        let sizes = sizes.check(file)?;
        config.check(file)?;
        let (global, local) = config.bases(file)?;
        Ok(Self {
            sizes,
            activation: activation(file, "hidden_activation", &config.hidden_activation)?,
            frequencies: vec![sizes.frequencies(file, global)?, sizes.frequencies(file, local)?],
            config,
        })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes;
        let Config { attention_bias, mlp_bias, norm_bias, norm_eps, .. } = self.config;
        let name = |part: &str| format!("layers.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, norm_eps, norm_bias);
        let local = self.config.is_local(index);
        Ok(Layer {
            // The first layer's input comes from a norm already.
            norms: Norms::Before {
                attention: if index > 0 { Some(norm("attn_norm")?) } else { None },
                feed: norm("mlp_norm")?,
            },
            mixed: linear(reader, &name("attn.Wqkv"), [3 * width, width], attention_bias)?,
            attended: linear(reader, &name("attn.Wo"), [width, width], attention_bias)?,
            wide: linear(reader, &name("mlp.Wi"), [middle, width], mlp_bias)?,
            activation: self.activation,
            gated: true,
            narrow: linear(reader, &name("mlp.Wo"), [width, middle / 2], mlp_bias)?,
            mask: if local {
                AttentionMask::LocalWindow(self.config.local_attention / 2)
            } else {
                AttentionMask::Full
            },
            rope: Some(local.into()),
        })
    }
}

impl Config {
    fn check(&self, file: &Path) -> Result<()> {
        if self.local_attention == 0 || self.global_attn_every_n_layers == 0 {
            return Err(invalid(file, "local_attention or global_attn_every_n_layers is 0".to_owned()));
        }
        let Some(types) = &self.layer_types else { return Ok(()) };
        if types.len() != self.num_hidden_layers {
            let reason = format!("{} layer_types for {} layers", types.len(), self.num_hidden_layers);
            return Err(invalid(file, reason));
        }
        let known = ["full_attention", "sliding_attention"];
        match types.iter().find(|kind| !known.contains(&kind.as_str())) {
            Some(other) => Err(unsupported(file, "layer_types", other, "full_attention, sliding_attention")),
            None => Ok(()),
        }
    }

    /// The bases of the rotary positions: of layers that see everything, and of the others.
    fn bases(&self, file: &Path) -> Result<(f64, f64)> {
        let own = |rope: Option<&Rope>| match rope.and_then(|rope| rope.rope_type.as_deref()) {
            None | Some("default") => Ok(rope.and_then(|rope| rope.rope_theta)),
            Some(other) => Err(unsupported(file, "rope_type", other, "default")),
        };
        let ropes = self.rope_parameters.as_ref();
        let global =
            own(ropes.and_then(|ropes| ropes.full_attention.as_ref()))?.unwrap_or(self.global_rope_theta);
        let local = own(ropes.and_then(|ropes| ropes.sliding_attention.as_ref()))?;
        Ok((global, local.or(self.local_rope_theta).unwrap_or(global)))
    }

    fn is_local(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(layer).is_some_and(|kind| kind == "sliding_attention"),
            None => !layer.is_multiple_of(self.global_attn_every_n_layers),
        }
    }
}

impl EncoderFamily for ModernBert {
    const PREFIXES: &'static [&'static str] = &["", "model."];
    const WORDS: &'static str = "embeddings.tok_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn is_part(&self, name: &str) -> bool {
        ["layers.", "embeddings.", "final_norm."].iter().any(|part| name.starts_with(part))
    }

    fn assemble(&self, reader: &WeightReader<'_>) -> Result<Transformer> {
        let Sizes { vocabulary, width, heads, .. } = self.sizes;
        let norm = |name: &str| layer_norm(reader, name, width, self.config.norm_eps, self.config.norm_bias);
        let layers = (0..self.sizes.layers).map(|index| self.layer(reader, index));
        Ok(Transformer {
            words: reader.tensor(Self::WORDS, &[vocabulary, width])?,
            positions: None,
            norm: norm("embeddings.norm")?,
            layers: layers.collect::<Result<_>>()?,
            last_norm: Some(norm("final_norm")?),
            heads,
            slopes: Vec::new(),
            frequencies: self.frequencies.clone(),
        })
    }
}
