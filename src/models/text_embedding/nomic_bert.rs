//! Nomic BERT (Nussbaum et al., 2024; nomic-embed-text v1 and v1.5): rotary positions, a gated feed-forward
//! network, and no biases in the products. Version 2 has biases, no gates, and in every other layer a mixture of experts.

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
    Bias, Biases, ExpertForm, ExpertNames, ExpertWeights, FeedForwardConfig, MatrixOrder, Names,
    NormPlacement, QkvNames, RopeSettings, RopeShape, Sizes, TransformerConfig, UpNames,
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

/// The names where the feed-forward networks have no gates.
const WITHOUT_GATES: TextTowerNames = TextTowerNames {
    blocks: Names {
        up: UpNames::Dense("fc1"),
        router: "mlp.router.layer",
        experts: ExpertNames::Stacked {
            up: UpNames::Dense("mlp.experts.mlp.w1"),
            up_order: MatrixOrder::Outputs,
            down: "mlp.experts.mlp.w2",
            down_order: MatrixOrder::Inputs,
            bias: "mlp.experts.bias",
        },
        ..NAMES.blocks
    },
    ..NAMES
};

/// `config.json`, in the names of the published models, in those of transformers, or in both.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    n_embd: Option<usize>,
    hidden_size: Option<usize>,
    n_layer: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_head: Option<usize>,
    num_attention_heads: Option<usize>,
    n_inner: Option<usize>,
    intermediate_size: Option<usize>,
    /// Counts for more than the other name: published files have the trained length there.
    n_positions: Option<usize>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: usize,
    layer_norm_epsilon: Option<f64>,
    layer_norm_eps: Option<f64>,
    activation_function: Option<String>,
    hidden_act: Option<String>,
    /// `rope_theta` among the rotary embedding's parameters of transformers.
    rotary_emb_base: Option<f64>,
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
    moe_top_k: usize,
    /// One of so many layers has experts.
    moe_every_n_layers: usize,
    moe_normalize_expert_weights: bool,
    num_shared_experts: usize,
}

