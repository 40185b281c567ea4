//! Phi-3.5-MoE: Llama's blocks with layer norms, two experts for each token that SparseMixer picks (Liu et al., 2024, arXiv
//! 2409.12136), and positions for long texts, of which sines and cosines have a factor of their own. As in the reference
//! implementation, texts beyond the context of the pretraining have that factor, and the frequencies of shorter ones.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{DecoderConfig, Head};
use super::names::PHIMOE;
use super::settings::Settings;
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::models::config_file::{invalid, unsupported, with_defaults};
use crate::models::transformer::{
    Bias, Biases, ExpertForm, ExpertWeights, FeedForwardConfig, NormKind, Rope,
};

/// The family's entry in the list.
pub(super) const FAMILY: Family<DecoderConfig> =
    Family { model_type: "phimoe", architectures: &["PhimoeForCausalLM", "PhimoeModel"], read };

/// Settings of PhiMoE alone.
#[derive(Debug, Deserialize)]
struct Own {
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    router_jitter_noise: f32,
    attention_bias: bool,
    lm_head_bias: bool,
}

/// Factors of sines and cosines, which stand among the settings of the rotary embedding.
#[derive(Debug, Deserialize)]
struct Factors {
    short_mscale: f32,
    long_mscale: f32,
}

fn read(file: &Path, config: &Value) -> Result<DecoderConfig> {
    let config = with_defaults(config, defaults());
    let own: Own = parse(file, &config)?;
    if own.num_experts_per_tok != 2 {
        return Err(unsupported(file, "num_experts_per_tok", &own.num_experts_per_tok.to_string(), "2"));
    }
    let settings = Settings::read(file, &config, defaults())?.window_of_family();
    let mut decoder = settings.decoder(file, |_| true)?;
    let transformer = &mut decoder.transformer;
    transformer.norm = NormKind::Layer(Bias::Yes);
    transformer.biases = Biases::both(own.attention_bias.into(), Bias::No);
    for layer in &mut transformer.layers {
        layer.feed_forward = FeedForwardConfig::Experts {
            intermediate: own.intermediate_size,
            count: own.num_local_experts,
            chosen: 2,
            weights: ExpertWeights::SparseMixer { jitter: own.router_jitter_noise },
            router_bias: Bias::No,
            form: ExpertForm::Gated,
            shared: None,
        };
    }
    for rope in &mut transformer.ropes {
        scale(file, &config, rope, settings.rope.parameters(file, None)?.kind())?;
    }
    decoder.head = Head::Own(own.lm_head_bias.into());
    DecoderConfig { names: &PHIMOE, ..decoder }.checked(file)
}

/// Gives a rotary embedding its factors.
fn scale(file: &Path, config: &Value, rope: &mut Rope, kind: &str) -> Result<()> {
    match kind {
        "default" => return Ok(()),
        "longrope" | "su" => {}
        other => return Err(unsupported(file, "rope_type", other, "default, longrope")),
    }
    let tables = ["rope_scaling", "rope_parameters"].into_iter().filter_map(|name| config.get(name));
    let Some(table) = tables.into_iter().find(|table| table.get("short_mscale").is_some()) else {
        return Err(invalid(file, "its rotary embedding has no short_mscale"));
    };
    let Factors { short_mscale, long_mscale } = parse(file, table)?;
    rope.frequencies.attention_factor = short_mscale;
    let short = rope.frequencies.clone();
    if let Some((_, long)) = &mut rope.long {
        *long = short;
        long.attention_factor = long_mscale;
    }
    Ok(())
}

fn defaults() -> Value {
    json!({
        "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "num_experts_per_tok": 2, "num_local_experts": 16,
        "router_jitter_noise": 0.01, "attention_bias": false, "lm_head_bias": false
    })
}
