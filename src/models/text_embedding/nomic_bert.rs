//! Nomic BERT (Nussbaum et al., 2024; nomic-embed-text v1 and v1.5): rotary positions, a gated feed-forward
//! network, and no biases in the products. Its mixture of experts (v2) is refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Architecture;
use super::encoder::TextEncoder;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{invalid, unsupported, with_defaults};
use crate::models::towers::{PositionsConfig, TextTowerConfig, TextTowerNames};
use crate::models::transformer::{
    Biases, Names, NormPlacement, QkvNames, RopeSettings, RopeShape, Sizes, TransformerConfig, UpNames,
};

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "nomic_bert",
    architectures: &["NomicBertModel", "NomicBertForPreTraining", "NomicBertForMaskedLM"],
    read: |file, config| TextEncoder::architecture(file, read(file, config)?, &["", "bert.", "nomic_bert."]),
};

const NAMES: TextTowerNames = TextTowerNames {
    token_embeddings: "embeddings.word_embeddings",
    positions: "",
    segments: "embeddings.token_type_embeddings",
    embedding_norm: "emb_ln",
    embedding_projection: "",
    blocks: Names {
        blocks: "encoder.layers.",
        qkv: QkvNames::Fused("attn.Wqkv"),
        out_proj: "attn.out_proj",
        attention_norm: "norm1",
        feed_forward: "mlp.",
        up: UpNames::Separate { gate: "fc12", up: "fc11" },
        down: "fc2",
        feed_forward_norm: "norm2",
        ..Names::NONE
    },
    norm: "",
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
    #[serde(alias = "max_position_embeddings")]
    n_positions: Option<usize>,
    type_vocab_size: usize,
    #[serde(alias = "layer_norm_eps")]
    layer_norm_epsilon: Option<f64>,
    #[serde(alias = "hidden_act")]
    activation_function: Option<String>,
    rotary_emb_base: f64,
    /// As in the published models, of which the heads' size is that of the width and their number.
    head_dim: Option<usize>,
    rotary_emb_fraction: f64,
    rotary_emb_interleaved: bool,
    rotary_scaling_factor: Option<f64>,
    max_trained_positions: usize,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
    prenorm: bool,
    parallel_block: bool,
    use_rms_norm: Option<bool>,
    causal: bool,
    num_experts: usize,
}

/// The settings that have one name in both.
fn defaults() -> Value {
    json!({
        "type_vocab_size": 2, "rotary_emb_base": 1000.0, "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": false, "max_trained_positions": 2048, "qkv_proj_bias": false, "mlp_fc1_bias": false,
        "mlp_fc2_bias": false, "prenorm": false, "parallel_block": false, "causal": false, "num_experts": 0
    })
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

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    // Files of transformers speak of the rotary positions as those of decoders do.
    let rope: RopeSettings = parse(file, config)?;
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    config.check(file)?;
    let activation = match config.activation_function.as_deref() {
        None | Some("swiglu" | "silu") => Activation::Silu,
        Some("geglu") => Activation::GeluErf,
        Some(other) => return Err(unsupported(file, "activation_function", other, "swiglu, geglu")),
    };
    // Where positions are scaled, the reference scales them by the longest text of a batch, once that is beyond what
    // was trained. A vector must not depend on its batch, so texts end where that would begin.
    let positions = config.n_positions.unwrap_or(2048);
    let context = match config.rotary_scaling_factor {
        Some(_) => positions.min(config.max_trained_positions),
        None => rope.parameters(file, None)?.reach(positions),
    };
    let sizes = Sizes {
        width: config.n_embd,
        intermediate: config.n_inner.unwrap_or_else(|| config.n_embd.saturating_mul(4)),
        layers: config.n_layer,
        heads: config.n_head,
    };
    let (placement, epsilon) = (NormPlacement::Post, config.layer_norm_epsilon.unwrap_or(1e-12));
    let transformer = TransformerConfig::encoder(file, sizes, placement, activation, epsilon)?;
    let (head_size, base) = (transformer.attention.head_size, config.rotary_emb_base);
    if config.head_dim.is_some_and(|size| size != head_size) || !head_size.is_multiple_of(2) {
        return Err(invalid(file, "head_dim is not the heads' share of the width, or is odd"));
    }
    let parameters = rope.parameters(file, None)?;
    if let Some(share) = parameters.partial_rotary_factor.filter(|share| *share != 1.0) {
        return Err(unsupported(file, "partial_rotary_factor", &share.to_string(), "1"));
    }
    let rope = parameters.rope(file, RopeShape { head_size, context: positions, base })?;
    let mut transformer = transformer.gated().with_rope(rope);
    transformer.biases = Biases {
        qkv: config.qkv_proj_bias.into(),
        attention_output: config.qkv_proj_bias.into(),
        up: config.mlp_fc1_bias.into(),
        down: config.mlp_fc2_bias.into(),
    };
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context,
        embedding_width: None,
        positions: PositionsConfig::None,
        segments: config.type_vocab_size,
        transformer,
        names: &NAMES,
    })
}
