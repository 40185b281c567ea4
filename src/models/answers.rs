//! Answers of workers that make something of each text or image by itself: the results of a request come from several
//! passes, and it is answered as soon as its last one is there. The passes themselves are left to each worker.

use std::collections::HashMap;

use model_actors::{Capability, Item};

use crate::error::{Error, Result};

/// Ticks progress, and ends a pass with [`Error::Stopped`] when nobody waits for it: one over a long text can take
/// minutes. Called between layers.
pub(crate) type Watch<'a> = dyn Fn() -> Result<()> + Sync + 'a;

/// Ticks the progress of these items, for a [`Watch`].
///
/// # Errors
/// [`Error::Stopped`] once nobody waits for any of them.
pub(crate) fn watch<C: Capability>(items: &[&Item<C>]) -> Result<()> {
    items.iter().for_each(|item| item.tick());
    if items.iter().all(|item| item.should_stop()) { Err(Error::Stopped) } else { Ok(()) }
}

/// Refuses a vector with numbers that are not finite.
///
/// # Errors
/// [`Error::NotFiniteOutput`].
pub(crate) fn check(vector: Vec<f32>) -> Result<Vec<f32>> {
    if vector.iter().all(|x| x.is_finite()) { Ok(vector) } else { Err(Error::NotFiniteOutput) }
}

/// The answers of a batch that are still incomplete, by the item's index. An item that failed or is not wanted any
/// more has none.
pub(crate) struct Answers<T>(HashMap<usize, Answer<T>>);

/// The results of one item so far.
struct Answer<T> {
    results: Vec<Option<T>>,
    missing: usize,
}

// Derived, it would ask for `T: Default`.
impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Answers<T> {
    /// Opens the answer of an item, which is to have `count` results.
    pub(crate) fn open(&mut self, item: usize, count: usize) {
        let results = std::iter::repeat_with(|| None).take(count).collect();
        self.0.insert(item, Answer { results, missing: count });
    }

    /// True while the item has an incomplete answer.
    pub(crate) fn contains(&self, item: usize) -> bool {
        self.0.contains_key(&item)
    }

    /// Forgets an item.
    pub(crate) fn remove(&mut self, item: usize) {
        self.0.remove(&item);
    }

    /// Puts a result at its place in an item's answer, and gives all of them once none is missing.
    pub(crate) fn put(&mut self, item: usize, place: usize, result: T) -> Option<Vec<T>> {
        let answer = self.0.get_mut(&item)?;
        let empty = answer.results.get_mut(place).filter(|place| place.is_none())?;
        *empty = Some(result);
        answer.missing -= 1;
        if answer.missing > 0 {
            return None;
        }
        let answer = self.0.remove(&item)?;
        Some(answer.results.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_once_each_place_has_its_result() {
        let mut answers = Answers::default();
        answers.open(3, 2);
        assert_eq!(answers.put(3, 1, "b"), None);
        assert_eq!(answers.put(3, 1, "other"), None, "the place is taken");
        assert_eq!(answers.put(4, 0, "c"), None, "there is no such item");
        assert_eq!(answers.put(3, 0, "a"), Some(vec!["a", "b"]));
        assert!(!answers.contains(3));
    }
}
