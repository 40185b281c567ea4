//! CLIP's text tower as a prompt encoder. Diffusion models take the hidden states of its last or its
//! penultimate layer, and the pooled embedding of the token that ends the text. The tower is that of the
//! image embedders.

use candle_core::Tensor;
use model_actors::Bytes;
use serde::Deserialize;

use super::pipeline::Watch;
use super::prompt::{PromptTokens, TokenizerFiles};
use super::repository::Repository;
use crate::architecture::parse;
use crate::error::Result;
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

/// Encoder that is not loaded, with its tokenizer.
pub(super) struct PromptEncoderConfig {
    text: TextConfig,
    tokenizer: TokenizerFiles,
    projection_dim: usize,
}

/// Treatment of the pooled embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    Plain,
    /// Projected by `text_projection`.
    Projected,
}

impl PromptEncoderConfig {
    /// Reads the configurations in the folders of the encoder and of its tokenizer, which end with a slash.
    pub(super) fn read(repository: &Repository<'_>, encoder: &str, tokenizer: &str) -> Result<Self> {
        let file = format!("{encoder}config.json");
        let (_, (projection_dim, text)) = repository.config_by(&file, CLASSES, ONLY, |path, config| {
            let ProjectionSize { projection_dim } = parse(path, config)?;
            Ok((projection_dim, TextConfig::read(path, config)?))
        })?;
        Ok(Self { text, tokenizer: TokenizerFiles::find(repository, tokenizer)?, projection_dim })
    }

    /// Width of the hidden states.
    pub(super) fn width(&self) -> usize {
        self.text.tower.transformer.width
    }

    /// Width of the projected pooled embedding.
    pub(super) fn projection(&self) -> usize {
        self.projection_dim
    }

    /// Memory that encoding two prompts needs besides the weights.
    pub(super) fn scratch(&self) -> Bytes {
        self.text.scratch(self.length().saturating_mul(2))
    }

    fn length(&self) -> usize {
        self.tokenizer.max_length().min(self.text.tower.context)
    }

    pub(super) fn load(&self, reader: &WeightReader<'_>, pooling: Pooling) -> Result<PromptEncoder> {
        let prefix = ["text_model.", ""]
            .into_iter()
            .find(|prefix| reader.contains(&format!("{prefix}final_layer_norm.weight")))
            .unwrap_or("text_model.");
        let tokens = self.tokenizer.read(self.length())?;
        tokens.check(self.text.tower.vocabulary)?;
        let projection = || {
            Projection::load(
                reader,
                "text_projection",
                self.projection_dim,
                self.text.tower.transformer.width,
            )
        };
        Ok(PromptEncoder {
            text: self.text.load(reader, prefix)?,
            projection: (pooling == Pooling::Projected).then(projection).transpose()?,
            tokens,
        })
    }
}

/// True for the tensors that are loaded; older files also have `position_ids`.
pub(super) fn is_loaded(tensor: &str) -> bool {
    !tensor.ends_with("position_ids")
}

/// Loaded encoder with its tokenizer.
pub(super) struct PromptEncoder {
    text: ClipText,
    projection: Option<Projection>,
    tokens: PromptTokens,
}

/// Output of an encoder.
pub(super) struct EncodedPrompts {
    /// Output of the last layer and its norm, `(prompts, tokens, width)`.
    pub(super) last_hidden_state: Tensor,
    /// Output of the penultimate layer, `(prompts, tokens, width)`.
    pub(super) penultimate_hidden_state: Tensor,
    /// Pooled embeddings, projected where the encoder does, `(prompts, width)`.
    pub(super) pooled: Tensor,
}

impl PromptEncoder {
    /// Encodes prompts together.
    pub(super) fn encode(&self, prompts: &[&str], watch: &Watch<'_>) -> Result<EncodedPrompts> {
        watch.check()?;
        let (mut ids, length) = (Vec::new(), self.tokens.length());
        for prompt in prompts {
            ids.extend(self.tokens.encode(prompt)?);
        }
        let lengths = vec![length; prompts.len()];
        let tower = &self.text.tower;
        let mut penultimate = None;
        let count = tower.depth();
        let hidden = tower.run(&ids, &lengths, count, |layer, hidden| {
            if layer + 1 == count {
                penultimate = Some(hidden.clone());
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
            last_hidden_state: last.reshape(shape)?,
            penultimate_hidden_state: penultimate.unwrap_or(hidden).reshape(shape)?,
            pooled,
        })
    }
}
