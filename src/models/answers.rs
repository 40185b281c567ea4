//! Answers of the embedding workers, of texts and of images: the vectors of a request come from several passes, and it
//! is answered as soon as its last one is there. The passes themselves are left to each worker.

use std::collections::HashMap;

use model_actors::{Capability, Embeddings, Item};

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
#[derive(Default)]
pub(crate) struct Answers(HashMap<usize, Answer>);

/// The vectors of one item so far.
struct Answer {
    vectors: Vec<Vec<f32>>,
    missing: usize,
}

impl Answers {
    /// Opens the answer of an item, which is to have `count` vectors.
    pub(crate) fn open(&mut self, item: usize, count: usize) {
        self.0.insert(item, Answer { vectors: vec![Vec::new(); count], missing: count });
    }

    /// True while the item has an incomplete answer.
    pub(crate) fn contains(&self, item: usize) -> bool {
        self.0.contains_key(&item)
    }

    /// Forgets an item.
    pub(crate) fn remove(&mut self, item: usize) {
        self.0.remove(&item);
    }

    /// Puts a vector at its place in an item's answer after a last step, and sends the answer once it is complete. A
    /// vector that is not finite fails its item.
    pub(crate) fn deliver<C: Capability<Output = Embeddings>>(
        &mut self,
        (index, item): (usize, &Item<C>),
        place: usize,
        vector: Vec<f32>,
        finish: impl FnOnce(&mut Vec<f32>),
    ) {
        let Some(answer) = self.0.get_mut(&index) else { return };
        match check(vector) {
            Ok(mut vector) => {
                finish(&mut vector);
                answer.vectors[place] = vector;
                answer.missing -= 1;
            }
            Err(error) => {
                item.fail(error.into());
                self.remove(index);
                return;
            }
        }
        if answer.missing == 0
            && let Some(answer) = self.0.remove(&index)
        {
            item.finish(Embeddings::new(answer.vectors));
        }
    }
}
