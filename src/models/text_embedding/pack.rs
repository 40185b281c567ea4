//! Texts of unlike length, packed into passes of about one size without padding.

use crate::tokens::TokenIds;

/// Tokens of one pass through the transformer, unless a single text has more: measured to be enough for matrix
/// products at full speed, and few enough to keep a worker's scratch small.
pub(super) const PASS_TOKENS: usize = 256;

/// The tokens of several texts, one text after another.
#[derive(Default)]
pub(super) struct TokenBatch {
    pub(super) ids: Vec<u32>,
    /// Tokens of each text; none is 0.
    pub(super) lengths: Vec<usize>,
    /// First tokens of each text that are left out of the pooling, fewer than it has.
    pub(super) skipped: Vec<usize>,
}

impl TokenBatch {
    pub(super) fn push(&mut self, text: &TokenIds) {
        self.ids.extend_from_slice(&text.ids);
        self.lengths.push(text.ids.len());
        self.skipped.push(text.skipped);
    }
}

/// Splits texts into passes of about `PASS_TOKENS` tokens. Texts of one length come together, which an accelerator's
/// padding is the better for; the order of the answers does not depend on it.
pub(super) fn passes<T>(mut texts: Vec<T>, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    texts.sort_by_key(&length);
    let mut passes: Vec<Vec<T>> = Vec::new();
    let mut tokens = 0;
    for text in texts {
        let more = length(&text);
        match passes.last_mut() {
            Some(pass) if tokens + more <= PASS_TOKENS => {
                tokens += more;
                pass.push(text);
            }
            _ => {
                tokens = more;
                passes.push(vec![text]);
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_every_text_once_and_no_more_tokens_than_they_may() {
        let texts: Vec<usize> = (0..100).map(|index| index * 37 % 300 + 1).chain([5000]).collect();
        let passes = passes(texts.clone(), |length| *length);
        assert!(passes.iter().all(|pass| pass.len() == 1 || pass.iter().sum::<usize>() <= PASS_TOKENS));
        let mut held: Vec<usize> = passes.concat();
        let mut all = texts;
        held.sort_unstable();
        all.sort_unstable();
        assert_eq!(held, all);
    }
}
