//! NV-Embed v2 (Lee et al., 2024): Mistral whose tokens see their whole text, and after it each token asks a fixed set
//! of latent vectors. The end token is written after each text, as the model's own code does; which tokens are pooled
//! is left to the pooling's settings, which leave out the instruction's.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use super::decoding::{Embedder, Sight};
use super::encoder::{MAX_SIDE, invalid, layer_norm, linear, swapped, unsupported};
use super::{Architecture, Encoder, TokenBatch, Watch};
use crate::error::Result;
use crate::families::{Family, parse};
use crate::kernels::glu::glu;
use crate::kernels::{Activation, LayerNorm, Linear, scaled_dot_product_attention};
use crate::models::decoder::Decoder;
use crate::weights::{WeightFiles, WeightReader};

/// This family's line in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "nvembed",
    architectures: &["NVEmbedModel"],
    read: |file, config| Ok(Box::new(NvEmbed::read(file, config)?)),
};

/// The names of the latent attention's tensors begin with this.
const LATENT: &str = "latent_attention_model.";
/// Fixed in the reference implementation.
const EPSILON: f64 = 1e-5;

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    text_config: Value,
    latent_attention_config: LatentConfig,
    #[serde(default = "yes")]
    add_eos: bool,
}

#[derive(Deserialize, Clone, Copy)]
struct LatentConfig {
    #[serde(default = "latents")]
    num_latents_value: usize,
    #[serde(default = "heads")]
    num_cross_heads: usize,
    #[serde(default = "width")]
    cross_dim_head: usize,
    #[serde(default = "width")]
    latent_dim: usize,
    #[serde(default = "mult")]
    mult: usize,
}

#[derive(Deserialize)]
struct End {
    #[serde(default = "end")]
    eos_token_id: u32,
}

fn yes() -> bool {
    true
}

fn latents() -> usize {
    512
}

fn heads() -> usize {
    8
}

fn width() -> usize {
    4096
}

fn mult() -> usize {
    4
}

fn end() -> u32 {
    2
}

struct NvEmbed {
    decoder: Embedder,
    latent: LatentConfig,
    ending: Option<u32>,
}

impl NvEmbed {
    fn read(file: &Path, config: &Value) -> Result<Self> {
        let Config { mut text_config, latent_attention_config: latent, add_eos } = parse(file, config)?;
        let End { eos_token_id } = parse(file, &text_config)?;
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
        let decoder = Embedder::read(file, &text_config, Sight::Everywhere)?;
        let sides = [latent.num_latents_value, latent.num_cross_heads, latent.cross_dim_head, latent.mult];
        let inner = latent.num_cross_heads.saturating_mul(latent.cross_dim_head);
        let wide = latent.mult.saturating_mul(latent.latent_dim);
        let sound = sides.into_iter().chain([inner, wide]).all(|side| (1..=MAX_SIDE).contains(&side));
        if !sound || latent.latent_dim != decoder.0.width {
            let reason =
                "latent_attention_config has sizes that are out of range, or another width than the text's";
            return Err(invalid(file, reason.to_owned()));
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
        Ok(Arc::new(Loaded { decoder, latent: Latent::load(self.latent, &reader)? }))
    }
}

struct Loaded {
    decoder: Decoder,
    latent: Latent,
}

impl Encoder for Loaded {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        self.latent.forward(&Encoder::encode(&self.decoder, batch, watch)?)
    }
}

/// Each token asks the latent vectors, and a gated feed-forward follows; both added to what came in.
struct Latent {
    heads: usize,
    norm: LayerNorm,
    query: Linear,
    scale: f64,
    /// What the latent vectors answer with, `(1, latents, heads · size)`; the same for every text.
    keys: Tensor,
    values: Tensor,
    out: Linear,
    feed_norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
}

impl Latent {
    fn load(config: LatentConfig, reader: &WeightReader<'_>) -> Result<Self> {
        let width = config.latent_dim;
        let inner = config.num_cross_heads * config.cross_dim_head;
        let cross = |part: &str| format!("cross_attend_blocks.0.{part}");
        let feed = |part: &str| format!("cross_attend_blocks.1.{part}");
        let middle = config.mult * width;
        let latents = reader.tensor("latents", &[config.num_latents_value, width])?;
        let context = layer_norm(reader, &cross("norm_context"), width, EPSILON, true)?.of(&latents)?;
        let both = linear(reader, &cross("fn.to_kv"), [2 * inner, width], false)?;
        let both = both.forward(&context, Activation::Identity)?;
        Ok(Self {
            heads: config.num_cross_heads,
            norm: layer_norm(reader, &cross("norm"), width, EPSILON, true)?,
            query: linear(reader, &cross("fn.to_q"), [inner, width], false)?,
            scale: 1.0 / (config.cross_dim_head as f64).sqrt(),
            keys: both.narrow(1, 0, inner)?.contiguous()?.unsqueeze(0)?,
            values: both.narrow(1, inner, inner)?.contiguous()?.unsqueeze(0)?,
            out: linear(reader, &cross("fn.to_out"), [width, inner], false)?,
            feed_norm: layer_norm(reader, &feed("norm"), width, EPSILON, true)?,
            wide: swapped(reader, &feed("fn.net.0"), [middle, width], true)?,
            narrow: linear(reader, &feed("fn.net.2"), [width, middle], true)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let query = self.query.forward(&self.norm.of(hidden)?, Activation::Identity)?;
        // No token sees another here, so the pass's texts are one sequence of queries.
        let answers = scaled_dot_product_attention(
            &query.unsqueeze(0)?,
            &self.keys,
            &self.values,
            self.heads,
            self.scale,
            None,
        )?;
        let hidden = (self.out.forward(&answers.squeeze(0)?, Activation::Identity)? + hidden)?;
        let wide = self.wide.forward(&self.feed_norm.of(&hidden)?, Activation::Identity)?;
        let wide = glu(&wide, Activation::GeluErf)?;
        Ok((self.narrow.forward(&wide, Activation::Identity)? + hidden)?)
    }
}
