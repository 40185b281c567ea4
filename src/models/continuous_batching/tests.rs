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
    /// Its states can be copied.
    copies: bool,
}

struct State {
    prompt: usize,
    unread: usize,
    /// Rows to read after each token.
    again: usize,
    fails: bool,
}

impl Scripted {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = root.join("tests/fixtures/text_to_text/llama/tokenizer.json");
        Self { tokens: Tokens::read_whole(&file).unwrap(), steps: RefCell::default(), copies: true }
    }

    /// A text that has so much to read, and so many tokens at most.
    fn text(&self, unread: usize, most: usize) -> Start<State> {
        self.text_that_restarts(unread, most, 1, 1000)
    }

    /// One that has so much to read again after each of its tokens.
    fn text_that_restarts(&self, unread: usize, most: usize, again: usize, writes: usize) -> Start<State> {
        let settings = TextSettings { max_tokens: writes, ..TextSettings::default() };
        let generation = Generation::new(&self.tokens, &settings, &[], &[]).unwrap();
        Start {
            state: State { prompt: unread, unread, again, fails: false },
            generation,
            others: Vec::new(),
            most,
        }
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

    fn again(&self, state: &State) -> Result<State> {
        Ok(State { unread: state.prompt, ..*state })
    }

    fn fork(&self, state: &State) -> Result<Option<State>> {
        Ok(self.copies.then_some(State { ..*state }))
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
    streams.add(&model, 1, model.text(1, 4000)).unwrap();
    streams.add(&model, 2, model.text(1, 200)).unwrap();
    streams.add(&model, 3, model.text(1, 129)).unwrap();
    streams.add(&model, 4, model.text(1, 10)).unwrap();
    assert_eq!(running(&streams), [1]);
    assert!(!streams.wants_more(&model));
    // 256 and 256 are all there is; the last would have had room beside the first alone.
    streams.remove(1);
    assert_eq!(running(&streams), [2, 3]);
    streams.remove(2);
    assert_eq!(running(&streams), [3, 4]);
    assert!(streams.wants_more(&model));
    streams.add(&model, 5, model.text(1, 129)).unwrap();
    assert_eq!(running(&streams), [3, 4]);
    streams.remove(3);
    assert_eq!(running(&streams), [4, 5]);
}

#[test]
fn no_more_texts_run_than_are_counted() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 2));
    for key in 0..5 {
        streams.add(&model, key, model.text(1, 10)).unwrap();
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
    streams.add(&model, 1, model.text(300, 400)).unwrap();
    assert!(!streams.wants_more(&model), "the first fills more than a step");
    streams.add(&model, 2, model.text(1, 400)).unwrap();
    for _ in 0..3 {
        streams.step(&model).unwrap();
        for (key, answer) in streams.texts() {
            streams.held(key, answer).map(Option::take);
        }
    }
    assert_eq!(model.steps.take(), [[128, 1], [128, 1], [44, 1]]);
    assert!(streams.wants_more(&model));
    streams.add(&model, 3, model.text(100, 400)).unwrap();
    assert!(streams.wants_more(&model));
    streams.add(&model, 4, model.text(100, 400)).unwrap();
    assert!(!streams.wants_more(&model));
    streams.step(&model).unwrap();
    assert_eq!(model.steps.take(), [[1, 1, 100, 28]]);
}

#[test]
fn a_text_that_waits_for_its_reader_lets_others_begin_whatever_it_has_to_read_again() {
    let model = Scripted::new();
    for writes in [1000, 1] {
        let mut streams = Streams::new(limits(8192, 8));
        streams.add(&model, 1, model.text_that_restarts(10, 5000, 4097, writes)).unwrap();
        assert!(streams.moves());
        assert!(streams.step(&model).unwrap());
        let next = streams.held(1, 0).unwrap().as_ref().unwrap().next.as_ref().unwrap();
        let text = next.chunk.as_ref().map(|chunk| chunk.text.as_str());
        assert_eq!((text, next.finished.is_some()), (Some("a"), writes == 1));
        // What ends a text is not read.
        let unread = streams.running[0].state.unread;
        assert_eq!(unread, if writes == 1 { 0 } else { 4097 });
        assert!(!streams.moves() && !streams.step(&model).unwrap());
        assert!(streams.wants_more(&model), "of {writes} tokens");
    }
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(&model, 1, model.text_that_restarts(10, 5000, 4097, 1000)).unwrap();
    streams.step(&model).unwrap();
    // Its reader has taken what there was: it reads again, as a prompt does.
    streams.held(1, 0).and_then(Option::take);
    assert!(streams.moves() && !streams.wants_more(&model));
}

