//! Inputs of a pass: preprocessed images, or the tokens of texts.

use model_actors::LoadContext;
use serde::Deserialize;
use serde_json::Value;

use super::{Padding, TextSide};
use crate::error::{Error, Result};
use crate::models::passes::joins;
use crate::source::Files;
use crate::tokens::{TokenizerFiles, Tokens};

/// One image or text, ready for the model.
pub(super) enum Input {
    Image { pixels: Vec<f32>, width: usize, height: usize, rows: usize },
    Text(Vec<u32>),
}

impl Input {
    fn rows(&self) -> usize {
        match self {
            Self::Image { rows, .. } => *rows,
            Self::Text(tokens) => tokens.len(),
        }
    }

    fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }
}

/// Checks that another input may join those that wait for a pass: they are of one kind, and not too many rows.
pub(super) fn fits<'a>(waiting: impl IntoIterator<Item = &'a Input> + Clone, input: &Input) -> bool {
    let rows = waiting.clone().into_iter().map(Input::rows).fold(0, usize::saturating_add);
    joins(rows, input.rows()) && waiting.into_iter().all(|other| other.is_image() == input.is_image())
}

/// Inputs of one kind.
pub(super) enum Pass {
    /// Numbers, width and height of each.
    Images(Vec<(Vec<f32>, usize, usize)>),
    /// Tokens of all, one text after another, and the number of each.
    Texts { ids: Vec<u32>, lengths: Vec<usize> },
}

impl Pass {
    /// The inputs are all of the first one's kind.
    pub(super) fn of(inputs: Vec<Input>) -> Self {
        let (mut images, mut ids, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Image { pixels, width, height, .. } => images.push((pixels, width, height)),
                Input::Text(tokens) => {
                    lengths.push(tokens.len());
                    ids.extend(tokens);
                }
            }
        }
        if images.is_empty() { Self::Texts { ids, lengths } } else { Self::Images(images) }
    }
}

/// `tokenizer_config.json`, of which only this matters; a length of "none" is a number beyond any integer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
    /// A text, or an object with the text in `content`.
    pad_token: Option<Value>,
}

/// The tokenizer of texts, before it is read.
#[derive(Debug, Clone)]
pub(super) struct TextPlan {
    tokenizer: TokenizerFiles,
    side: TextSide,
    /// Most tokens of a text: what both the model and its tokenizer allow.
    longest: usize,
    pad_token: Option<String>,
}

impl TextPlan {
    pub(super) fn read(files: &Files, side: TextSide, context: &LoadContext) -> Result<Self> {
        let tokenizer = TokenizerFiles::find(files, "", context)?;
        let config: TokenizerConfig =
            files.optional_json("tokenizer_config.json", context)?.unwrap_or_default();
        // The cast saturates, so "none" becomes the largest number there is.
        let longest = config.model_max_length.map_or(usize::MAX, |length| length as usize).min(side.longest);
        let pad_token = config.pad_token.and_then(|token| match token {
            Value::String(token) => Some(token),
            token => token.get("content").and_then(Value::as_str).map(str::to_owned),
        });
        Ok(Self { tokenizer, side, longest, pad_token })
    }

    pub(super) fn load(&self) -> Result<Texts> {
        let tokens = Tokens::read(&self.tokenizer, self.longest, false)?.with_rows(self.side.vocabulary);
        let invalid = |reason| Error::InvalidTokenizer { file: self.tokenizer.path().to_owned(), reason };
        let padding = match self.side.padding {
            Padding::None => None,
            Padding::ToLongest => {
                // SigLIP's tokenizer pads with the token that ends a text, unless its configuration says otherwise.
                let token = self.pad_token.as_deref().unwrap_or("</s>");
                let id =
                    tokens.id(token).ok_or_else(|| invalid(format!("it has no padding token {token:?}")))?;
                Some((id, self.longest))
            }
        };
        Ok(Texts { tokens, padding })
    }
}

/// The tokenizer of texts.
pub(super) struct Texts {
    tokens: Tokens,
    /// The token and the length that a text is filled up with and to.
    padding: Option<(u32, usize)>,
}

impl Texts {
    pub(super) fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokens.encode(text)?.ids;
        if let Some((token, length)) = self.padding {
            ids.resize(length, token);
        }
        Ok(ids)
    }
}
