//! The passes of a worker: the number of token or patch rows that go through a transformer at a time. The scheduler of
//! `model-actors` decides which requests share a batch; this file alone decides how their rows are split into passes.
//!
//! | worker | a pass has | because |
//! |---|---|---|
//! | text embedding | texts of about one length, up to [`PASS_ROWS`] tokens ([`passes`]) | products of so many rows run at full speed, and a worker's scratch stays small |
//! | image embedding | images, or texts, in their order, up to [`PASS_ROWS`] rows ([`joins`]) | the same; and decoded pixels of a batch are never all in memory |
//! | text to text, vision | the next token of every answer, and up to [`PROMPT_ROWS`] rows of prompts | a long prompt delays the answers beside it by no more than a piece, and a cancelled one is not read to its end |
//!
//! Batches that a caller sends at once come as several requests, whose sizes are in `handles/calls.rs`.
//!
//! A text or image with more rows than fit has a pass of its own. Rows are never padded to a common length,
//! so that nothing that shares a pass changes a result.

use model_actors::Bytes;

/// Rows of a pass over whole texts or images, unless a single one has more: measured to be enough for matrix
/// products at full speed, and few enough to keep a worker's scratch small and its ticks frequent.
pub(crate) const PASS_ROWS: usize = 256;

/// Rows of prompts in one step of generation, all texts together (chunked prefill). A long prompt is read in
/// several steps, so that the others go on meanwhile, and a cancelled one is not read to its end.
pub(crate) const PROMPT_ROWS: usize = 128;

/// Memory that gemm, the tokenizer and the allocator keep for each thread of a worker, as measured for text embedding.
pub(crate) const THREAD_SCRATCH: Bytes = Bytes::mib(4);

/// True if an input of `more` rows joins a pass that has `rows`.
pub(crate) fn joins(rows: usize, more: usize) -> bool {
    rows == 0 || rows.saturating_add(more) <= PASS_ROWS
}

/// Splits texts into passes, shortest first. Texts of one length come together, which saves padding on an
/// accelerator; the order of the answers does not depend on it.
pub(crate) fn passes<T>(mut texts: Vec<T>, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    texts.sort_by_key(&length);
    let mut passes: Vec<Vec<T>> = Vec::new();
    let mut rows = 0;
    for text in texts {
        let more = length(&text);
        match passes.last_mut() {
            Some(pass) if joins(rows, more) => {
                rows += more;
                pass.push(text);
            }
            _ => {
                rows = more;
                passes.push(vec![text]);
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_every_text_once_and_no_more_tokens_than_they_may() {
        let texts: Vec<usize> = (0..100).map(|index| index * 37 % 300 + 1).chain([5000]).collect();
        let passes = passes(texts.clone(), |length| *length);
        assert!(passes.iter().all(|pass| pass.len() == 1 || pass.iter().sum::<usize>() <= PASS_ROWS));
        let mut held: Vec<usize> = passes.concat();
        let mut all = texts;
        held.sort_unstable();
        all.sort_unstable();
        assert_eq!(held, all);
    }
}
