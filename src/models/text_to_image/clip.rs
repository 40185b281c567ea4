//! CLIP's text tower as a prompt encoder: what diffusion models take of it are the tokens' vectors, of the last layer
//! or the one before it, and the vector of the token that ends the text.

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::pipeline::Watch;
use super::prompt::{PromptTokens, TokenizerFiles};
use super::repository::Repository;
use crate::error::Result;
use crate::families::parse;
use crate::models::towers::clip::{ClipText, Projection, TextConfig};
use crate::weights::WeightReader;

/// Settings that have only one supported value.
const ONLY: &[(&str, &str)] = &[("model_type", "\"clip_text_model\""), ("use_attention_mask", "false")];
const CLASSES: &[&str] = &["CLIPTextModel", "CLIPTextModelWithProjection"];

#[derive(Deserialize)]
struct ProjectionSize {
    #[serde(default = "projection_size")]
    projection_dim: usize,
}

fn projection_size() -> usize {
    512
}

/// An encoder that is not loaded, with its tokenizer.
pub(super) struct PromptEncoderConfig {
    text: TextConfig,
    tokenizer: TokenizerFiles,
    projection: usize,
}

/// Whether the text's vector is projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    Plain,
    Projected,
}

impl PromptEncoderConfig {
    /// From the folders of the encoder and of its tokenizer, named with a slash at their ends.
    pub(super) fn read(repository: &Repository<'_>, encoder: &str, tokenizer: &str) -> Result<Self> {
        let file = format!("{encoder}config.json");
        let (path, config): (_, Value) = repository.config(&file, CLASSES, ONLY)?;
        let ProjectionSize { projection_dim } = parse(&path, &config)?;
        let text = TextConfig::read(&path, &config)?;
        Ok(Self { text, tokenizer: TokenizerFiles::find(repository, tokenizer)?, projection: projection_dim })
    }

    /// Width of a token's vector.
    pub(super) fn width(&self) -> usize {
        self.text.shape.width
    }

    /// Width of a text's projected vector.
    pub(super) fn projection(&self) -> usize {
        self.projection
    }

    /// What encoding two prompts needs besides the weights.
    pub(super) fn scratch(&self) -> Bytes {
        self.text.scratch(self.length().saturating_mul(2))
    }

    fn length(&self) -> usize {
        self.tokenizer.longest().min(self.text.settings.max_position_embeddings)
    }

    pub(super) fn load(&self, reader: &WeightReader<'_>, pooling: Pooling) -> Result<PromptEncoder> {
        let prefix = ["text_model.", ""]
            .into_iter()
            .find(|prefix| reader.contains(&format!("{prefix}final_layer_norm.weight")))
            .unwrap_or("text_model.");
        let tokens = self.tokenizer.read(self.length())?;
        tokens.check(self.text.settings.vocab_size)?;
        let projection =
            || Projection::load(reader, "text_projection", self.projection, self.text.shape.width);
        Ok(PromptEncoder {
            text: self.text.load(reader, prefix)?,
            projection: (pooling == Pooling::Projected).then(projection).transpose()?,
            tokens,
        })
    }
}

/// Which tensors of the weights are loaded; older files have the positions' numbers too.
pub(super) fn is_loaded(tensor: &str) -> bool {
    !tensor.ends_with("position_ids")
}

/// A loaded encoder with its tokenizer.
pub(super) struct PromptEncoder {
    text: ClipText,
    projection: Option<Projection>,
    tokens: PromptTokens,
}

/// What an encoder makes of some prompts.
pub(super) struct EncodedPrompts {
    /// The tokens' vectors after the last layer and its norm, `(prompts, tokens, width)`.
    pub(super) last: Tensor,
    /// Those before the last layer.
    pub(super) before_last: Tensor,
    /// The texts' vectors, projected where the encoder does, `(prompts, width)`.
    pub(super) pooled: Tensor,
}

impl PromptEncoder {
    pub(super) fn encode(&self, prompts: &[&str], watch: &Watch<'_>) -> Result<EncodedPrompts> {
        watch.check()?;
        let (mut ids, length) = (Vec::new(), self.tokens.length());
        for prompt in prompts {
            ids.extend(self.tokens.encode(prompt)?);
        }
        let lengths = vec![length; prompts.len()];
        let tower = &self.text.tower;
        let mut before_last = None;
        let count = tower.layers();
        let hidden = tower.run(&ids, &lengths, count, |layer, hidden| {
            if layer + 1 == count {
                before_last = Some(hidden.clone());
            }
            Ok(())
        })?;
        let last = tower.last_norm(&hidden)?;
        let pooled = self.text.pool(&last, &ids, &lengths)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        let shape = (prompts.len(), length, self.text.width());
        Ok(EncodedPrompts {
            last: last.reshape(shape)?,
            before_last: before_last.unwrap_or(hidden).reshape(shape)?,
            pooled,
        })
    }
}