#[test]
fn a_text_that_waits_for_its_reader_keeps_its_room() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(512, 8));
    streams.add(&model, 1, model.text(1, 400)).unwrap();
    streams.step(&model).unwrap();
    streams.add(&model, 2, model.text(1, 200)).unwrap();
    assert!(streams.held(1, 0).is_some() && !streams.moves());
    assert!(!streams.wants_more(&model), "the second waits for room, and nobody overtakes it");
    streams.remove(1);
    assert!(streams.moves() && streams.wants_more(&model));
}

#[test]
fn an_error_of_one_text_is_its_own() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(&model, 1, model.text(10, 400)).unwrap();
    let mut failing = model.text(10, 400);
    failing.state.fails = true;
    streams.add(&model, 2, failing).unwrap();
    assert!(streams.step(&model).unwrap());
    assert!(streams.held(2, 0).unwrap().take().unwrap().next.is_err());
    let first = streams.held(1, 0).and_then(Option::take);
    assert!(first.is_none_or(|held| held.next.is_ok()));
}

/// Texts of one request that write so many tokens each.
fn answers(model: &Scripted, unread: usize, most: usize, writes: &[usize]) -> Start<State> {
    let start = |writes: &usize| model.text_that_restarts(unread, most, 1, *writes);
    let mut starts = writes.iter().map(start);
    let first = starts.next().unwrap();
    Start { others: starts.map(|start| start.generation).collect(), ..first }
}

/// The completion of each request, and the order in which answers ended.
type Run = (Vec<(u32, Completion)>, Vec<(u32, usize)>);

/// Steps until nothing is left, as readers that take what there is.
fn run(model: &Scripted, streams: &mut Streams<u32, State>) -> Run {
    let (mut whole, mut ends) = (Vec::new(), Vec::new());
    while streams.step(model).unwrap() {
        for (key, answer) in streams.texts() {
            let Some(held) = streams.held(key, answer).and_then(Option::take) else { continue };
            let Some(completion) = held.next.unwrap().finished else { continue };
            ends.push((key, answer));
            whole.extend(streams.finish(key, answer, completion).map(|all| (key, all)));
        }
    }
    (whole, ends)
}

fn rows(model: &Scripted) -> Vec<Vec<usize>> {
    model.steps.take()
}

#[test]
fn one_answer_reads_the_prompt_and_the_others_get_what_it_has_read() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(&model, 7, answers(&model, 200, 300, &[1, 4, 2])).unwrap();
    let (whole, ends) = run(&model, &mut streams);
    // The first token of all comes with the last row of the prompt; one that has ended takes part no more.
    assert_eq!(rows(&model), [vec![128], vec![72], vec![1, 1], vec![1], vec![1]]);
    assert_eq!(ends, [(7, 0), (7, 2), (7, 1)]);
    let [(7, all)] = &whole[..] else { panic!("{whole:?}") };
    let texts: Vec<&str> = all.answers().map(|answer| answer.text.as_str()).collect();
    assert_eq!(texts, ["a", "aaaa", "aa"]);
}

#[test]
fn answers_beyond_the_room_of_the_caches_wait_and_read_the_prompt_themselves() {
    let model = Scripted::new();
    // Room for two at a time.
    let mut streams = Streams::new(limits(512, 8));
    streams.add(&model, 7, answers(&model, 100, 200, &[2, 2, 2, 2])).unwrap();
    streams.add(&model, 8, model.text_that_restarts(1, 10, 1, 1)).unwrap();
    assert_eq!(streams.running.len(), 2);
    let (whole, _) = run(&model, &mut streams);
    assert_eq!(rows(&model), [vec![100], vec![1, 1], vec![100], vec![1, 1], vec![1]]);
    assert_eq!(whole.iter().map(|(key, all)| (*key, all.others.len())).collect::<Vec<_>>(), [(7, 3), (8, 0)]);
}

#[test]
fn answers_of_a_model_that_cannot_copy_read_the_prompt_one_after_the_other() {
    let mut model = Scripted::new();
    model.copies = false;
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(&model, 7, answers(&model, 100, 200, &[3, 3])).unwrap();
    let (whole, _) = run(&model, &mut streams);
    assert_eq!(rows(&model), [vec![100], vec![1, 100], vec![1, 1], vec![1]]);
    assert_eq!(whole[0].1.others.len(), 1);
}

#[test]
fn a_request_that_goes_takes_all_its_answers_along_and_leaves_others_alone() {
    let model = Scripted::new();
    let mut streams = Streams::new(limits(8192, 8));
    streams.add(&model, 1, answers(&model, 10, 100, &[1, 9, 9])).unwrap();
    streams.add(&model, 2, answers(&model, 10, 100, &[2, 2])).unwrap();
    streams.step(&model).unwrap();
    let first = streams.held(1, 0).unwrap().take().unwrap().next.unwrap().finished.unwrap();
    assert!(streams.finish(1, 0, first).is_none());
    streams.remove(1);
    assert_eq!(streams.texts(), [(2, 0), (2, 1)]);
    assert!(streams.done.is_empty());
}
