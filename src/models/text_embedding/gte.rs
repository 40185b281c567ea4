//! GTE v1.5 and multilingual (Zhang et al., 2024), which calls itself `new`, and with it Stella en 400M v5: rotary
//! positions, stretched where the configuration says so, and a gated feed-forward.

use std::path::Path;

use serde::Deserialize;

use super::Architecture;
use super::encoder::{
    EncoderFamily, Layer, Norms, Sizes, Transformer, activation, invalid, layer_norm, linear, swapped,
    unsupported, words_of_first_segment,
};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::rotary::RotaryEmbedding;
use crate::kernels::{Activation, AttentionMask};
use crate::weights::WeightReader;

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "new",
    architectures: &["NewModel", "NewForMaskedLM", "NewForSequenceClassification"],
    read: |file, config| Ok(Box::new(Gte::read(file, config)?)),
};

/// `config.json`.
#[derive(Deserialize)]
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
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default)]
    layer_norm_type: Option<String>,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default = "base")]
    rope_theta: f64,
    #[serde(default)]
    rope_scaling: Option<Scaling>,
    #[serde(default)]
    logn_attention_scale: bool,
    #[serde(default)]
    pack_qkv: Option<bool>,
}

#[derive(Deserialize)]
struct Scaling {
    #[serde(rename = "type")]
    kind: String,
    factor: f64,
    #[serde(default)]
    mixed_b: Option<f64>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn positions() -> usize {
    8192
}

fn epsilon() -> f64 {
    1e-12
}

fn base() -> f64 {
    10_000.0
}

struct Gte {
    sizes: Sizes,
    frequencies: RotaryEmbedding,
    activation: Activation,
    segments: usize,
    epsilon: f64,
}

impl Gte {
    fn read(file: &Path, config: &serde_json::Value) -> Result<Self> {
        let config: Config = parse(file, config)?;
        let words = [
            ("position_embedding_type", config.position_embedding_type.as_deref(), "rope"),
            ("layer_norm_type", config.layer_norm_type.as_deref(), "layer_norm"),
        ];
        for (what, found, supported) in words {
            if let Some(found) = found.filter(|found| *found != supported) {
                return Err(unsupported(file, what, found, supported));
            }
        }
        if config.logn_attention_scale {
            return Err(unsupported(file, "logn_attention_scale", "true", "false"));
        }
        if config.pack_qkv == Some(false) {
            return Err(unsupported(file, "pack_qkv", "false", "true"));
        }
        let sizes = Sizes {
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            middle: config.intermediate_size.saturating_mul(2),
            longest: config.max_position_embeddings,
        };
        let sizes = sizes.check(file)?;
        Ok(Self {
            sizes,
            frequencies: frequencies(file, &config, sizes)?,
            activation: activation(file, "hidden_act", &config.hidden_act)?,
            segments: config.type_vocab_size,
            epsilon: config.layer_norm_eps,
        })
    }

    fn layer(&self, reader: &WeightReader<'_>, index: usize) -> Result<Layer> {
        let Sizes { width, middle, .. } = self.sizes;
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let norm = |part: &str| layer_norm(reader, &name(part), width, self.epsilon, true);
        Ok(Layer {
            mixed: linear(reader, &name("attention.qkv_proj"), [3 * width, width], true)?,
            attended: linear(reader, &name("attention.o_proj"), [width, width], true)?,
            norms: Norms::After { attention: norm("attn_ln")?, feed: norm("mlp_ln")? },
            wide: swapped(reader, &name("mlp.up_gate_proj"), [middle / 2, width], false)?,
            activation: self.activation,
            gated: true,
            narrow: linear(reader, &name("mlp.down_proj"), [width, middle / 2], true)?,
            mask: AttentionMask::Full,
            rope: Some(0),
        })
    }
}

/// The rotary frequencies, with the base and the frequencies stretched by the factor (NTK, <https://kexue.fm/archives/9706>).
fn frequencies(file: &Path, config: &Config, sizes: Sizes) -> Result<RotaryEmbedding> {
    let Some(scaling) = &config.rope_scaling else { return sizes.frequencies(file, config.rope_theta) };
    if scaling.kind != "ntk" || scaling.mixed_b.is_some() {
        return Err(unsupported(file, "rope_scaling", &scaling.kind, "ntk without mixed_b"));
    }
    if !(scaling.factor.is_finite() && scaling.factor > 0.0) {
        return Err(invalid(file, format!("rope_scaling has the factor {}", scaling.factor)));
    }
    let mut frequencies = sizes.frequencies(file, config.rope_theta * scaling.factor)?;
    let stretch = scaling.factor.powf(2.0 / (sizes.width / sizes.heads) as f64) as f32;
    frequencies.inverse_frequencies.iter_mut().for_each(|step| *step /= stretch);
    Ok(frequencies)
}

impl EncoderFamily for Gte {
    const PREFIXES: &'static [&'static str] = &["", "new."];
    const WORDS: &'static str = "embeddings.word_embeddings.weight";

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn is_part(&self, name: &str) -> bool {
        ["encoder.", "embeddings."].iter().any(|part| name.starts_with(part))
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
            slopes: Vec::new(),
            frequencies: vec![self.frequencies.clone()],
        })
    }
}
