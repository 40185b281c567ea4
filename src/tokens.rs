//! Text to token numbers, as the model's own `tokenizer.json` says, cut to the model's longest input. Padding is left
//! out: the kernels need none.

use std::path::Path;

use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::error::{Error, Result};

/// A model's tokenizer, shared by its workers.
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    /// Put after each text, where the tokenizer does not do it itself.
    closing: Option<u32>,
}

/// One text's tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenIds {
    /// Their numbers in the vocabulary.
    pub(crate) ids: Vec<u32>,
    /// How many of the first are a prompt's that pooling leaves out; fewer than there are.
    pub(crate) skipped: usize,
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
        if lowercase {
            let own = tokenizer.get_normalizer().cloned();
            let lower = NormalizerWrapper::from(Lowercase);
            let all = Sequence::new(std::iter::once(lower).chain(own).collect());
            tokenizer.with_normalizer(Some(all)).map_err(|error| invalid(error.to_string()))?;
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { tokenizer, closing: None })
    }

    /// The same, so that each text ends with this token, for which room is kept. A tokenizer that does it itself stays
    /// as it is.
    pub(crate) fn closed_by(mut self, token: &str, file: &Path) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidTokenizer { file: file.to_owned(), reason };
        let id = self.tokenizer.token_to_id(token);
        let id =
            id.ok_or_else(|| invalid(format!("it lacks the token {token}, which is to end each text")))?;
        let empty = self.tokenizer.encode_fast("", true).map_err(|error| invalid(error.to_string()))?;
        if empty.get_ids().last() == Some(&id) {
            return Ok(self);
        }
        if let Some(mut truncation) = self.tokenizer.get_truncation().cloned() {
            truncation.max_length = truncation.max_length.saturating_sub(1);
            if truncation.max_length <= empty.get_ids().len() {
                return Err(invalid("inputs have no room beside the special tokens".to_owned()));
            }
            self.tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        }
        Ok(Self { closing: Some(id), ..self })
    }

    /// A text's tokens with the model's special ones; never none.
    pub(crate) fn encode(&self, text: &str) -> Result<TokenIds> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| Error::InvalidInput(format!("the text cannot be tokenized: {error}")))?;
        let ids: Vec<u32> = encoding.get_ids().iter().copied().chain(self.closing).collect();
        if ids.is_empty() {
            return Err(Error::InvalidInput("the text has no tokens".to_owned()));
        }
        Ok(TokenIds { ids, skipped: 0 })
    }

    /// Tokens that a prompt has before the text that follows it: its own, without a special one at its end.
    pub(crate) fn count_in_front(&self, prompt: &str) -> Result<usize> {
        let ids = self.encode(prompt)?.ids;
        let added = self.tokenizer.get_added_tokens_decoder();
        let closed = ids.last().and_then(|last| added.get(last)).is_some_and(|token| token.special);
        Ok(ids.len() - usize::from(closed))
    }

    /// How a token is written.
    pub(crate) fn written(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// One more than the largest token number.
    pub(crate) fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1)
    }
}
