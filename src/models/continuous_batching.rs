//! Continuous batching: one worker writes several texts together, a token of each at every step, and texts
//! join and leave between steps. Here is decided which texts take part in a step and which wait for room in
//! the KV caches, and which answer of several reads the prompt that they share. Text to text and vision run on it; the computation of a step is behind [`Steps`], and the
//! requests are left to `worker`.

mod worker;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worker_tests;

use std::any::Any;
use std::collections::VecDeque;

use model_actors::{AnswerEnd, Completion};

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

    /// Begins to get what a request needs and is not there. Asked before [`Self::begin`], and once more after the wait.
    ///
    /// # Errors
    /// The request is refused.
    fn prepare(&self, _: &Request) -> Result<Prepared> {
        Ok(Prepared::There(None))
    }

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

    /// The state of another text with the same prompt, of which nothing is read. Asked before the first token of the text
    /// is chosen.
    ///
    /// # Errors
    /// A computation that failed.
    fn again(&self, state: &Self::State) -> Result<Self::State>;

    /// A copy of a state whose prompt is read, before its first token; none where states cannot be copied, so that the prompt
    /// is read again.
    ///
    /// # Errors
    /// A computation that failed.
    fn fork(&self, state: &Self::State) -> Result<Option<Self::State>>;
}

/// The state of something that a request needs and others provide.
pub(crate) enum Prepared {
    /// It is there, as long as this is held.
    There(Option<Box<dyn Any>>),
    /// It is not there yet.
    Later(Wait),
}

/// A wait for something that others provide: nothing until it is there, or cannot be had. What it waited for stays there as
/// long as this does.
pub(crate) type Wait = Box<dyn Fn() -> Option<Result<()>>>;

/// The result of a step for one text.
pub(crate) type Logits = Result<Option<Vec<f32>>>;

/// A request before its first step: a text, or several that answer one prompt.
pub(crate) struct Start<State> {
    pub(crate) state: State,
    pub(crate) generation: Generation,
    /// The other answers, in their order.
    pub(crate) others: Vec<Generation>,
    /// Tokens that prompt and answer will have at most, and rows that are kept besides: the room that each
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
    /// Its number among the answers of the request, and whether there are others.
    answer: usize,
    count: Answers,
    state: State,
    generation: Generation,
    most: usize,
    /// It waits for another answer of the request to read the prompt, to get a copy of its state.
    follows: bool,
    /// Output that its reader has not taken yet. The text takes part in no step meanwhile, and keeps its room.
    held: Option<Held>,
}

/// Number of answers that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    One,
    /// The stream tells the end of each.
    Several,
}

/// Output of a step for one text.
pub(crate) struct Held {
    pub(crate) next: Result<GenerationStep>,
}

/// The texts of a worker.
pub(crate) struct Streams<Key, State> {
    running: Vec<Text<Key, State>>,
    waiting: VecDeque<Text<Key, State>>,
    /// Answers that are complete, of requests that have others.
    done: Vec<(Key, usize, Completion)>,
    limits: GenerationLimits,
}

impl<Key: Copy + Eq, State> Streams<Key, State> {
    pub(crate) fn new(limits: GenerationLimits) -> Self {
        Self { running: Vec::new(), waiting: VecDeque::new(), done: Vec::new(), limits }
    }

    /// Takes the texts of a request in. Each waits until there is room for the longest that it can become, and nobody
    /// overtakes it.
    ///
    /// # Errors
    /// Those of [`Steps::again`].
    pub(crate) fn add<Request: ?Sized>(
        &mut self,
        model: &impl Steps<Request, State = State>,
        key: Key,
        start: Start<State>,
    ) -> Result<()> {
        let Start { state, generation, others, most } = start;
        let states = others.iter().map(|_| model.again(&state)).collect::<Result<Vec<_>>>()?;
        let count = if others.is_empty() { Answers::One } else { Answers::Several };
        let text = |answer, state, generation| Text {
            key,
            answer,
            count,
            state,
            generation,
            most,
            follows: answer > 0,
            held: None,
        };
        self.waiting.push_back(text(0, state, generation));
        let others = states.into_iter().zip(others).zip(1..);
        self.waiting.extend(others.map(|((state, generation), answer)| text(answer, state, generation)));
        self.admit();
        Ok(())
    }

    /// Lets go of a request.
    pub(crate) fn remove(&mut self, key: Key) {
        self.waiting.retain(|text| text.key != key);
        self.running.retain(|text| text.key != key);
        self.done.retain(|(of, ..)| *of != key);
        self.admit();
    }

