//! Text to token numbers, as the model's own `tokenizer.json` says, cut to the model's longest input. Padding is left
//! out: the kernels need none.

use std::path::Path;

use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::error::{Error, Result};

/// A model's tokenizer, shared by its workers.
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    lowercase: bool,
}

/// One text's tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenIds {
    /// Their numbers in the vocabulary.
    pub(crate) ids: Vec<u32>,
}

impl Tokens {
    /// Reads a tokenizer; texts are cut to `longest` tokens, special ones included.
    pub(crate) fn read(path: &Path, longest: usize, lowercase: bool) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidTokenizer { file: path.to_owned(), reason };
        let bytes =
            std::fs::read(path).map_err(|source| Error::UnreadableFile { path: path.to_owned(), source })?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
        let special = tokenizer.get_post_processor().map_or(0, |processor| {
            use tokenizers::PostProcessor as _;
            processor.added_tokens(false)
        });
        if longest <= special {
            return Err(invalid(format!(
                "inputs of {longest} tokens have no room beside {special} special ones"
            )));
        }
        let truncation = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: longest,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { tokenizer, lowercase })
    }

    /// A text's tokens with the model's special ones; never none.
    pub(crate) fn encode(&self, text: &str) -> Result<TokenIds> {
        let lowered;
        let text = if self.lowercase {
            lowered = text.to_lowercase();
            lowered.trim()
        } else {
            text.trim()
        };
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| Error::InvalidInput(format!("the text cannot be tokenized: {error}")))?;
        if encoding.get_ids().is_empty() {
            return Err(Error::InvalidInput("the text has no tokens".to_owned()));
        }
        Ok(TokenIds { ids: encoding.get_ids().to_vec() })
    }

    /// The number of a token by its text.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// One more than the largest token number.
    pub(crate) fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1)
    }
}
