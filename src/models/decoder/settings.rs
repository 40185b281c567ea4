//! The settings that the families' `config.json` files have in common, and the decoder that they describe:
//! Llama's, from which each family says what differs.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::{DecoderConfig, Embeddings, Head, LlamaSizes, llama_blocks};
use super::names::LLAMA;
use crate::architecture::parse;
use crate::error::Result;
use crate::kernels::{Activation, AttentionMask};
use crate::models::config_file::{activation, unsupported, with_defaults};
use crate::models::transformer::{Bias, Rope, RopeSettings, RopeShape, TransformerConfig, layer_count};

/// The settings that every family has.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Settings {
    vocab_size: usize,
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    /// The same in Gemma, whose published files have both.
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    eos_token_id: EndTokens,
    #[serde(skip)]
    pub(super) rope: RopeSettings,
    #[serde(skip)]
    pub(super) windows: Windows,
    /// True if the family may rotate a part of each head.
    #[serde(skip)]
    rotates_part: bool,
}

/// Sliding windows: the layers that see only so many tokens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Windows {
    pub(super) sliding_window: Option<usize>,
    /// Qwen's switch for it.
    use_sliding_window: bool,
    /// The first layer that has it, in Qwen's.
    pub(super) max_window_layers: usize,
    pub(super) layer_types: Option<Vec<String>>,
    /// True if the family decides which layers have it, whatever the list says.
    #[serde(skip)]
    is_of_family: bool,
}

/// The settings with the epsilon of layer norms where that of root-mean-square norms is read, for families that have the
/// former. What stood there before is left out, as nothing of such a family reads it.
pub(super) fn epsilon_of_layer_norms(mut config: Value) -> Value {
    if let Some(settings) = config.as_object_mut() {
        settings.remove("rms_norm_eps");
        if let Some(epsilon) = settings.remove("layer_norm_eps") {
            settings.insert("rms_norm_eps".to_owned(), epsilon);
        }
    }
    config
}

/// Tokens that end a text: one, several, or none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
enum EndTokens {
    One(u32),
    Several(Vec<u32>),
    #[default]
    None,
}

/// The names in `layer_types` of a layer with a window and of one without.
pub(super) const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

impl Settings {
    /// Reads the settings; those that the file leaves out are the family's `defaults`.
    pub(super) fn read(file: &Path, config: &Value, defaults: Value) -> Result<Self> {
        let config = with_defaults(config, defaults);
        let settings: Self = parse(file, &config)?;
        Ok(Self { rope: parse(file, &config)?, windows: parse(file, &config)?, ..settings })
    }

    /// For families in which the window has a switch of its own.
    pub(super) fn optional_window(mut self) -> Self {
        self.windows.sliding_window = self.windows.sliding_window.filter(|_| self.windows.use_sliding_window);
        self
    }

    /// For families of which the reference implementation does not read `layer_types`: a list that says anything else than
    /// the family does is refused.
    pub(super) fn window_of_family(mut self) -> Self {
        self.windows.is_of_family = true;
        self
    }

    /// For families of which the reference implementation reads `partial_rotary_factor`; in others one below 1 is refused.
    pub(super) fn partial_rotary(mut self) -> Self {
        self.rotates_part = true;
        self
    }

    /// For families that read `hidden_activation`, and before `hidden_act`.
    pub(super) fn gemma_activation(mut self) -> Self {
        self.hidden_act = self.hidden_activation.take().or(self.hidden_act);
        self
    }

    fn head_size(&self) -> usize {
        let shared_out = self.hidden_size.checked_div(self.num_attention_heads);
        self.head_dim.or(shared_out).unwrap_or(0)
    }

    /// The size of heads and context, for rotary embeddings with this base where the file names none.
    pub(super) fn rope_shape(&self, base: f64) -> RopeShape {
        RopeShape { head_size: self.head_size(), context: self.max_position_embeddings, base }
    }

    /// Llama's decoder with these settings, in which the layers that `slides` picks have the window. Its
    /// numbers are not checked yet.
    pub(super) fn decoder(&self, file: &Path, slides: impl Fn(usize) -> bool) -> Result<DecoderConfig> {
        let parameters = self.rope.parameters(file, None)?;
        if let Some(share) = parameters.partial_rotary_factor.filter(|share| *share != 1.0)
            && !(self.rotates_part || parameters.is_proportional())
        {
            return Err(unsupported(file, "partial_rotary_factor", &share.to_string(), "1"));
        }
        let layers = 0..layer_count(file, self.num_hidden_layers)?;
        let masks = layers.map(|index| self.mask(file, index, &slides)).collect::<Result<_>>()?;
        let blocks = llama_blocks(LlamaSizes {
            width: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_size: self.head_size(),
            epsilon: self.rms_norm_eps,
            masks,
        });
        Ok(DecoderConfig {
            vocabulary: self.vocab_size,
            context: parameters.reach(self.max_position_embeddings),
            embeddings: Embeddings::Plain,
            transformer: TransformerConfig {
                activation: self.activation(file)?,
                ropes: vec![self.default_rope(file)?],
                ..blocks
            },
            head: if self.tie_word_embeddings { Head::Tied } else { Head::Own(Bias::No) },
            logit_cap: None,
            end_tokens: match &self.eos_token_id {
                EndTokens::One(token) => vec![*token],
                EndTokens::Several(tokens) => tokens.clone(),
                EndTokens::None => Vec::new(),
            },
            names: &LLAMA,
            modules: None,
        })
    }

    /// The tokens that a layer sees: as `layer_types` says, or as the family does where the file has none.
    fn mask(&self, file: &Path, layer: usize, slides: impl Fn(usize) -> bool) -> Result<AttentionMask> {
        let of_family = slides(layer);
        let slides = match &self.windows.layer_types {
            None => of_family,
            Some(types) => match types.get(layer).map(String::as_str) {
                Some(SLIDING) => true,
                Some(FULL) => false,
                other => {
                    let found = other.unwrap_or("a list shorter than num_hidden_layers");
                    let supported = "full_attention, sliding_attention";
                    return Err(unsupported(file, "layer_types", found, supported));
                }
            },
        };
        match self.windows.sliding_window {
            // Without a window there is no difference.
            Some(_) if self.windows.is_of_family && slides != of_family => {
                let (found, supported) = if slides { (SLIDING, FULL) } else { (FULL, SLIDING) };
                Err(unsupported(file, "layer_types", found, supported))
            }
            Some(window) if slides => Ok(AttentionMask::SlidingWindow(window)),
            _ => Ok(AttentionMask::Causal),
        }
    }

    fn activation(&self, file: &Path) -> Result<Activation> {
        let name = self.hidden_act.as_deref().unwrap_or("silu");
        activation(file, "hidden_act", name)
    }

    fn default_rope(&self, file: &Path) -> Result<Rope> {
        self.rope.parameters(file, None)?.rope(file, self.rope_shape(10_000.0))
    }
}
