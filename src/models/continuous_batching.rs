//! Continuous batching: one worker writes several texts together, a token of each at every step, and texts
//! join and leave between steps. Here is decided which texts take part in a step and which wait for room in
//! the KV caches. Text to text and vision run on it; the computation of a step is behind [`Steps`], and the
//! requests are left to `worker`.

mod worker;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worker_tests;

use std::collections::VecDeque;

use crate::error::Result;
use crate::generation::{Generation, GenerationStep};
use crate::kernels::causal::KV_CACHE_STEP;
use crate::limits::GenerationLimits;
use crate::models::passes::PROMPT_ROWS;
pub(crate) use worker::serve;

/// A model that writes texts. It has no state of its own; each text has one.
pub(crate) trait Steps<Request: ?Sized> {
    /// The state of one text: its cache, and the tokens that are not read yet.
    type State;

    /// Prepares a text: everything before the first step.
    ///
    /// # Errors
    /// The request is refused.
    fn begin(&self, request: &Request) -> Result<Start<Self::State>>;

    /// Number of rows that a text has to read before its next token: the rest of its prompt, then the token before.
    /// Work that fills a step whatever it is counts as [`PROMPT_ROWS`].
    fn unread(&self, state: &Self::State) -> usize;

    /// Number of rows of the next piece of a text that has more than one to read, `most` at most. None if the text is to
    /// wait for a step with more room; there is enough for any in [`PROMPT_ROWS`].
    fn piece(&self, state: &Self::State, most: usize) -> usize {
        self.unread(state).min(most)
    }

    /// One step over several texts, in which each reads so many rows. For each, in order, the logits of its
    /// next token, or none where something is left to read.
    ///
    /// # Errors
    /// Ends the run; the error of one text ends that one alone.
    fn step(&self, texts: &mut [Part<'_, Self::State>]) -> Result<Vec<Logits>>;

    /// The token that was chosen, which is to be read next. The last of a text is not.
    fn chosen(&self, state: &mut Self::State, token: u32);
}

/// The result of a step for one text.
pub(crate) type Logits = Result<Option<Vec<f32>>>;

/// A text before its first step.
pub(crate) struct Start<State> {
    pub(crate) state: State,
    pub(crate) generation: Generation,
    /// Tokens that prompt and answer will have at most, and rows that are kept besides: the room that the
    /// text takes.
    pub(crate) most: usize,
}

/// A text's part of a step.
pub(crate) struct Part<'a, State> {
    pub(crate) state: &'a mut State,
    /// Rows that it reads, at least one.
    pub(crate) rows: usize,
}

/// A text on its way.
struct Text<Key, State> {
    key: Key,
    start: Start<State>,
    /// Output that its reader has not taken yet. The text takes part in no step meanwhile, and keeps its room.
    held: Option<Held>,
}

/// Output of a step for one text.
pub(crate) struct Held {
    pub(crate) next: Result<GenerationStep>,
}

/// The texts of a worker.
pub(crate) struct Streams<Key, State> {
    running: Vec<Text<Key, State>>,
    waiting: VecDeque<Text<Key, State>>,
    limits: GenerationLimits,
}

impl<Key: Copy + Eq, State> Streams<Key, State> {
    pub(crate) fn new(limits: GenerationLimits) -> Self {
        Self { running: Vec::new(), waiting: VecDeque::new(), limits }
    }

    /// Takes a text in. It waits until there is room for the longest that it can become, and nobody overtakes
    /// it.
    pub(crate) fn add(&mut self, key: Key, start: Start<State>) {
        self.waiting.push_back(Text { key, start, held: None });
        self.admit();
    }

    /// Lets go of a text.
    pub(crate) fn remove(&mut self, key: Key) {
        self.waiting.retain(|text| text.key != key);
        self.running.retain(|text| text.key != key);
        self.admit();
    }

