//! The texts of a pass, one after another without padding.

use crate::tokens::TokenIds;

/// Tokens of several texts, one text after another.
#[derive(Default)]
pub(super) struct TokenBatch {
    pub(super) ids: Vec<u32>,
    /// Segment of each token; empty where all are in the first.
    pub(super) segments: Vec<u32>,
    /// Number of tokens of each text; none is 0, unless the model takes such texts.
    pub(super) lengths: Vec<usize>,
    /// Number of each text's first tokens that are left out of the pooling; fewer than it has.
    pub(super) skipped: Vec<usize>,
}

impl TokenBatch {
    pub(super) fn push(&mut self, text: &TokenIds) {
        let before = self.ids.len();
        self.ids.extend_from_slice(&text.ids);
        if !self.segments.is_empty() || !text.segments.is_empty() {
            self.segments.resize(before, 0);
            self.segments.extend_from_slice(&text.segments);
            self.segments.resize(self.ids.len(), 0);
        }
        self.lengths.push(text.ids.len());
        self.skipped.push(text.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_beside_pairs_is_all_of_the_first_segment() {
        let text = TokenIds { ids: vec![5, 6], ..TokenIds::default() };
        let pair = TokenIds { ids: vec![5, 6, 7], segments: vec![0, 1, 1], ..TokenIds::default() };
        let mut batch = TokenBatch::default();
        batch.push(&text);
        assert!(batch.segments.is_empty());
        batch.push(&pair);
        batch.push(&text);
        assert_eq!(batch.segments, [0, 0, 0, 1, 1, 0, 0]);
        assert_eq!((batch.ids.len(), batch.lengths), (7, vec![2, 3, 2]));
    }
}
