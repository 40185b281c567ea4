//! Pairs of texts as one input: a query and a document, with the tokens around and between them that the tokenizer puts
//! there. A pair that is too long is cut as the reference implementations do, the longer text first.

use tokenizers::{Encoding, PostProcessor as _, TruncationDirection};

use super::output_bounds::guarded;
use super::{Specials, TokenIds, Tokens, long_text};
use crate::error::{Error, Result};

/// A text of pairs, which is tokenized once for all of them.
pub(crate) struct PairText(Vec<u32>);

impl Tokens {
    /// The tokens of a text for pairs, without those around it. More than the longest input are of no use: where two texts
    /// are cut together, none keeps more.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(crate) fn pair_text(&self, text: &str) -> Result<PairText> {
        let bare = |text: &str| self.output_bounds.encode(&self.tokenizer, text, Specials::AsWritten);
        let ids = match self.tokenizer.get_truncation() {
            Some(truncation) if truncation.direction == TruncationDirection::Right => {
                long_text::encode_cut(text, truncation.max_length, bare)
            }
            _ => bare(text),
        };
        Ok(PairText(self.within_rows(ids.map_err(failed)?)?))
    }

    /// The first `longest` tokens of a text that people wrote, of which none is a special one where these are split.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it cannot be tokenized.
    pub(crate) fn encode_written_cut(&self, text: &str, longest: usize) -> Result<Vec<u32>> {
        let cut = |text: &str| {
            let mut ids =
                self.encode_written(text, Specials::AsWritten).map_err(|error| error.to_string())?;
            ids.truncate(longest);
            Ok(ids)
        };
        long_text::encode_cut(text, longest, cut).map_err(failed)
    }

    /// The tokens of two texts as one input.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if they have no room, or no tokens.
    pub(crate) fn pair(&self, first: &PairText, second: &PairText) -> Result<TokenIds> {
        let between = self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(true));
        let room = self.tokenizer.get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
        if room <= between {
            let reason =
                format!("inputs of {room} tokens have no room for a pair beside {between} special ones");
            return Err(Error::InvalidInput(reason));
        }
        let texts = (encoding(&first.0, 0), encoding(&second.0, 1));
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
        Ok(TokenIds { ids, segments, skipped: 0 })
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
