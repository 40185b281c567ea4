//! Texts for models that read each at once: with the model's special tokens, cut to what it takes, or whole for those who
//! count them.

use tokenizers::{PostProcessor as _, TruncationDirection};

use super::output_bounds::boundary;
use super::{Specials, TokenIds, Tokens, long_text};
use crate::error::{Error, Result};

/// Bytes for each token of the beginning of a text that is looked at for whether it has more tokens than are kept.
const BYTES_PER_TOKEN: usize = 64;

impl Tokens {
    /// A text's tokens with the model's special ones; never none, unless it takes texts without.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(crate) fn encode(&self, text: &str) -> Result<TokenIds> {
        let (ids, is_cut) = self.cut(text, Specials::Added).map_err(failed)?;
        Ok(TokenIds { ids: self.closed(ids)?, is_cut, ..TokenIds::default() })
    }

    /// All of a text's tokens with the model's special ones, whatever it takes of them.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(crate) fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let cut = self.output_bounds.encoding(&self.tokenizer, text, Specials::Added).map_err(failed)?;
        let (ids, bare) = (cut.get_ids(), self.bare(text).map_err(failed)?);
        if bare.is_empty() {
            return self.closed(ids.to_vec());
        }
        let is_special = |mask: &&u32| **mask == 1;
        let mask = cut.get_special_tokens_mask();
        let before = mask.iter().take_while(is_special).count();
        let after = ids.len().saturating_sub(mask.iter().rev().take_while(is_special).count());
        let (before, after) = (ids.get(..before), ids.get(after..));
        self.closed([before.unwrap_or_default(), &bare, after.unwrap_or_default()].concat())
    }

    /// The first token of a text without those around it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(crate) fn first_token(&self, text: &str) -> Result<Option<u32>> {
        Ok(self.bare(text).map_err(failed)?.first().copied())
    }

    /// The tokens of a text that the tokenizer cuts, and whether it does.
    ///
    /// # Errors
    /// A sentence, if it becomes too long or the tokenizer fails.
    pub(super) fn cut(&self, text: &str, specials: Specials) -> Result<(Vec<u32>, bool), String> {
        let encode = |text: &str| self.output_bounds.encode(&self.tokenizer, text, specials);
        let Some(truncation) = self.tokenizer.get_truncation() else { return Ok((encode(text)?, false)) };
        let most = truncation.max_length;
        let ids = match truncation.direction {
            TruncationDirection::Right => long_text::encode_cut(text, most, encode)?,
            TruncationDirection::Left => encode(text)?,
        };
        if ids.len() < most {
            return Ok((ids, false));
        }
        let around = match (specials, self.tokenizer.get_post_processor()) {
            (Specials::Added, Some(processor)) => processor.added_tokens(false),
            _ => 0,
        };
        let has_more = |text: &str| Ok::<_, String>(self.bare(text)?.len().saturating_add(around) > most);
        // A beginning of a long text mostly tells.
        let end = boundary(text, most.saturating_mul(BYTES_PER_TOKEN));
        let beginning = text.get(..end).unwrap_or(text);
        let is_cut = has_more(beginning)? || beginning.len() < text.len() && has_more(text)?;
        Ok((ids, is_cut))
    }

    /// All tokens of a text without those around it, as the tokenizer makes them before it cuts.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub(super) fn bare(&self, text: &str) -> Result<Vec<u32>, String> {
        self.output_bounds.bare(&self.tokenizer, text)
    }

    fn closed(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let mut ids = self.within_rows(ids)?;
        ids.extend(self.closing);
        if ids.is_empty() && !self.may_be_empty {
            return Err(Error::InvalidInput("the text has no tokens".to_owned()));
        }
        Ok(ids)
    }
}

fn failed(reason: String) -> Error {
    Error::InvalidInput(format!("the text cannot be tokenized: {reason}"))
}
