//! NV-Embed v2 (Lee et al., 2024): Mistral whose tokens see their whole text, and after it a cross-attention
//! of each token to a fixed set of latent vectors. The end token is written after each text, as the model's
//! own code does; which tokens are pooled is left to the pooling's settings, which leave out the
//! instruction's.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use super::decoding::{AttentionDirection, Embedder};
use super::{Architecture, Encoder, TokenBatch, Watch};
use crate::architecture::{Family, parse};
use crate::error::Result;
use crate::kernels::Activation;
use crate::models::config_file::{invalid, unsupported, with_defaults};
use crate::models::decoder::Decoder;
use crate::models::transformer::{
    Bias, CrossKeyValues, FeedForward, Names, Norm, NormPlacement, Projection, SafeTensors, Sizes,
    TransformerConfig, UpNames, Workload, check_side, load_feed_forward,
};
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "nvembed",
    architectures: &["NVEmbedModel"],
    read: |file, config| Ok(Box::new(NvEmbed::read(file, config)?)),
};

/// Path of the latent attention's tensors.
const LATENT: &str = "latent_attention_model.";
/// Names of its feed-forward network.
const NAMES: Names = Names { feed_forward: "fn.net.", up: UpNames::UpGate("0"), down: "2", ..Names::NONE };
/// Fixed in the reference implementation.
const EPSILON: f64 = 1e-5;

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    text_config: Value,
    latent_attention_config: Value,
    add_eos: bool,
}

#[derive(Deserialize, Clone, Copy)]
struct LatentConfig {
    num_latents_value: usize,
    num_cross_heads: usize,
    cross_dim_head: usize,
    latent_dim: usize,
    mult: usize,
}

#[derive(Deserialize)]
struct EndToken {
    eos_token_id: u32,
}

fn latent_defaults() -> Value {
    json!({
        "num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096, "latent_dim": 4096, "mult": 4
    })
}

struct NvEmbed {
    decoder: Embedder,
    latent: LatentConfig,
    ending: Option<u32>,
}

impl NvEmbed {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let Config { mut text_config, latent_attention_config, add_eos } =
            parse(file, &with_defaults(config, json!({"add_eos": true})))?;
        let latent: LatentConfig = parse(file, &with_defaults(&latent_attention_config, latent_defaults()))?;
        let EndToken { eos_token_id } =
            parse(file, &with_defaults(&text_config, json!({"eos_token_id": 2})))?;
        match text_config.get("model_type").and_then(Value::as_str) {
            Some("bidir_mistral" | "mistral") => {}
            other => {
                let found = other.unwrap_or("(none)");
                return Err(unsupported(file, "text_config's model_type", found, "bidir_mistral"));
            }
        }
        if let Some(settings) = text_config.as_object_mut() {
            settings.insert("model_type".to_owned(), json!("mistral"));
            settings.remove("architectures");
        }
        let decoder = Embedder::read(file, &text_config, AttentionDirection::Everywhere)?;
        for (name, side) in latent.sides() {
            check_side(file, name, side)?;
        }
        if latent.latent_dim != decoder.0.width() {
            return Err(invalid(file, "latent_dim is not the text's hidden_size"));
        }
        Ok(Self { decoder, latent, ending: add_eos.then_some(eos_token_id) })
    }
}

impl Architecture for NvEmbed {
    fn width(&self) -> usize {
        self.decoder.width()
    }

    fn vocabulary(&self) -> usize {
        self.decoder.vocabulary()
    }

    fn longest(&self) -> usize {
        self.decoder.longest()
    }

    fn ending(&self) -> Option<u32> {
        self.ending
    }

    fn uses(&self, tensor: &str) -> bool {
        tensor.starts_with(LATENT) || self.decoder.uses(tensor)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        self.decoder.has_no_effect(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // The latent attention comes after the decoder's own needs are over.
        let row = (3 * self.latent.mult as u64 + 4) * self.decoder.width() as u64;
        Bytes((4 * row).saturating_mul(tokens as u64)).max(self.decoder.scratch(tokens, longest))
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let decoder = self.decoder.0.load(weights, device, context)?;
        let reader = weights.reader(LATENT, device, context);
        let tensors = SafeTensors::new(&reader, "", Workload::WholeSequences);
        Ok(Arc::new(Loaded { decoder, latent: LatentAttention::load(self.latent, &tensors)? }))
    }
}

struct Loaded {
    decoder: Decoder,
    latent: LatentAttention,
}

impl Encoder for Loaded {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        self.latent.forward(&Encoder::encode(&self.decoder, batch, watch)?)
    }
}

impl LatentConfig {
    /// Everything that is computed with, by name.
    fn sides(&self) -> [(&'static str, usize); 6] {
        [
            ("num_latents_value", self.num_latents_value),
            ("num_cross_heads", self.num_cross_heads),
            ("cross_dim_head", self.cross_dim_head),
            ("mult", self.mult),
            ("num_cross_heads * cross_dim_head", self.inner()),
            ("mult * latent_dim", self.intermediate()),
        ]
    }

    /// Width of all heads together.
    fn inner(&self) -> usize {
        self.num_cross_heads.saturating_mul(self.cross_dim_head)
    }

    fn intermediate(&self) -> usize {
        self.mult.saturating_mul(self.latent_dim)
    }
}

/// Cross-attention of each token to the latent vectors, and a gated feed-forward network; both are added to
/// what came in.
struct LatentAttention {
    heads: usize,
    scale: f64,
    norm: Norm,
    query_proj: Projection,
    /// Of the latent vectors, which are the same for every text.
    key_values: CrossKeyValues,
    out_proj: Projection,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl LatentAttention {
    fn load(config: LatentConfig, tensors: &SafeTensors<'_>) -> Result<Self> {
        let (width, inner) = (config.latent_dim, config.inner());
        let cross = tensors.at("cross_attend_blocks.0.");
        let second = tensors.at("cross_attend_blocks.1.");
        let latents = tensors.tensor("latents", &[config.num_latents_value, width])?;
        let latents = cross.layer_norm("norm_context", width, EPSILON)?.forward(&latents)?;
        let kv_proj = cross.linear("fn.to_kv", 2 * inner, width, Bias::No)?;
        let sizes = Sizes { width, intermediate: config.intermediate(), layers: 1, heads: 1 };
        let (file, activation) = (Path::new("config.json"), Activation::GeluErf);
        let blocks =
            TransformerConfig::encoder(file, sizes, NormPlacement::Pre, activation, EPSILON)?.gated();
        Ok(Self {
            heads: config.num_cross_heads,
            scale: 1.0 / (config.cross_dim_head as f64).sqrt(),
            norm: cross.layer_norm("norm", width, EPSILON)?,
            query_proj: cross.linear("fn.to_q", inner, width, Bias::No)?,
            key_values: CrossKeyValues::split(&kv_proj.forward(&latents, Activation::Identity)?)?,
            out_proj: cross.linear("fn.to_out", width, inner, Bias::No)?,
            feed_forward_norm: second.layer_norm("norm", width, EPSILON)?,
            feed_forward: load_feed_forward(&blocks, &NAMES, &second)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let queries = self.query_proj.forward(&self.norm.forward(hidden)?, Activation::Identity)?;
        // No token sees another here, so the texts of a pass are one sequence of queries.
        let output = self.key_values.attend(&queries, self.heads, self.scale)?;
        let hidden = (self.out_proj.forward(&output, Activation::Identity)? + hidden)?;
        Ok((self.feed_forward.forward(&self.feed_forward_norm.forward(&hidden)?)? + hidden)?)
    }
}
