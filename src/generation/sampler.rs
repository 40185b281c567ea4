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
        settings.check().map_err(|cause| Error::InvalidInput(cause.to_string()))?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        settings: Settings,
        logits: Vec<f32>,
        prompt: Vec<u32>,
        probabilities: Vec<f64>,
    }

    #[derive(Deserialize, Clone)]
    struct Settings {
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
    }

    impl Settings {
        fn sampling(&self, seed: u64) -> Sampling {
            let Self { temperature, top_k, top_p, min_p, repetition_penalty } = self.clone();
            Sampling::default()
                .with_temperature(temperature)
                .with_top_k(top_k)
                .with_top_p(top_p)
                .with_min_p(min_p)
                .with_repetition_penalty(repetition_penalty)
                .with_seed(seed)
        }
    }

    fn cases() -> Vec<Case> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/sampling.json");
        serde_json::from_slice::<File>(&std::fs::read(path).unwrap()).unwrap().cases
    }

    #[test]
    fn what_may_be_chosen_is_what_transformers_leaves() {
        let mut largest = 0f64;
        for (index, case) in cases().iter().enumerate() {
            let mut logits = case.logits.clone();
            if let Some(penalty) = case.settings.repetition_penalty {
                penalize(&mut logits, &case.prompt.iter().copied().collect(), penalty);
            }
            let mut found = vec![0.0; logits.len()];
            for candidate in candidates(&logits, &case.settings.sampling(0)) {
                found[candidate.token as usize] = candidate.weight;
            }
            for (token, (found, expected)) in found.iter().zip(&case.probabilities).enumerate() {
                assert_eq!(*found > 0.0, *expected > 0.0, "case {index}, token {token}");
                largest = largest.max((found - expected).abs());
            }
        }
        println!("probabilities, largest difference {largest:.2e}");
        assert!(largest < 1e-6, "{largest}");
    }

    #[test]
    fn choices_come_as_often_as_their_probabilities_say_and_by_seed_again() {
        const DRAWS: usize = 4000;
        let case = &cases()[24];
        assert!(case.settings.top_p.is_some() && case.settings.min_p.is_some());
        let run = |seed| {
            let mut sampler = Sampler::new(&case.settings.sampling(seed), &[]).unwrap();
            let mut choices = Vec::new();
            for _ in 0..DRAWS {
                choices.push(sampler.choose(&mut case.logits.clone()).unwrap());
            }
            choices
        };
        let choices = run(7);
        for (token, probability) in case.probabilities.iter().enumerate() {
            let share =
                choices.iter().filter(|choice| **choice as usize == token).count() as f64 / DRAWS as f64;
            // More than five standard deviations.
            assert!((share - probability).abs() < 0.04, "{token}: {share} for {probability}");
            assert!(share == 0.0 || *probability > 0.0);
        }
        assert_eq!(choices, run(7));
        assert_ne!(choices, run(8));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_after_the_penalty() {
        let mut plain = Sampler::new(&Sampling::default(), &[1]).unwrap();
        assert_eq!(plain.choose(&mut [0.5, 2.0, 2.0, -1.0]).unwrap(), 1);
        let sampling = Sampling::default().with_repetition_penalty(2.0);
        let mut penalized = Sampler::new(&sampling, &[1]).unwrap();
        assert_eq!(penalized.choose(&mut [0.5, 2.0, 2.0, -1.0]).unwrap(), 2);
        assert_eq!(penalized.choose(&mut [1.5, 2.0, 2.0, -1.0]).unwrap(), 0, "its own tokens count too");
    }

    #[test]
    fn a_large_vocabulary_is_cut_as_if_it_were_sorted_whole() {
        let logits: Vec<f32> =
            (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 18) as f32 / 9000.0).collect();
        let sampling = Sampling::default().with_temperature(1.0).with_top_p(0.6);
        let cut = candidates(&logits, &sampling);
        let mut sorted = candidates(&logits, &sampling.with_top_p(None));
        sorted.sort_by(by_weight);
        let mut mass = 0.0;
        let kept: HashSet<u32> =
            sorted.iter().take_while(|one| (mass, mass += one.weight).0 < 0.6).map(|one| one.token).collect();
        assert!(kept.len() > FIRST_SORTED * 8, "{}", kept.len());
        assert_eq!(cut.iter().map(|one| one.token).collect::<HashSet<u32>>(), kept);
        assert!(cut.is_sorted_by_key(|one| one.token));
    }

    #[test]
    fn numbers_that_are_not_finite_are_an_error_and_extreme_settings_are_none() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(&Sampling::default(), &[]).unwrap();
            assert!(matches!(sampler.choose(&mut [0.0, bad]), Err(Error::NotFiniteOutput)));
        }
        assert!(Sampler::new(&Sampling::default(), &[]).unwrap().choose(&mut []).is_err());
        for temperature in [f32::MIN_POSITIVE, f32::MAX] {
            for penalty in [f32::MIN_POSITIVE, f32::MAX] {
                let sampling = Sampling::default()
                    .with_temperature(temperature)
                    .with_top_k(usize::MAX)
                    .with_top_p(f32::MIN_POSITIVE)
                    .with_min_p(0.0)
                    .with_repetition_penalty(penalty)
                    .with_seed(0);
                let mut sampler = Sampler::new(&sampling, &[0, 1, 2, u32::MAX]).unwrap();
                let token = sampler.choose(&mut [f32::MAX, f32::MIN, -1.0, 1.0]).unwrap();
                assert!(token < 4);
            }
        }
        let refused = Sampling::default().with_temperature(-1.0);
        assert!(matches!(Sampler::new(&refused, &[]), Err(Error::InvalidInput(_))));
    }
}
