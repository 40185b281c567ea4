//! Sampling of the next token: the settings of a request, and their ranges. Order and arithmetic are the models'.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Cause;
use crate::limits::{MAX_LOGIT_BIAS, MAX_LOGIT_BIASES, MAX_PENALTY};

/// Origin of the settings of sampling that a request leaves out.
///
/// ```
/// use model_actors::{Sampling, SamplingDefaults};
/// assert_eq!(Sampling::default().defaults, SamplingDefaults::None);
/// assert_eq!(Sampling::of_model().defaults, SamplingDefaults::Model);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SamplingDefaults {
    /// They have no effect: greedy decoding, unless the request has a temperature.
    #[default]
    None,
    /// They are those of the model's `generation_config.json`, as `generate` of transformers has them: `do_sample`,
    /// `temperature`, `top_k`, `top_p` and `min_p`.
    Model,
}

/// Sampling of the next token. In this order, logits are changed by `logit_bias` and the penalties, and tokens chosen by
/// temperature, top-k, top-p and min-p.
///
/// ```
/// use model_actors::Sampling;
/// assert_eq!(Sampling::default().temperature, None); // greedy
/// let creative = Sampling::default().with_temperature(0.8).with_top_p(0.95).with_seed(42);
/// assert!(creative.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Sampling {
    /// Sampling temperature; 0 selects greedy decoding, and so does none, unless `defaults` say otherwise.
    pub temperature: Option<f32>,
    /// Top-k: restricts sampling to the k most probable tokens; at least 1.
    pub top_k: Option<usize>,
    /// Top-p: restricts sampling to the most probable tokens that make up this probability; above 0, at most 1.
    pub top_p: Option<f32>,
    /// Min-p: drops tokens below this share of the most probable one's probability; from 0 to below 1.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that occurred in prompt or answer less likely; above 0. Holds for the greedy
    /// choice too. Without it, that of the model's `generation_config.json`; 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Frequency penalty, -2 to 2: is subtracted from a token's logit for each time that the token occurred in the
    /// answer. 0, the default, is none.
    pub frequency_penalty: f32,
    /// Presence penalty, -2 to 2: is subtracted from the logit of each token that occurred in the answer. 0, the
    /// default, is none.
    pub presence_penalty: f32,
    /// Is added to the logits of tokens, by their numbers in the model's vocabulary; -100 to 100, for at most 1,024
    /// tokens. Values near the ends of the range bar a token, or leave no other.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Random seed; the same seed gives the same output, alone and in a batch. Of several answers to a request, each has a
    /// seed of its own: [`Self::of_answer`].
    pub seed: Option<u64>,
    /// Origin of the settings that are left out.
    pub defaults: SamplingDefaults,
}

setters! { Sampling {
    with_temperature(temperature: impl Into<Option<f32>>) Into::into;
    with_top_k(top_k: impl Into<Option<usize>>) Into::into;
    with_top_p(top_p: impl Into<Option<f32>>) Into::into;
    with_min_p(min_p: impl Into<Option<f32>>) Into::into;
    with_repetition_penalty(repetition_penalty: impl Into<Option<f32>>) Into::into;
    with_frequency_penalty(frequency_penalty: f32);
    with_presence_penalty(presence_penalty: f32);
    with_logit_bias(logit_bias: BTreeMap<u32, f32>);
    with_seed(seed: impl Into<Option<u64>>) Into::into;
    with_defaults(defaults: SamplingDefaults);
} }

impl Sampling {
    /// The sampling that the model's own files ask for. A setting that is given in addition goes before theirs.
    ///
    /// ```
    /// use model_actors::Sampling;
    /// let warmer = Sampling::of_model().with_temperature(1.2);
    /// assert!(warmer.check().is_ok());
    /// ```
    pub fn of_model() -> Self {
        Self::default().with_defaults(SamplingDefaults::Model)
    }

    /// The sampling of one of several answers to a request, by its number: where there is a seed, that many more. So each of
    /// them can be asked for alone.
    ///
    /// ```
    /// use model_actors::Sampling;
    /// let sampling = Sampling::default().with_temperature(0.8).with_seed(40);
    /// assert_eq!(sampling.of_answer(2).seed, Some(42));
    /// ```
    #[must_use]
    pub fn of_answer(&self, answer: usize) -> Self {
        self.clone().with_seed(self.seed.map(|seed| seed.wrapping_add(answer as u64)))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// A sentence that names the first setting that is out of range.
    ///
    /// ```
    /// use model_actors::Sampling;
    /// let refused = Sampling::default().with_top_p(0.0).check().unwrap_err();
    /// assert!(refused.message().contains("top_p"));
    /// ```
    pub fn check(&self) -> Result<(), Cause> {
        let within = |name: &str, value: Option<f32>, range: &str, holds: fn(f32) -> bool| match value {
            Some(value) if !holds(value) => Err(Cause::new(format!("{name} is {value}; it must be {range}"))),
            _ => Ok(()),
        };
        within("temperature", self.temperature, "0 or above, and finite", |t| t >= 0.0 && t.is_finite())?;
        within("top_p", self.top_p, "above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
        within("min_p", self.min_p, "0 or above and below 1", |p| (0.0..1.0).contains(&p))?;
        let penalty = self.repetition_penalty;
        within("repetition_penalty", penalty, "above 0, and finite", |p| p > 0.0 && p.is_finite())?;
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            within(name, Some(penalty), "-2 to 2", |p| p.abs() <= MAX_PENALTY)?;
        }
        if self.logit_bias.len() > MAX_LOGIT_BIASES {
            let count = self.logit_bias.len();
            return Err(
                format!("logit_bias has {count} tokens; at most {MAX_LOGIT_BIASES} are allowed").into()
            );
        }
        for bias in self.logit_bias.values() {
            within("a logit_bias", Some(*bias), "-100 to 100", |bias| bias.abs() <= MAX_LOGIT_BIAS)?;
        }
        match self.top_k {
            Some(0) => Err("top_k is 0; at least 1 is needed".into()),
            _ => Ok(()),
        }
    }
}