    /// Lets go of an answer that is complete. After the last of its request, all of them.
    pub(crate) fn finish(&mut self, key: Key, answer: usize, completion: Completion) -> Option<Completion> {
        self.running.retain(|text| (text.key, text.answer) != (key, answer));
        self.admit();
        self.done.push((key, answer, completion));
        if self.running.iter().chain(&self.waiting).any(|text| text.key == key) {
            return None;
        }
        let mut answers: Vec<_> = self.done.extract_if(.., |(of, ..)| *of == key).collect();
        answers.sort_by_key(|(_, answer, _)| *answer);
        let mut answers = answers.into_iter().map(|(.., completion)| completion);
        let first = answers.next()?;
        Some(first.with_others(answers.collect()))
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
        let reading = self.free().filter(|text| !text.follows);
        let unread = reading.map(|text| model.unread(&text.state));
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

    /// Each text: its request, and its number among the answers of that.
    pub(crate) fn texts(&self) -> Vec<(Key, usize)> {
        self.running.iter().chain(&self.waiting).map(|text| (text.key, text.answer)).collect()
    }

    /// Output of a text for its reader; nothing if there is none, or if there is no such text.
    pub(crate) fn held(&mut self, key: Key, answer: usize) -> Option<&mut Option<Held>> {
        let text = self.running.iter_mut().find(|text| (text.key, text.answer) == (key, answer))?;
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
        self.choose_readers(model)?;
        let mut budget = PROMPT_ROWS;
        let mut takes = |text: &Text<Key, State>| match model.unread(&text.state) {
            _ if text.held.is_some() || text.follows => 0,
            rows @ (0 | 1) => rows,
            _ => {
                let rows = model.piece(&text.state, budget).min(budget);
                budget -= rows;
                rows
            }
        };
        let rows: Vec<usize> = self.running.iter().map(&mut takes).collect();
        let taking = self.running.iter_mut().zip(&rows).filter(|(_, rows)| **rows > 0);
        let mut parts: Vec<_> =
            taking.map(|(text, rows)| Part { state: &mut text.state, rows: *rows }).collect();
        if parts.is_empty() {
            return Ok(false);
        }
        let made = model.step(&mut parts)?;
        let places = rows.iter().enumerate().filter(|(_, rows)| **rows > 0);
        for ((place, _), logits) in places.zip(made) {
            if let Ok(Some(logits)) = &logits {
                self.share(model, place, logits)?;
            }
            if let Some(text) = self.running.get_mut(place) {
                text.take(model, logits);
            }
        }
        Ok(true)
    }

    /// Has the first of the answers that wait for their prompt read it, where none of their request does.
    fn choose_readers<Request: ?Sized>(&mut self, model: &impl Steps<Request, State = State>) -> Result<()> {
        let is_reading = |text: &&Text<Key, State>| !text.follows && text.generation.is_empty();
        let mut read: Vec<Key> = self.running.iter().filter(is_reading).map(|text| text.key).collect();
        for text in self.running.iter_mut().filter(|text| text.follows) {
            if !read.contains(&text.key) {
                // What another answer has read may be in a cache by now.
                text.state = model.again(&text.state)?;
                text.follows = false;
                read.push(text.key);
            }
        }
        Ok(())
    }

    /// Gives the answers that wait for the one at this place to read their prompt what it has, once it has read it.
    fn share<Request: ?Sized>(
        &mut self,
        model: &impl Steps<Request, State = State>,
        place: usize,
        logits: &[f32],
    ) -> Result<()> {
        let Some((before, [reader, after @ ..])) = self.running.split_at_mut_checked(place) else {
            return Ok(());
        };
        if !reader.generation.is_empty() {
            return Ok(());
        }
        for text in before.iter_mut().chain(after).filter(|text| text.follows && text.key == reader.key) {
            let Some(copy) = model.fork(&reader.state)? else { break };
            (text.state, text.follows) = (copy, false);
            text.take(model, Ok(Some(logits.to_vec())));
        }
        Ok(())
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
        blocks(self.most)
    }

    /// Chooses its next token, if it has read all before it.
    fn take<Request: ?Sized>(&mut self, model: &impl Steps<Request, State = State>, logits: Logits) {
        let mut next = match logits {
            Ok(None) => return,
            Ok(Some(mut logits)) => self.generation.accept(&mut logits),
            Err(error) => Err(error),
        };
        if let (Ok(GenerationStep { chunk, finished: Some(whole), .. }), Answers::Several) =
            (&mut next, self.count)
        {
            chunk.get_or_insert_default().end = Some(AnswerEnd::new(whole.finish_reason, whole.usage));
        }
        let is_news = match &next {
            Ok(GenerationStep { finished: Some(_), .. }) | Err(_) => true,
            Ok(next) => {
                model.chosen(&mut self.state, next.token);
                next.chunk.is_some()
            }
        };
        self.held = is_news.then_some(Held { next });
    }
}
