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
    padding_side: Option<PaddingSide>,
    tokenizer_class: Option<String>,
}

impl TokenizerConfig {
    /// True for the tokenizers with Gemma's vocabulary, whose classes have defaults of their own.
    fn is_gemma(&self) -> bool {
        let class = self.tokenizer_class.as_deref().unwrap_or_default();
        matches!(class.strip_suffix("Fast").unwrap_or(class), "GemmaTokenizer" | "Siglip2Tokenizer")
    }
}

/// Side of a text that padding is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PaddingSide {
    Left,
    Right,
}

/// The tokenizer of texts, before it is read.
#[derive(Debug, Clone)]
pub(super) struct TextPlan {
    tokenizer: TokenizerFiles,
    side: TextSide,
    /// Maximum number of tokens of a text: what both the model and its tokenizer allow.
    longest: usize,
    pad_token: String,
    padding_side: PaddingSide,
}

impl TextPlan {
    pub(super) fn read(files: &Files, side: TextSide, context: &LoadContext) -> Result<Self> {
        let tokenizer = TokenizerFiles::find(files, "", context)?;
        let config: TokenizerConfig =
            files.optional_json("tokenizer_config.json", context)?.unwrap_or_default();
        // The cast saturates, so "none" becomes the largest number there is.
        let longest = config.model_max_length.map_or(usize::MAX, |length| length as usize).min(side.longest);
        // SigLIP's tokenizer pads with the token that ends a text, unless its configuration says otherwise.
        let (pad_token, padding_side) = match config.is_gemma() {
            true => ("<pad>", PaddingSide::Left),
            false => ("</s>", PaddingSide::Right),
        };
        let padding_side = config.padding_side.unwrap_or(padding_side);
        let named =
            config.pad_token.as_ref().and_then(|token| token.get("content").unwrap_or(token).as_str());
        let pad_token = named.unwrap_or(pad_token).to_owned();
        Ok(Self { tokenizer, side, longest, pad_token, padding_side })
    }

    pub(super) fn load(&self) -> Result<Texts> {
        let tokens = Tokens::read(&self.tokenizer, self.longest, false)?.with_rows(self.side.vocabulary);
        let invalid = |reason| Error::InvalidTokenizer { file: self.tokenizer.path().to_owned(), reason };
        let padding = match self.side.padding {
            Padding::None => None,
            Padding::ToLongestWith(token) => {
                Some(Filling { token, length: self.longest, side: PaddingSide::Right })
            }
            Padding::ToLongest => {
                let token = &self.pad_token;
                let id =
                    tokens.id(token).ok_or_else(|| invalid(format!("it has no padding token {token:?}")))?;
                Some(Filling { token: id, length: self.longest, side: self.padding_side })
            }
        };
        Ok(Texts { tokens, padding })
    }
}

/// The tokenizer of texts.
pub(super) struct Texts {
    tokens: Tokens,
    padding: Option<Filling>,
}

/// Padding of a text: its token, and the length that it fills up to.
struct Filling {
    token: u32,
    length: usize,
    side: PaddingSide,
}

impl Texts {
    pub(super) fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokens.encode(text)?.ids;
        if let Some(Filling { token, length, side }) = self.padding {
            let missing = length.saturating_sub(ids.len());
            ids.resize(length, token);
            if side == PaddingSide::Left {
                ids.rotate_right(missing);
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The tokens that the tokenizer of SigLIP 2 makes of a text, with other settings.
    fn tokens(text: &str, change: impl FnOnce(&mut Value)) -> Vec<u32> {
        let fixture =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image_embedding/siglip2");
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(fixture.join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
        let files = Files::directory(folder.path());
        let side = TextSide { vocabulary: 501, longest: 6, padding: Padding::ToLongest };
        let plan = TextPlan::read(&files, side, &LoadContext::detached(&"texts".into())).unwrap();
        plan.load().unwrap().tokens(text).unwrap()
    }

    #[test]
    fn a_text_is_padded_on_the_side_that_the_tokenizer_names_or_its_class_has() {
        let right = tokens("a", |_| {});
        let text = right.iter().take_while(|id| **id != 0).count();
        assert!(text < right.len() && right[text..].iter().all(|id| *id == 0), "{right:?}");
        let mut left = right.clone();
        left.rotate_right(right.len() - text);
        assert_eq!(tokens("a", |config| config["padding_side"] = "left".into()), left);
        assert_eq!(tokens("a", |config| config["padding_side"] = Value::Null), left);
        let other = |config: &mut Value| {
            config["padding_side"] = Value::Null;
            config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
        };
        assert_eq!(tokens("a", other), right);
        let long = "a very long text that goes on and on";
        let whole = tokens(long, |config| config["padding_side"] = "left".into());
        assert_eq!((whole.len(), whole.last()), (6, Some(&1)));
    }

    #[test]
    fn the_class_of_siglip_2_reads_texts_in_lower_case() {
        let lower = |config: &mut Value| config["tokenizer_class"] = "Siglip2Tokenizer".into();
        assert_eq!(tokens("A CAT", lower), tokens("a cat", |_| {}));
        assert_ne!(tokens("A CAT", |_| {}), tokens("a cat", |_| {}));
    }
}
