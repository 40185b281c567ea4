//! Sampler of the next token from logits. Order and meaning of the settings are those of `generate` in
//! transformers: biases, repetition penalty over prompt and answer (Keskar et al., 2019, arXiv 1909.05858),
//! temperature, top-k (Fan et al., 2018, arXiv 1805.04833), top-p (Holtzman et al., 2019, arXiv 1904.09751)
//! and min-p (Nguyen et al., 2024, arXiv 2407.01082). The frequency and presence penalties over the answer are those of
//! OpenAI's API, which transformers lacks, and come after the repetition penalty. Each text has a random generator of its
//! own, so other texts of a batch do not change it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use model_actors::Sampling;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::error::{Error, Result};

/// Candidates that are sorted first; mostly they make up the nucleus.
const FIRST_SORTED: usize = 256;

/// Sampler of one text.
pub(super) struct Sampler {
    settings: Sampling,
    random: ChaCha12Rng,
    /// Tokens that occurred, for the repetition penalty.
    seen: HashSet<u32>,
    /// How often each token occurred in the answer, for the frequency and presence penalties.
    counts: HashMap<u32, u32>,
}

/// Token that may be sampled, with its logit or probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) weight: f64,
}

impl Sampler {
    /// Creates the sampler of a text after a prompt.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for settings that are out of range.
    pub(super) fn new(settings: &Sampling, prompt: &[u32]) -> Result<Self> {
        settings.check().map_err(Error::from)?;
        // Without a seed: the standard library's own source of keys for its hash maps.
        let seed = settings.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let seen = match settings.repetition_penalty {
            Some(_) => prompt.iter().copied().collect(),
            None => HashSet::new(),
        };
        let random = ChaCha12Rng::seed_from_u64(seed);
        Ok(Self { settings: settings.clone(), random, seen, counts: HashMap::new() })
    }

    /// Samples a token of those whose logits `bar` does not set to negative infinity. The logits are overwritten.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`] if a logit is not finite; those of `bar`.
    pub(super) fn sample(
        &mut self,
        logits: &mut [f32],
        bar: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<u32> {
        // Without a way out of the loop, which compilers then turn into wide instructions.
        if logits.is_empty() || logits.iter().fold(false, |bad, logit| bad | !logit.is_finite()) {
            return Err(Error::NotFiniteOutput);
        }
        self.penalize(logits);
        bar(logits)?;
        let token = match self.settings.temperature {
            Some(temperature) if temperature > 0.0 => {
                let candidates = candidates(logits, &self.settings, temperature);
                pick(&candidates, uniform(&mut self.random))
            }
            _ => argmax(logits),
        };
        if self.settings.repetition_penalty.is_some() {
            self.seen.insert(token);
        }
        if self.counts_tokens() {
            let count = self.counts.entry(token).or_default();
            *count = count.saturating_add(1);
        }
        Ok(token)
    }

    fn counts_tokens(&self) -> bool {
        self.settings.frequency_penalty != 0.0 || self.settings.presence_penalty != 0.0
    }

    /// Applies biases and penalties.
    fn penalize(&self, logits: &mut [f32]) {
        for (token, bias) in &self.settings.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(penalty) = self.settings.repetition_penalty {
            apply_repetition_penalty(logits, &self.seen, penalty);
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * self.settings.frequency_penalty + self.settings.presence_penalty;
            }
        }
    }
}

