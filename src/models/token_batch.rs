//! The texts of a pass, one after another without padding.

use std::collections::BTreeMap;

use crate::kernels::self_attention::Whole;
use crate::tokens::{Side, TokenIds};

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
    /// For each text the number of the task whose adapter it is for.
    pub(super) tasks: Vec<Option<usize>>,
    /// Number of each text's last tokens that none attends to.
    pub(super) unseen: Vec<usize>,
    pub(super) sides: Vec<Side>,
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
        self.tasks.push(text.task);
        self.unseen.push(text.unseen);
        self.sides.push(text.side);
    }

    /// The texts as attention has them.
    pub(super) fn whole(&self) -> Whole<'_> {
        Whole { lengths: &self.lengths, unseen: &self.unseen }
    }

    /// The places of the texts of each task.
    pub(super) fn by_task(&self) -> BTreeMap<Option<usize>, Vec<usize>> {
        let mut places: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (place, task) in self.tasks.iter().enumerate() {
            places.entry(*task).or_default().push(place);
        }
        places
    }

    /// The texts in some places, in the order of `places`, which grow.
    pub(super) fn some(&self, places: &[usize]) -> Self {
        let (mut first, mut some) = (0, Self::default());
        for (place, length) in self.lengths.iter().enumerate() {
            let rows = first..first + length;
            first = rows.end;
            if places.contains(&place) {
                let part = |all: &[u32]| all.get(rows.clone()).unwrap_or_default().to_vec();
                let (ids, segments) = (part(&self.ids), part(&self.segments));
                let (skipped, task) = (self.skipped[place], self.tasks[place]);
                let (unseen, side) = (self.unseen[place], self.sides[place]);
                some.push(&TokenIds { ids, segments, skipped, task, unseen, side, is_cut: false });
            }
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_task_come_out_in_their_order() {
        let mut batch = TokenBatch::default();
        for (number, task) in [(5, Some(1)), (6, None), (7, Some(1))] {
            batch.push(&TokenIds { ids: vec![number; number as usize], task, ..TokenIds::default() });
        }
        let tasks = batch.by_task();
        assert_eq!(tasks.into_iter().collect::<Vec<_>>(), [(None, vec![1]), (Some(1), vec![0, 2])]);
        let some = batch.some(&[0, 2]);
        assert_eq!((some.lengths, some.tasks), (vec![5, 7], vec![Some(1); 2]));
        assert_eq!(some.ids, [vec![5; 5], vec![7; 7]].concat());
    }

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