/// The settings that have one name in both.
fn defaults() -> Value {
    json!({
        "type_vocab_size": 2, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
        "max_trained_positions": 2048, "qkv_proj_bias": false, "mlp_fc1_bias": false,
        "mlp_fc2_bias": false, "prenorm": false, "parallel_block": false, "causal": false, "num_experts": 0,
        "moe_top_k": 2, "moe_every_n_layers": 2, "moe_normalize_expert_weights": false, "num_shared_experts": 0
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
            ("moe_normalize_expert_weights", self.moe_normalize_expert_weights),
        ];
        if let Some((what, _)) = switches.into_iter().find(|(_, on)| *on) {
            return Err(unsupported(file, what, "true", "false"));
        }
        if self.num_experts > 0 {
            let published = [
                ("moe_every_n_layers", self.moe_every_n_layers, 2),
                ("num_shared_experts", self.num_shared_experts, 0),
            ];
            if let Some((what, found, one)) = published.into_iter().find(|(_, found, one)| found != one) {
                return Err(unsupported(file, what, &found.to_string(), one.to_string()));
            }
            if self.is_gated() {
                return Err(unsupported(file, "num_experts with gates", &self.num_experts.to_string(), "0"));
            }
        }
        if self.rotary_emb_fraction != 1.0 {
            let found = self.rotary_emb_fraction.to_string();
            return Err(unsupported(file, "rotary_emb_fraction", &found, "1"));
        }
        Ok(())
    }

    fn sizes(&self, file: &Path) -> Result<Sizes> {
        let size = |names: [&str; 2], values| {
            let missing = || invalid(file, format!("it has neither {} nor {}", names[0], names[1]));
            one_of(file, names, values)?.ok_or_else(missing)
        };
        let width = size(["n_embd", "hidden_size"], [self.n_embd, self.hidden_size])?;
        let inner = [self.n_inner, self.intermediate_size];
        Ok(Sizes {
            width,
            intermediate: one_of(file, ["n_inner", "intermediate_size"], inner)?
                .unwrap_or_else(|| width.saturating_mul(4)),
            layers: size(["n_layer", "num_hidden_layers"], [self.n_layer, self.num_hidden_layers])?,
            heads: size(["n_head", "num_attention_heads"], [self.n_head, self.num_attention_heads])?,
        })
    }

    fn epsilon(&self, file: &Path) -> Result<f64> {
        let (names, values) =
            (["layer_norm_epsilon", "layer_norm_eps"], [self.layer_norm_epsilon, self.layer_norm_eps]);
        Ok(one_of(file, names, values)?.unwrap_or(1e-12))
    }

    /// True if the feed-forward networks have gates. Only the published form has another.
    fn is_gated(&self) -> bool {
        self.activation_function.as_deref() != Some("gelu")
    }

    /// Experts in every other layer.
    fn with_experts(&self, mut transformer: TransformerConfig, intermediate: usize) -> TransformerConfig {
        let experts = FeedForwardConfig::Experts {
            intermediate,
            count: self.num_experts,
            chosen: self.moe_top_k,
            weights: ExpertWeights::OfAll,
            router_bias: Bias::No,
            form: ExpertForm::Dense,
            shared: None,
        };
        for layer in transformer.layers.iter_mut().skip(1).step_by(2).filter(|_| self.num_experts > 0) {
            layer.feed_forward = experts;
        }
        transformer
    }

    fn activation(&self, file: &Path) -> Result<Activation> {
        if !self.is_gated() {
            return match self.hidden_act.as_deref() {
                None | Some("gelu") => Ok(Activation::GeluErf),
                Some(other) => {
                    Err(unsupported(file, "hidden_act", other, "gelu, as activation_function says"))
                }
            };
        }
        let names = ["activation_function", "hidden_act"];
        let read = |name, value: &Option<String>| match value.as_deref() {
            None => Ok(None),
            Some("swiglu" | "silu") => Ok(Some(Activation::Silu)),
            Some("geglu") => Ok(Some(Activation::GeluErf)),
            Some(other) => Err(unsupported(file, name, other, "swiglu, geglu, gelu")),
        };
        let values = [read(names[0], &self.activation_function)?, read(names[1], &self.hidden_act)?];
        Ok(one_of(file, names, values)?.unwrap_or(Activation::Silu))
    }
}

/// A setting that has two names, if the file has it.
fn one_of<T: PartialEq>(file: &Path, names: [&str; 2], values: [Option<T>; 2]) -> Result<Option<T>> {
    match values {
        [Some(one), Some(other)] if one != other => {
            let [one, other] = names;
            Err(invalid(file, format!("{one} and {other} are names of one setting, and have two values")))
        }
        [one, other] => Ok(one.or(other)),
    }
}

