//! ModernBERT (Warner et al., 2024): rotary positions, norms before each sublayer, a gated feed-forward
//! network, and blocks of which most see only their surroundings, with a base of their own for the rotary
//! positions.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::encoder::TextEncoder;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::AttentionMask;
use crate::models::config_file::{activation, invalid, unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{
    Biases, Names, NormKind, NormPlacement, QkvNames, Rope, Sizes, TransformerConfig, UpNames,
};

/// The family's entry in the list.
pub(in crate::models) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "modernbert",
    architectures: &["ModernBertModel", "ModernBertForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "model."]),
};

const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.tok_embeddings",
    positions: "",
    segments: "",
    embedding_norm: "embeddings.norm",
    embedding_projection: "",
    blocks: Names {
        blocks: "layers.",
        qkv: QkvNames::Fused("attn.Wqkv"),
        out_proj: "attn.Wo",
        attention_norm: "attn_norm",
        feed_forward: "mlp.",
        up: UpNames::GateUp("Wi"),
        down: "Wo",
        feed_forward_norm: "mlp_norm",
        ..Names::NONE
    },
    norm: "final_norm",
};

/// `config.json`, of transformers before version 5 or after.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_activation: String,
    max_position_embeddings: usize,
    norm_eps: f64,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    local_attention: usize,
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<String>>,
    global_rope_theta: f64,
    /// Null for the same as in the blocks that see everything.
    local_rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    full_attention: Option<RopeOfKind>,
    sliding_attention: Option<RopeOfKind>,
}

#[derive(Deserialize)]
struct RopeOfKind {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn defaults() -> Value {
    json!({
        "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5, "norm_bias": false,
        "attention_bias": false, "mlp_bias": false, "local_attention": 128, "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0, "local_rope_theta": 10000.0
    })
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    config.check(file)?;
    let sizes = Sizes {
        width: config.hidden_size,
        intermediate: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
    };
    let activation = activation(file, "hidden_activation", &config.hidden_activation)?;
    let (placement, epsilon) = (NormPlacement::Pre, config.norm_eps);
    let mut transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?.gated();
    transformer.norm = NormKind::Layer(config.norm_bias.into());
    transformer.biases = Biases::both(config.attention_bias.into(), config.mlp_bias.into());
    let (global, local) = config.bases(file)?;
    let rope = |base| Rope::plain(file, transformer.attention.head_size, base);
    transformer.ropes = vec![rope(global)?, rope(local)?];
    for (index, layer) in transformer.layers.iter_mut().enumerate() {
        let is_local = config.is_local(index);
        layer.rope = Some(is_local.into());
        // The embeddings have a norm of their own.
        layer.input_is_normed = index == 0;
        if is_local {
            layer.mask = AttentionMask::LocalWindow(config.local_attention / 2);
        }
    }
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        embedding_width: None,
        positions: PositionsConfig::None,
        segments: 0,
        transformer,
        names: &NAMES,
    })
}

impl Config {
    fn check(&self, file: &Path) -> Result<()> {
        if self.local_attention == 0 || self.global_attn_every_n_layers == 0 {
            return Err(invalid(file, "local_attention or global_attn_every_n_layers is 0"));
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

    /// The bases of the rotary positions: of blocks that see everything, and of the others.
    fn bases(&self, file: &Path) -> Result<(f64, f64)> {
        let own = |rope: Option<&RopeOfKind>| match rope.and_then(|rope| rope.rope_type.as_deref()) {
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
