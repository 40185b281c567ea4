//! Pairs of texts as one input: a query and a document, with the tokens around and between them that the tokenizer puts
//! there. A pair that is too long is cut as the reference implementations do, the longer text first.

use std::cell::Cell;

use tokenizers::{Encoding, PostProcessor as _};

use super::output_bounds::guarded;
use super::{Specials, TokenIds, Tokens, long_text};
use crate::error::{Error, Result};

/// A text of pairs, which is tokenized once for all of them.
pub(crate) struct PairText {
    /// As many as a pair can have.
    ids: Vec<u32>,
    /// The text has more.
    is_cut: bool,
}

impl Tokens {
    /// The tokens of a text for pairs, without those around it. More than the longest input are of no use: where two texts
    /// are cut together, none keeps more.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(crate) fn pair_text(&self, text: &str) -> Result<PairText> {
        let (ids, is_cut) = self.cut(text, Specials::AsWritten).map_err(failed)?;
        Ok(PairText { ids: self.within_rows(ids)?, is_cut })
    }

    /// Number of tokens of two texts and of those around them, whatever the model takes of them.
    ///
    /// # Errors
    /// As [`Self::pair_text`].
    pub(crate) fn count_pair(&self, first: &str, second: &str) -> Result<usize> {
        let count = |text: &str| self.bare(text).map(|ids| ids.len()).map_err(failed);
        Ok(count(first)? + count(second)? + self.around_pairs())
    }

    /// Number of tokens around and between the texts of a pair.
    fn around_pairs(&self) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(true))
    }

    /// The first `longest` tokens of a text that people wrote, of which none is a special one where these are split.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(crate) fn encode_written_cut(&self, text: &str, longest: usize) -> Result<TokenIds> {
        let is_cut = Cell::new(false);
        let cut = |text: &str| {
            let mut ids =
                self.encode_written(text, Specials::AsWritten).map_err(|error| error.to_string())?;
            is_cut.set(ids.len() > longest);
            ids.truncate(longest);
            Ok(ids)
        };
        let ids = long_text::encode_cut(text, longest, cut).map_err(failed)?;
        Ok(TokenIds { ids, is_cut: is_cut.get(), ..TokenIds::default() })
    }

    /// The tokens of two texts as one input.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if they have no room, or no tokens.
    pub(crate) fn pair(&self, first: &PairText, second: &PairText) -> Result<TokenIds> {
        let between = self.around_pairs();
        let room = self.tokenizer.get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
        if room <= between {
            let reason =
                format!("inputs of {room} tokens have no room for a pair beside {between} special ones");
            return Err(Error::InvalidInput(reason));
        }
        let texts = (encoding(&first.ids, 0), encoding(&second.ids, 1));
        let paired = guarded(|| {
            let paired = self.tokenizer.post_process(texts.0, Some(texts.1), true);
            paired.map_err(|error| error.to_string())
        });
        let paired = paired.map_err(failed)?;
        let ids = self.within_rows(paired.get_ids().to_vec())?;
        if ids.is_empty() {
            return Err(Error::InvalidInput("the query and the document have no tokens".to_owned()));
        }
        let segments = if self.tells_segments { paired.get_type_ids().to_vec() } else { Vec::new() };
        let all = first.ids.len().saturating_add(second.ids.len()).saturating_add(between);
        let is_cut = first.is_cut || second.is_cut || ids.len() < all;
        Ok(TokenIds { ids, is_cut, segments, ..TokenIds::default() })
    }
}

/// Tokens as the library has them, without the texts that they were made of.
fn encoding(ids: &[u32], segment: u32) -> Encoding {
    let count = ids.len();
    Encoding::new(
        ids.to_vec(),
        vec![segment; count],
        vec![String::new(); count],
        vec![None; count],
        vec![(0, 0); count],
        vec![0; count],
        vec![1; count],
        Vec::new(),
        Default::default(),
    )
}

fn failed(reason: String) -> Error {
    Error::InvalidInput(format!("the query or document cannot be tokenized: {reason}"))
}