    fn admit(&mut self) {
        let room = blocks(self.limits.kv_cache_tokens);
        let mut taken: usize = self.running.iter().map(Text::room).sum();
        while let Some(first) = self.waiting.front() {
            taken = taken.saturating_add(first.room());
            // One that is alone has all the room there is.
            if !self.running.is_empty() && (taken > room || self.running.len() >= self.limits.max_sequences) {
                return;
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// True if one more would be of use: nobody waits for room, and the prompts that the next step could read
    /// do not fill it. Until then a request is better left as it is, for a text that has begun holds its
    /// prompt, or its picture.
    ///
    /// A text that waits for its reader has nothing read in the next step, whatever is unread of it. Its room
    /// is its own, though: nobody gets it before the text ends, and as nobody overtakes, where it is what the
    /// next one waits for, the others wait too. The reader's deadline, or its leaving, is what ends that.
    pub(crate) fn wants_more<Request: ?Sized>(&self, model: &impl Steps<Request, State = State>) -> bool {
        let unread = self.free().map(|text| model.unread(&text.start.state));
        let prompts: usize = unread.filter(|rows| *rows > 1).fold(0, usize::saturating_add);
        self.waiting.is_empty() && self.running.len() < self.limits.max_sequences && prompts < PROMPT_ROWS
    }

    /// True if the text of this key takes part in the next step.
    fn reads(&self, key: Key) -> bool {
        self.free().any(|text| text.key == key)
    }

    /// True if a text would take part in a step.
    fn moves(&self) -> bool {
        self.free().next().is_some()
    }

    fn free(&self) -> impl Iterator<Item = &Text<Key, State>> {
        self.running.iter().filter(|text| text.held.is_none())
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.running.iter().chain(&self.waiting).map(|text| text.key).collect()
    }

    /// Output of a text for its reader; nothing if there is none, or if there is no such text.
    pub(crate) fn held(&mut self, key: Key) -> Option<&mut Option<Held>> {
        let text = self.running.iter_mut().find(|text| text.key == key)?;
        text.held.is_some().then_some(&mut text.held)
    }

    /// One step of all texts whose readers have taken what there was. False if there is none.
    ///
    /// # Errors
    /// A computation that failed. An error of one text alone is held for its reader.
    pub(crate) fn step<Request: ?Sized>(
        &mut self,
        model: &impl Steps<Request, State = State>,
    ) -> Result<bool> {
        let mut budget = PROMPT_ROWS;
        let mut takes = |state: &State| match model.unread(state) {
            rows @ (0 | 1) => rows,
            _ => {
                let rows = model.piece(state, budget).min(budget);
                budget -= rows;
                rows
            }
        };
        let free = self.running.iter_mut().filter(|text| text.held.is_none());
        let with_rows = free.map(|text| (takes(&text.start.state), text)).filter(|(rows, _)| *rows > 0);
        let mut texts: Vec<(usize, &mut Text<Key, State>)> = with_rows.collect();
        if texts.is_empty() {
            return Ok(false);
        }
        let parts = texts.iter_mut().map(|(rows, text)| Part { state: &mut text.start.state, rows: *rows });
        let made = model.step(&mut parts.collect::<Vec<_>>())?;
        for ((_, text), logits) in texts.into_iter().zip(made) {
            text.take(model, logits);
        }
        Ok(true)
    }
}

/// So many tokens in the pieces in which caches grow.
pub(crate) fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(KV_CACHE_STEP).saturating_mul(KV_CACHE_STEP)
}

/// Tokens that the texts of a worker hold at most, where one has no more than `longest`.
pub(crate) fn most_held(limits: GenerationLimits, longest: usize) -> usize {
    blocks(limits.kv_cache_tokens).min(blocks(longest).saturating_mul(limits.max_sequences))
}

impl<Key, State> Text<Key, State> {
    fn room(&self) -> usize {
        blocks(self.start.most)
    }

    /// Chooses its next token, if it has read all before it.
    fn take<Request: ?Sized>(&mut self, model: &impl Steps<Request, State = State>, logits: Logits) {
        let next = match logits {
            Ok(None) => return,
            Ok(Some(mut logits)) => self.start.generation.accept(&mut logits),
            Err(error) => Err(error),
        };
        let is_news = match &next {
            Ok(GenerationStep { finished: Some(_), .. }) | Err(_) => true,
            Ok(next) => {
                model.chosen(&mut self.start.state, next.token);
                next.chunk.is_some()
            }
        };
        self.held = is_news.then_some(Held { next });
    }
}
