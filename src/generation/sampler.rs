//! The choice of the next token from logits. Order and meaning of the settings are those of transformers'
//! `generate`: the repetition penalty over prompt and answer (Keskar et al., 2019, arXiv:1909.05858), then
//! temperature, the k likeliest (Fan et al., 2018), the nucleus of probability p (Holtzman et al., 2019,
//! arXiv:1904.09751), and the share of the likeliest one's probability (Nguyen et al., 2024, arXiv:2407.01082).
//! Each text has a generator of its own, so that what runs beside it changes nothing.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use model_actors::Sampling;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::error::{Error, Result};

/// Candidates that are sorted first, in the hope that they make up the nucleus.
const FIRST_SORTED: usize = 256;

/// A text's settings, its random numbers, and the tokens that occurred in it.
pub(super) struct Sampler {
    settings: Sampling,
    random: ChaCha12Rng,
    seen: HashSet<u32>,
}

/// A token that may be chosen, with its logit or probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) weight: f64,
}

impl Sampler {
    pub(super) fn new(settings: &Sampling, prompt: &[u32]) -> Result<Self> {
        settings.check().map_err(Error::InvalidInput)?;
        // Without a seed: the standard library's own source of keys for its hash maps.
        let seed = settings.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let seen = match settings.repetition_penalty {
            Some(_) => prompt.iter().copied().collect(),
            None => HashSet::new(),
        };
        Ok(Self { settings: settings.clone(), random: ChaCha12Rng::seed_from_u64(seed), seen })
    }

    /// Chooses a token. The logits are spoiled.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::NotFiniteOutput);
        }
        if let Some(penalty) = self.settings.repetition_penalty {
            penalize(logits, &self.seen, penalty);
        }
        let token = if self.settings.temperature == 0.0 {
            likeliest(logits)
        } else {
            let candidates = candidates(logits, &self.settings);
            draw(&candidates, unit(&mut self.random))
        };
        if self.settings.repetition_penalty.is_some() {
            self.seen.insert(token);
        }
        Ok(token)
    }
}

/// A number from 0 to just below 1.
fn unit(random: &mut ChaCha12Rng) -> f64 {
    // 53 bits, as many as the fraction of an f64 has.
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Divides the positive and multiplies the negative logits of the tokens that occurred.
fn penalize(logits: &mut [f32], seen: &HashSet<u32>, penalty: f32) {
    for token in seen {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The tokens that may be chosen, in the order of the vocabulary, with their probabilities.
pub(super) fn candidates(logits: &[f32], settings: &Sampling) -> Vec<Candidate> {
    // The penalty may have left infinities.
    let highest = logits.iter().copied().fold(f32::MIN, f32::max).min(f32::MAX);
    // In these units the likeliest has 0 and none is above, so no exponential overflows.
    let scaled =
        |logit: f32| (f64::from(logit) - f64::from(highest)).min(0.0) / f64::from(settings.temperature);
    let with_token =
        |(token, logit): (usize, &f32)| Candidate { token: token as u32, weight: scaled(*logit) };
    let mut candidates: Vec<Candidate> = logits.iter().enumerate().map(with_token).collect();
    if let Some(k) = settings.top_k {
        keep_top_k(&mut candidates, k);
    }
    for candidate in &mut candidates {
        candidate.weight = candidate.weight.exp();
    }
    if let Some(p) = settings.top_p.filter(|p| *p < 1.0) {
        keep_top_p(&mut candidates, f64::from(p));
    }
    if let Some(share) = settings.min_p {
        // The likeliest has the weight 1.
        candidates.retain(|candidate| candidate.weight >= f64::from(share));
    }
    candidates.sort_unstable_by_key(|candidate| candidate.token);
    let sum: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    for candidate in &mut candidates {
        candidate.weight /= sum;
    }
    candidates
}

/// The larger first; of equals the one with the smaller number.
fn by_weight(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.weight.total_cmp(&left.weight).then(left.token.cmp(&right.token))
}

/// Drops what is below the k-th largest; what is level with it stays.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_weight);
    let least = last.weight;
    candidates.retain(|candidate| candidate.weight >= least);
}

/// Keeps the likeliest tokens up to the one with which they make up the share `p`.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64) {
    let wanted = p * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sorted = FIRST_SORTED;
    loop {
        // Most of a large vocabulary has next to no probability and need not be sorted.
        sorted = sorted.min(candidates.len());
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted, by_weight);
        }
        candidates[..sorted].sort_unstable_by(by_weight);
        let mut mass = 0.0;
        for index in 0..sorted {
            mass += candidates[index].weight;
            if mass >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        if sorted == candidates.len() {
            return;
        }
        sorted = sorted.saturating_mul(8);
    }
}

/// The candidate in whose share of the line from 0 to 1 the point lies.
fn draw(candidates: &[Candidate], point: f64) -> u32 {
    let mut end = 0.0;
    for candidate in candidates {
        end += candidate.weight;
        if point < end {
            return candidate.token;
        }
    }
    // Rounding may leave the sum a little below 1; there is at least the likeliest.
    candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map_or(0, |candidate| candidate.token)
}