fn read(file: &Path, config: &Value) -> Result<TextTowerConfig> {
    // Files of transformers speak of the rotary positions as those of decoders do.
    let rope: RopeSettings = parse(file, config)?;
    let config: Config = parse(file, &with_defaults(config, defaults()))?;
    config.check(file)?;
    // Where positions are scaled, the reference scales them by the longest text of a batch, once that is beyond what
    // was trained. A vector must not depend on its batch, so texts end where that would begin.
    let positions = config.n_positions.or(config.max_position_embeddings).unwrap_or(2048);
    let context = match config.rotary_scaling_factor {
        Some(_) => positions.min(config.max_trained_positions),
        None => rope.parameters(file, None)?.reach(positions),
    };
    let (placement, activation, epsilon) =
        (NormPlacement::Post, config.activation(file)?, config.epsilon(file)?);
    let transformer = TransformerConfig::encoder(file, config.sizes(file)?, placement, activation, epsilon)?;
    let head_size = transformer.attention.head_size;
    if config.head_dim.is_some_and(|size| size != head_size) || !head_size.is_multiple_of(2) {
        return Err(invalid(file, "head_dim is not the heads' share of the width, or is odd"));
    }
    let parameters = rope.parameters(file, None)?;
    if let Some(share) = parameters.partial_rotary_factor.filter(|share| *share != 1.0) {
        return Err(unsupported(file, "partial_rotary_factor", &share.to_string(), "1"));
    }
    let bases = [config.rotary_emb_base, parameters.rope_theta];
    let base = one_of(file, ["rotary_emb_base", "rope_theta"], bases)?.unwrap_or(1000.0);
    let rope = parameters.rope(file, RopeShape { head_size, context: positions, base })?;
    let mut transformer = transformer.with_rope(rope);
    transformer = match config.is_gated() {
        true => transformer.gated(),
        false => config.with_experts(transformer, config.sizes(file)?.intermediate),
    };
    transformer.biases = Biases {
        qkv: config.qkv_proj_bias.into(),
        attention_output: config.qkv_proj_bias.into(),
        up: config.mlp_fc1_bias.into(),
        down: config.mlp_fc2_bias.into(),
    };
    transformer.check(file)?;
    Ok(TextTowerConfig {
        vocabulary: config.vocab_size,
        context,
        embedding_width: None,
        positions: PositionsConfig::None,
        segments: config.type_vocab_size,
        transformer,
        names: if config.is_gated() { &NAMES } else { &WITHOUT_GATES },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::find_whole;
    use crate::error::Error;
    use crate::source::Unread;

    const FILE: &str = "config.json";

    /// A file that has both names of each setting, as nomic-embed-text-v1.5 is published.
    fn both() -> Value {
        json!({
            "model_type": "nomic_bert", "vocab_size": 30528, "type_vocab_size": 2,
            "n_embd": 768, "hidden_size": 768, "n_layer": 12, "num_hidden_layers": 12,
            "n_head": 12, "num_attention_heads": 12, "n_inner": 3072, "intermediate_size": 3072,
            "n_positions": 8192, "max_position_embeddings": 2048, "max_trained_positions": 2048,
            "activation_function": "swiglu", "hidden_act": "silu",
            "layer_norm_epsilon": 1e-12, "layer_norm_eps": 1e-12, "head_dim": 64,
            "rotary_emb_base": 1000, "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
            "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false, "rotary_scaling_factor": null
        })
    }

    #[test]
    fn a_file_may_have_both_names_of_each_setting() {
        let tower = read(FILE.as_ref(), &both()).unwrap();
        assert_eq!((tower.context, tower.transformer.width), (8192, 768));
        let layers = &tower.transformer.layers;
        assert!(
            layers.iter().all(|layer| layer.feed_forward == FeedForwardConfig::Gated { intermediate: 3072 })
        );
        assert_eq!(layers.len(), 12);
        // Each of them is read, so none counts as a setting without effect that nobody knows.
        find_whole(&[FAMILY], "text embedding", FILE.as_ref(), &both(), Unread::Refused).unwrap();
    }

    #[test]
    fn names_that_contradict_each_other_are_refused() {
        for (setting, value) in [
            ("n_embd", json!(384)),
            ("hidden_size", json!(384)),
            ("num_hidden_layers", json!(6)),
            ("n_head", json!(6)),
            ("intermediate_size", json!(1536)),
            ("layer_norm_eps", json!(1e-5)),
            ("activation_function", json!("geglu")),
            ("rotary_emb_base", json!(10_000)),
        ] {
            let mut config = both();
            config[setting] = value;
            let refused = read(FILE.as_ref(), &config).err();
            let reason = match &refused {
                Some(Error::InvalidConfig { reason, .. }) => reason.as_str(),
                other => panic!("{setting}: {other:?}"),
            };
            assert!(reason.contains(setting), "{setting}: {reason}");
        }
    }

    #[test]
    fn a_size_without_either_name_is_named() {
        let mut config = both();
        let settings = config.as_object_mut().unwrap();
        settings.remove("n_embd");
        settings.remove("hidden_size");
        let refused = read(FILE.as_ref(), &config).err();
        assert!(
            matches!(&refused, Some(Error::InvalidConfig { reason, .. }) if reason.contains("neither n_embd nor hidden_size")),
            "{refused:?}"
        );
    }
}
