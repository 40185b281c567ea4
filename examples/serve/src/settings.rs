//! The fields that chats and completions have in common: sampling, ends, and the form of the answer.

use std::collections::BTreeMap;

use candle_actors::Sampling;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Fields of the sampling, which the library's refusals name.
const FIELDS: [&str; 8] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
];
/// Maximum number of answers to one request.
pub(crate) const MAX_CHOICES: usize = 16;

/// The settings of a request to write text.
pub(crate) struct Settings {
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) min_tokens: usize,
    /// Log probabilities of each token, and of so many others in its place.
    pub(crate) logprobs: Option<usize>,
    /// Number of answers to each prompt.
    pub(crate) choices: usize,
    pub(crate) form: Form,
}

/// The form of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Streamed,
    /// With an event for the usage at its end.
    StreamedWithUsage,
}

/// One string, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or an array of strings")]
pub(crate) enum Strings {
    One(String),
    Several(Vec<String>),
}

impl Strings {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        }
    }
}

impl Settings {
    /// # Errors
    /// For a field of another type or value.
    pub(crate) fn of(fields: &mut Fields) -> Result<Self, ApiError> {
        let sampling = Sampling::default()
            // OpenAI's default; the library's own is greedy.
            .with_temperature(fields.optional::<f32>("temperature")?.unwrap_or(1.0))
            .with_top_p(fields.optional::<f32>("top_p")?)
            .with_top_k(fields.optional::<usize>("top_k")?)
            .with_min_p(fields.optional::<f32>("min_p")?)
            .with_repetition_penalty(fields.optional::<f32>("repetition_penalty")?)
            .with_frequency_penalty(fields.optional::<f32>("frequency_penalty")?.unwrap_or_default())
            .with_presence_penalty(fields.optional::<f32>("presence_penalty")?.unwrap_or_default())
            .with_logit_bias(fields.optional::<BTreeMap<u32, f32>>("logit_bias")?.unwrap_or_default())
            .with_seed(fields.optional::<i64>("seed")?.map(i64::cast_unsigned));
        sampling.check().map_err(|cause| {
            let named = FIELDS.iter().find(|name| cause.message().contains(**name));
            ApiError::field(named.unwrap_or(&""), cause.message())
        })?;
        fields.without_effect(&["user", "safety_identifier", "prompt_cache_key"]);
        let choices = fields.optional("n")?.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(ApiError::field("n", format!("n is {choices}; 1 to {MAX_CHOICES} are allowed")));
        }
        let stop = fields.optional::<Strings>("stop")?.map(Strings::into_vec).unwrap_or_default();
        let stop_tokens = fields.optional("stop_token_ids")?.unwrap_or_default();
        let min_tokens = fields.optional("min_tokens")?.unwrap_or(0);
        Ok(Self { sampling, stop, stop_tokens, min_tokens, logprobs: None, choices, form: form(fields)? })
    }
}

fn form(fields: &mut Fields) -> Result<Form, ApiError> {
    let streamed = fields.optional("stream")?.unwrap_or(false);
    let options = fields.optional::<Value>("stream_options")?;
    match (streamed, options) {
        (false, None) => Ok(Form::Whole),
        (false, Some(_)) => {
            Err(ApiError::field("stream_options", "stream_options is for streams alone; set stream to true"))
        }
        (true, None) => Ok(Form::Streamed),
        (true, Some(options)) => {
            let mut options = Fields::of(options, "stream_options")?;
            let usage = options.optional("include_usage")?.unwrap_or(false);
            options.only("include_obfuscation", [json!(false)])?;
            options.end()?;
            Ok(if usage { Form::StreamedWithUsage } else { Form::Streamed })
        }
    }
}