/// Random number from 0 to just below 1.
fn uniform(random: &mut ChaCha12Rng) -> f64 {
    // 53 bits, as many as the fraction of an f64 has.
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Divides the positive logits of the tokens that occurred by the penalty, and multiplies the negative ones.
fn apply_repetition_penalty(logits: &mut [f32], seen: &HashSet<u32>, penalty: f32) {
    for token in seen {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Index of the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> u32 {
    let larger = |x: f32, y: f32| if x > y { x } else { y };
    let (pieces, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for piece in pieces {
        lanes.iter_mut().zip(piece).for_each(|(lane, logit)| *lane = larger(*logit, *lane));
    }
    let highest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|logit| *logit == highest).unwrap_or(0) as u32
}

/// Tokens that may be sampled, in the order of the vocabulary, with their probabilities.
pub(super) fn candidates(logits: &[f32], settings: &Sampling, temperature: f32) -> Vec<Candidate> {
    // The penalty may have left infinities.
    let highest = logits.iter().copied().fold(f32::MIN, f32::max).min(f32::MAX);
    // In these units the likeliest has 0 and none is above, so no exponential overflows.
    let scaled = |logit: f32| (f64::from(logit) - f64::from(highest)).min(0.0) / f64::from(temperature);
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

/// Orders by descending weight; equals by their token.
fn by_weight(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.weight.total_cmp(&left.weight).then(left.token.cmp(&right.token))
}

/// Keeps the `k` likeliest tokens, and those that equal the last of them.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_weight);
    let least = last.weight;
    candidates.retain(|candidate| candidate.weight >= least);
}

/// Keeps the likeliest tokens up to the one with which their probabilities reach the share `p`.
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

/// Inverse of the cumulative distribution at a point from 0 to 1.
fn pick(candidates: &[Candidate], point: f64) -> u32 {
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
    use std::collections::BTreeMap;

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
        #[serde(default)]
        answer: Vec<u32>,
        probabilities: Vec<f64>,
    }

    #[derive(Deserialize, Clone)]
    struct Settings {
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        #[serde(default)]
        frequency_penalty: f32,
        #[serde(default)]
        presence_penalty: f32,
        #[serde(default)]
        logit_bias: BTreeMap<u32, f32>,
        /// Tokens that none of may be chosen, as too few were so far.
        #[serde(default)]
        barred: Vec<u32>,
    }

    impl Settings {
        fn sampling(&self, seed: u64) -> Sampling {
            let Self { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.clone();
            Sampling::default()
                .with_temperature(temperature)
                .with_top_k(top_k)
                .with_top_p(top_p)
                .with_min_p(min_p)
                .with_repetition_penalty(repetition_penalty)
                .with_frequency_penalty(self.frequency_penalty)
                .with_presence_penalty(self.presence_penalty)
                .with_logit_bias(self.logit_bias.clone())
                .with_seed(seed)
        }
    }

    /// No token is barred.
    fn all(_: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/sampling.json");
        serde_json::from_slice::<File>(&std::fs::read(path).unwrap()).unwrap().cases
    }

    #[test]
    fn candidates_are_those_of_the_reference() {
        let mut largest = 0f64;
        for (index, case) in cases().iter().enumerate() {
            let mut logits = case.logits.clone();
            let sampling = case.settings.sampling(0);
            let mut sampler = Sampler::new(&sampling, &case.prompt).unwrap();
            for token in &case.answer {
                // Nothing else is left.
                let only = |logits: &mut [f32]| {
                    (0..).zip(logits).filter(|(id, _)| id != token).for_each(|(_, x)| *x = f32::NEG_INFINITY);
                    Ok(())
                };
                assert_eq!(sampler.sample(&mut logits.clone(), only).unwrap(), *token);
            }
            sampler.penalize(&mut logits);
            case.settings.barred.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
            let mut found = vec![0.0; logits.len()];
            for candidate in candidates(&logits, &sampling, case.settings.temperature) {
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
    fn tokens_are_sampled_by_their_probabilities_and_repeatably_by_seed() {
        const DRAWS: usize = 4000;
        let case = &cases()[24];
        assert!(case.settings.top_p.is_some() && case.settings.min_p.is_some());
        let run = |seed| {
            let mut sampler = Sampler::new(&case.settings.sampling(seed), &[]).unwrap();
            let mut choices = Vec::new();
            for _ in 0..DRAWS {
                choices.push(sampler.sample(&mut case.logits.clone(), all).unwrap());
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
    fn greedy_takes_the_first_largest_logit_after_the_penalty() {
        let mut plain = Sampler::new(&Sampling::default(), &[1]).unwrap();
        assert_eq!(plain.sample(&mut [0.5, 2.0, 2.0, -1.0], all).unwrap(), 1);
        let sampling = Sampling::default().with_repetition_penalty(2.0);
        let mut penalized = Sampler::new(&sampling, &[1]).unwrap();
        assert_eq!(penalized.sample(&mut [0.5, 2.0, 2.0, -1.0], all).unwrap(), 2);
        assert_eq!(penalized.sample(&mut [1.5, 2.0, 2.0, -1.0], all).unwrap(), 0, "its own tokens count too");
    }

    #[test]
    fn top_p_of_a_large_vocabulary_is_that_of_a_full_sort() {
        let logits: Vec<f32> =
            (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 18) as f32 / 9000.0).collect();
        let sampling = Sampling::default().with_temperature(1.0).with_top_p(0.6);
        let cut = candidates(&logits, &sampling, 1.0);
        let mut sorted = candidates(&logits, &sampling.with_top_p(None), 1.0);
        sorted.sort_by(by_weight);
        let mut mass = 0.0;
        let kept: HashSet<u32> =
            sorted.iter().take_while(|one| (mass, mass += one.weight).0 < 0.6).map(|one| one.token).collect();
        assert!(kept.len() > FIRST_SORTED * 8, "{}", kept.len());
        assert_eq!(cut.iter().map(|one| one.token).collect::<HashSet<u32>>(), kept);
        assert!(cut.is_sorted_by_key(|one| one.token));
    }

    #[test]
    fn logits_that_are_not_finite_are_refused_and_extreme_settings_work() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(&Sampling::default(), &[]).unwrap();
            assert!(matches!(sampler.sample(&mut [0.0, bad], all), Err(Error::NotFiniteOutput)));
        }
        assert!(Sampler::new(&Sampling::default(), &[]).unwrap().sample(&mut [], all).is_err());
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
                let token = sampler.sample(&mut [f32::MAX, f32::MIN, -1.0, 1.0], all).unwrap();
                assert!(token < 4);
            }
        }
        let refused = Sampling::default().with_temperature(-1.0);
        assert!(matches!(Sampler::new(&refused, &[]), Err(Error::InvalidInput(_))));
    }
}
