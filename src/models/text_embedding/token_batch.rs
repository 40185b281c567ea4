//! The texts of a pass, one after another without padding.

use crate::tokens::TokenIds;

/// Tokens of several texts, one text after another.
#[derive(Default)]
pub(super) struct TokenBatch {
    pub(super) ids: Vec<u32>,
    /// Number of tokens of each text; none is 0, unless the model takes such texts.
    pub(super) lengths: Vec<usize>,
    /// Number of each text's first tokens that are left out of the pooling; fewer than it has.
    pub(super) skipped: Vec<usize>,
}

impl TokenBatch {
    pub(super) fn push(&mut self, text: &TokenIds) {
        self.ids.extend_from_slice(&text.ids);
        self.lengths.push(text.ids.len());
        self.skipped.push(text.skipped);
    }
}
