//! Several texts that one worker writes together, a token each at every step: who takes part in a step, who waits for
//! room, and what comes of it. Text to text runs on it; what a step computes is behind [`Steps`], and how
//! requests come and go is left to `worker`.

mod worker;

use std::collections::VecDeque;
use std::ops::Range;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::generation::{Generation, Next};
pub(crate) use worker::serve;

/// Rows of prompts in one step, all texts together. A long prompt is read in several steps, so that the others go on
/// meanwhile, and a cancelled one is not read to its end.
pub(crate) const PROMPT_ROWS: usize = 128;
/// Room is given in pieces of so many tokens, in which caches grow.
const BLOCK: usize = 128;

/// A model that writes texts. It has no state of its own; each text has one.
pub(crate) trait Steps<Request: ?Sized> {
    /// What the model keeps of one text: its cache, and what is not yet read of its prompt.
    type State;

    /// Prepares a text: everything before the first step.
    ///
    /// # Errors
    /// What is wrong with the request.
    fn begin(&self, request: &Request) -> Result<Start<Self::State>>;

    /// One step over several texts: each reads what its input says. Gives the logits of the next token of those whose
    /// input asks for them, `(asked, vocabulary)`, in order; nothing if none asks.
    ///
    /// # Errors
    /// Ends the run.
    fn step(&self, texts: &mut [Part<'_, Self::State>]) -> Result<Option<Tensor>>;
}

/// A text before its first step.
pub(crate) struct Start<State> {
    pub(crate) state: State,
    pub(crate) generation: Generation,
    /// Rows of the prompt.
    pub(crate) prompt: usize,
    /// Tokens that prompt and answer will have at most: the room that the text takes.
    pub(crate) most: usize,
}

/// A text's part of a step.
pub(crate) struct Part<'a, State> {
    pub(crate) state: &'a mut State,
    pub(crate) input: Input,
}

/// What a text reads in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// These rows of its prompt.
    Prompt { rows: Range<usize>, last: Last },
    /// The token that was chosen before.
    Token(u32),
}

/// Whether a piece of a prompt is its last, so that a token follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Yes,
    No,
}

impl Input {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Prompt { rows, .. } => rows.len(),
            Self::Token(_) => 1,
        }
    }

    /// Whether the next token is chosen after it.
    pub(crate) fn asks(&self) -> bool {
        !matches!(self, Self::Prompt { last: Last::No, .. })
    }
}

/// A text on its way.
struct Text<Key, State> {
    key: Key,
    start: Start<State>,
    /// Rows of the prompt that were read.
    read: usize,
    token: Option<u32>,
    /// What its reader has not taken yet. It takes part in no step meanwhile.
    held: Option<Held>,
}

/// What a step made of one text.
pub(crate) struct Held {
    pub(crate) next: Result<Next>,
}

/// The texts of a worker.
pub(crate) struct Streams<Key, State> {
    running: Vec<Text<Key, State>>,
    waiting: VecDeque<Text<Key, State>>,
    /// Tokens that may still be promised.
    room: usize,
}

impl<Key: Copy + Eq, State> Streams<Key, State> {
    /// With room for so many tokens.
    pub(crate) fn new(room: usize) -> Self {
        let room = room.div_ceil(BLOCK).saturating_mul(BLOCK);
        Self { running: Vec::new(), waiting: VecDeque::new(), room }
    }

    /// Takes a text in. It waits until there is room for the longest that it can become, and nobody overtakes it.
    pub(crate) fn add(&mut self, key: Key, start: Start<State>) {
        self.waiting.push_back(Text { key, start, read: 0, token: None, held: None });
        self.admit();
    }

    /// Lets go of a text.
    pub(crate) fn remove(&mut self, key: Key) {
        self.waiting.retain(|text| text.key != key);
        if let Some(index) = self.running.iter().position(|text| text.key == key) {
            let text = self.running.remove(index);
            self.room += room_of(&text);
        }
        self.admit();
    }

    fn admit(&mut self) {
        while let Some(first) = self.waiting.front() {
            // One that is alone has all the room there is.
            if room_of(first) > self.room && !self.running.is_empty() {
                return;
            }
            self.room = self.room.saturating_sub(room_of(first));
            self.running.extend(self.waiting.pop_front());
        }
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.running.iter().chain(&self.waiting).map(|text| text.key).collect()
    }

    /// What a text has for its reader; nothing if there is none, or if there is no such text.
    pub(crate) fn held(&mut self, key: Key) -> Option<&mut Option<Held>> {
        let text = self.running.iter_mut().find(|text| text.key == key)?;
        text.held.is_some().then_some(&mut text.held)
    }

    /// One step of all texts whose readers have taken what there was. False if there is none.
    ///
    /// # Errors
    /// A computation that failed. What is wrong with one text alone is held for its reader.
    pub(crate) fn step<Request: ?Sized>(
        &mut self,
        model: &impl Steps<Request, State = State>,
    ) -> Result<bool> {
        let mut budget = PROMPT_ROWS;
        let mut texts: Vec<&mut Text<Key, State>> =
            self.running.iter_mut().filter(|text| text.held.is_none()).collect();
        let inputs: Vec<Option<Input>> = texts.iter().map(|text| text.input(&mut budget)).collect();
        let mut parts = Vec::with_capacity(texts.len());
        for (text, input) in texts.iter_mut().zip(&inputs) {
            if let Some(input) = input.clone() {
                parts.push(Part { state: &mut text.start.state, input });
            }
        }
        if parts.is_empty() {
            return Ok(false);
        }
        let logits = match model.step(&mut parts)? {
            Some(logits) => logits.to_vec2::<f32>()?,
            None => Vec::new(),
        };
        let mut logits = logits.into_iter();
        for (text, input) in texts.into_iter().zip(inputs) {
            let Some(input) = input else { continue };
            if let Input::Prompt { rows, .. } = &input {
                text.read = rows.end;
            }
            if input.asks() {
                let missing = || Error::Compute(candle_core::Error::msg("a step made too few logits"));
                let mut logits = logits.next().ok_or_else(missing)?;
                text.take(&mut logits);
            }
        }
        Ok(true)
    }
}

fn room_of<Key, State>(text: &Text<Key, State>) -> usize {
    text.start.most.div_ceil(BLOCK).saturating_mul(BLOCK)
}

impl<Key, State> Text<Key, State> {
    /// What it reads next, with so many rows left for prompts.
    fn input(&self, budget: &mut usize) -> Option<Input> {
        if let Some(token) = self.token {
            return Some(Input::Token(token));
        }
        let end = self.start.prompt.min(self.read + *budget);
        let rows = self.read..end;
        if rows.is_empty() {
            return None;
        }
        *budget -= rows.len();
        let last = if end == self.start.prompt { Last::Yes } else { Last::No };
        Some(Input::Prompt { rows, last })
    }

    /// Chooses its next token.
    fn take(&mut self, logits: &mut [f32]) {
        let next = self.start.generation.accept(logits);
        self.token = next.as_ref().ok().map(|next| next.token);
        let is_news = match &next {
            Ok(next) => next.text.is_some() || next.finished.is_some(),
            Err(_) => true,
        };
        self.held = is_news.then_some(Held { next });
    }
}
