//! Log probabilities of tokens: of the one that was chosen, and of the most probable ones. They are the logarithm of the
//! softmax of the model's logits, as they are before anything of a request changes them.

use std::cmp::Ordering;

use model_actors::{TokenLogprob, TokenLogprobs};

use crate::tokens::Tokens;

/// The log probabilities of a token that was chosen by these logits, and of the `top` most probable ones, of which the
/// first of equals comes first.
pub(super) fn of(tokens: &Tokens, logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(largest)).exp()).sum();
    // Both parts apart from each other, as logits may be large.
    let norm = sum.ln();
    let logprob = |token: u32| {
        let logit = logits.get(token as usize).copied().unwrap_or(f32::MIN);
        let logprob = (f64::from(logit) - f64::from(largest) - norm) as f32;
        TokenLogprob::new(token, tokens.bytes(token), logprob)
    };
    TokenLogprobs::new(logprob(chosen), most_probable(logits, top).into_iter().map(logprob).collect())
}

/// The tokens of the largest logits, in their order.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    let by_logit = |left: &u32, right: &u32| -> Ordering {
        let logit = |token: u32| logits.get(token as usize).copied().unwrap_or(f32::MIN);
        logit(*right).total_cmp(&logit(*left)).then(left.cmp(right))
    };
    let mut all: Vec<u32> = (0..logits.len() as u32).collect();
    if count == 0 || all.is_empty() {
        return Vec::new();
    }
    if count < all.len() {
        all.select_nth_unstable_by(count, by_logit);
        all.truncate(count);
    }
    all.sort_unstable_by(by_logit);
    all
}
