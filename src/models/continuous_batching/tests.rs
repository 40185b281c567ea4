//! The choice of texts that take part in a step, with a scripted model.

use std::cell::RefCell;
use std::path::Path;

use super::*;
use crate::error::Error;
use crate::generation::TextSettings;
use crate::tokens::Tokens;

/// A model whose texts read what they are told to, and write one letter again and again.
struct Scripted {
    tokens: Tokens,
    /// Rows that each step read.
    steps: RefCell<Vec<Vec<usize>>>,
}

struct State {
    unread: usize,
    /// Rows to read after each token.
    again: usize,
    fails: bool,
}

impl Scripted {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = root.join("tests/fixtures/text_to_text/llama/tokenizer.json");
        Self { tokens: Tokens::read_whole(&file).unwrap(), steps: RefCell::default() }
    }

    /// A text that has so much to read, and so many tokens at most.
    fn text(&self, unread: usize, most: usize) -> Start<State> {
        self.text_that_restarts(unread, most, 1, 1000)
    }

    /// One that has so much to read again after each of its tokens.
    fn text_that_restarts(&self, unread: usize, most: usize, again: usize, writes: usize) -> Start<State> {
        let settings = TextSettings { max_tokens: writes, ..TextSettings::default() };
        let generation = Generation::new(&self.tokens, &settings, &[], &[]).unwrap();
        Start { state: State { unread, again, fails: false }, generation, most }
    }
}

impl Steps<()> for Scripted {
    type State = State;

    fn begin(&self, (): &()) -> Result<Start<State>> {
        Ok(self.text(1, 1))
    }

    fn unread(&self, state: &State) -> usize {
        state.unread
    }

    fn step(&self, texts: &mut [Part<'_, State>]) -> Result<Vec<Logits>> {
        self.steps.borrow_mut().push(texts.iter().map(|part| part.rows).collect());
        let made = texts.iter_mut().map(|Part { state, rows }| {
            state.unread -= *rows;
            if state.fails {
                return Err(Error::NotFiniteOutput);
            }
            let letter = self.tokens.id("a").unwrap() as usize;
            Ok((state.unread == 0)
                .then(|| (0..384).map(|id| if id == letter { 50.0 } else { 0.0 }).collect()))
        });
        Ok(made.collect())
    }

    fn chosen(&self, state: &mut State, _: u32) {
        state.unread = state.again;
    }
}

fn limits(kv_cache_tokens: usize, max_sequences: usize) -> GenerationLimits {
    GenerationLimits::default().with_kv_cache_tokens(kv_cache_tokens).with_max_sequences(max_sequences)
}

#[test]
fn a_newcomer_counts_its_own_room_and_nobody_overtakes_it() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(512, 8));
    let running =
        |streams: &Streams<u32, State>| -> Vec<u32> { streams.running.iter().map(|text| text.key).collect() };
    // One alone is taken whatever it may come to need.
    streams.add(1, model.text(1, 4000));
    streams.add(2, model.text(1, 200));
    streams.add(3, model.text(1, 129));
    streams.add(4, model.text(1, 10));
    assert_eq!(running(&streams), [1]);
    assert!(!streams.wants_more(&model));
    // 256 and 256 are all there is; the last would have had room beside the first alone.
    streams.remove(1);
    assert_eq!(running(&streams), [2, 3]);
    streams.remove(2);
    assert_eq!(running(&streams), [3, 4]);
    assert!(streams.wants_more(&model));
    streams.add(5, model.text(1, 129));
    assert_eq!(running(&streams), [3, 4]);
    streams.remove(3);
    assert_eq!(running(&streams), [4, 5]);
}

#[test]
fn no_more_texts_run_than_are_counted() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 2));
    for key in 0..5 {
        streams.add(key, model.text(1, 10));
    }
    assert_eq!((streams.running.len(), streams.waiting.len()), (2, 3));
    streams.remove(0);
    assert_eq!((streams.running.len(), streams.waiting.len()), (2, 2));
    assert_eq!(most_held(limits(8192, 2), 100), 256);
    assert_eq!(most_held(limits(1000, 32), 4096), 1024);
}

#[test]
fn prompts_share_a_step_and_the_next_is_begun_when_there_is_room_in_one() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(1, model.text(300, 400));
    assert!(!streams.wants_more(&model), "the first fills more than a step");
    streams.add(2, model.text(1, 400));
    for _ in 0..3 {
        streams.step(&model).unwrap();
        for key in streams.keys() {
            streams.held(key).map(Option::take);
        }
    }
    assert_eq!(model.steps.take(), [[128, 1], [128, 1], [44, 1]]);
    assert!(streams.wants_more(&model));
    streams.add(3, model.text(100, 400));
    assert!(streams.wants_more(&model));
    streams.add(4, model.text(100, 400));
    assert!(!streams.wants_more(&model));
    streams.step(&model).unwrap();
    assert_eq!(model.steps.take(), [[1, 1, 100, 28]]);
}

#[test]
fn a_text_that_waits_for_its_reader_lets_others_begin_whatever_it_has_to_read_again() {
    let model = Scripted::new();
    for writes in [1000, 1] {
        let mut streams = Streams::new(limits(8192, 8));
        streams.add(1, model.text_that_restarts(10, 5000, 4097, writes));
        assert!(streams.moves());
        assert!(streams.step(&model).unwrap());
        let next = streams.held(1).unwrap().as_ref().unwrap().next.as_ref().unwrap();
        let text = next.chunk.as_ref().map(|chunk| chunk.text.as_str());
        assert_eq!((text, next.finished.is_some()), (Some("a"), writes == 1));
        // What ends a text is not read.
        let unread = streams.running[0].start.state.unread;
        assert_eq!(unread, if writes == 1 { 0 } else { 4097 });
        assert!(!streams.moves() && !streams.step(&model).unwrap());
        assert!(streams.wants_more(&model), "of {writes} tokens");
    }
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(1, model.text_that_restarts(10, 5000, 4097, 1000));
    streams.step(&model).unwrap();
    // Its reader has taken what there was: it reads again, as a prompt does.
    streams.held(1).and_then(Option::take);
    assert!(streams.moves() && !streams.wants_more(&model));
}

#[test]
fn a_text_that_waits_for_its_reader_keeps_its_room() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(512, 8));
    streams.add(1, model.text(1, 400));
    streams.step(&model).unwrap();
    streams.add(2, model.text(1, 200));
    assert!(streams.held(1).is_some() && !streams.moves());
    assert!(!streams.wants_more(&model), "the second waits for room, and nobody overtakes it");
    streams.remove(1);
    assert!(streams.moves() && streams.wants_more(&model));
}

#[test]
fn an_error_of_one_text_is_its_own() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(1, model.text(10, 400));
    let mut failing = model.text(10, 400);
    failing.state.fails = true;
    streams.add(2, failing);
    assert!(streams.step(&model).unwrap());
    assert!(streams.held(2).unwrap().take().unwrap().next.is_err());
    let first = streams.held(1).and_then(Option::take);
    assert!(first.is_none_or(|held| held.next.is_ok()));
}
