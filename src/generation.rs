//! Text generation, one token at a time: chat template, sampler, log probabilities, detokenizer and stop conditions. The
//! caller runs the model and hands its logits to [`Generation::accept`]; the models themselves are elsewhere.

mod sampler;
mod logprobs;
mod detokenizer;
mod stop;
mod template;
mod messages;
mod gguf_tokens;

use model_actors::{
    Completion, DescribeImage, FinishReason, GenerateText, Sampling, TextChunk, TokenLogprobs, Usage,
};

use crate::error::{Error, Result};
use crate::structured::{Grammar, Progress};
use crate::tokens::{MAX_BYTES, Tokens};
use detokenizer::Detokenizer;
pub(crate) use gguf_tokens::{special_tokens_of, tokens_of};
pub(crate) use messages::encode as encode_messages;
use sampler::Sampler;
use stop::{StopStrings, Stopped};
pub(crate) use template::{ChatTemplate, SpecialTokens, read as read_chat_template};

/// The part of a request that says how its text is written.
#[derive(Debug, Default)]
pub(crate) struct TextSettings<'a> {
    pub(crate) sampling: Sampling,
    pub(crate) stop: &'a [String],
    pub(crate) stop_tokens: &'a [u32],
    pub(crate) min_tokens: usize,
    /// The number that the request asks for or that the context has room for, whichever is less.
    pub(crate) max_tokens: usize,
    pub(crate) logprobs: Option<usize>,
}

/// The settings of a request of either kind, which have the same fields.
macro_rules! settings_of {
    ($request:ident) => {
        TextSettings {
            sampling: $request.sampling.clone(),
            stop: &$request.stop,
            stop_tokens: &$request.stop_tokens,
            min_tokens: $request.min_tokens,
            max_tokens: $request.max_tokens,
            logprobs: $request.logprobs,
        }
    };
}

impl<'a> TextSettings<'a> {
    /// Those of a request, for a model with so many rows.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for tokens that the model lacks.
    pub(crate) fn of(request: &'a GenerateText, vocabulary: usize) -> Result<Self> {
        settings_of!(request).of_known_tokens(vocabulary)
    }

    /// Those of a request about an image.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) fn of_question(request: &'a DescribeImage, vocabulary: usize) -> Result<Self> {
        settings_of!(request).of_known_tokens(vocabulary)
    }

    fn of_known_tokens(self, vocabulary: usize) -> Result<Self> {
        let is_unknown = |token: &&u32| usize::try_from(**token).is_ok_and(|token| token >= vocabulary);
        let named = [
            ("stop_tokens", self.stop_tokens.iter().find(is_unknown).copied()),
            ("logit_bias", self.sampling.logit_bias.keys().find(is_unknown).copied()),
        ];
        match named.into_iter().find_map(|(setting, token)| Some((setting, token?))) {
            None => Ok(self),
            Some((setting, token)) => Err(Error::InvalidInput(format!(
                "{setting} has the token {token}; the model's are those below {vocabulary}"
            ))),
        }
    }
}

/// Generation of one text. It holds no more than the text, the log probabilities that are asked for, the window of the
/// detokenizer and one entry for each token of the vocabulary that occurred.
pub(crate) struct Generation {
    tokens: Tokens,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stop: StopStrings,
    /// Those of the model, and those of the request.
    end_tokens: Vec<u32>,
    min_tokens: usize,
    max_tokens: usize,
    /// Number of the most probable tokens that are told with each.
    top: Option<usize>,
    /// The constraint that the text keeps to.
    grammar: Option<Grammar>,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    /// Log probabilities that no chunk had yet; the last ones.
    untold: usize,
    usage: Usage,
}

/// Result of one step.
#[derive(Debug)]
pub(crate) struct GenerationStep {
    /// The sampled token; the next input of the model, unless this was the last step.
    pub(crate) token: u32,
    /// New text that can no longer change, with log probabilities; never without either.
    pub(crate) chunk: Option<TextChunk>,
    /// The whole text, after the last step.
    pub(crate) finished: Option<Completion>,
}

impl Generation {
    /// Starts a text after a prompt. Any of the model's `end_tokens` ends the text and is no part of it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for settings that are out of range, which the capability's own check refuses first.
    pub(crate) fn new(
        tokens: &Tokens,
        settings: &TextSettings<'_>,
        prompt: &[u32],
        end_tokens: &[u32],
    ) -> Result<Self> {
        Ok(Self {
            tokens: tokens.clone(),
            sampler: Sampler::new(&settings.sampling, prompt)?,
            detokenizer: Detokenizer::new(tokens),
            stop: StopStrings::new(settings.stop),
            end_tokens: end_tokens.iter().chain(settings.stop_tokens).copied().collect(),
            min_tokens: settings.min_tokens,
            max_tokens: settings.max_tokens,
            top: settings.logprobs,
            grammar: None,
            text: String::new(),
            logprobs: Vec::new(),
            untold: 0,
            usage: Usage::new(prompt.len(), 0),
        })
    }

    /// The same text, which keeps to a constraint.
    pub(crate) fn keeping_to(self, grammar: Option<Grammar>) -> Self {
        Self { grammar, ..self }
    }

    /// Samples the next token from the model's logits, one for each token of its vocabulary, which are
    /// overwritten, and appends it to the text.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`] if a logit is not finite. [`Error::InvalidInput`] if the tokenizer cannot write the
    /// token, or the whole text becomes longer than [`MAX_BYTES`]. [`Error::ConstraintFailed`] if the text cannot go on as
    /// its constraint says. Each ends the text.
    pub(crate) fn accept(&mut self, logits: &mut [f32]) -> Result<GenerationStep> {
        let token = self.choose(logits)?;
        self.usage.completion_tokens += 1;
        if self.end_tokens.contains(&token) {
            return self.end(token, None, FinishReason::Stop);
        }
        let progress = self.grammar.as_mut().map(|grammar| grammar.take(token)).transpose()?;
        let piece = self.detokenizer.push(token)?;
        let (text, stopped) = self.append_until_stop(piece.as_deref())?;
        if stopped == Stopped::Yes {
            return Ok(self.finished(token, text, FinishReason::Stop));
        }
        if progress == Some(Progress::Complete) {
            return self.end(token, text, FinishReason::Stop);
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return self.end(token, text, FinishReason::Length);
        }
        Ok(GenerationStep { token, chunk: text.map(|text| self.chunk(text)), finished: None })
    }

    /// Samples a token, and notes its log probability.
    fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        // They are changed for the choice.
        let own = self.top.map(|top| (top, logits.to_vec()));
        let bars_ends = self.usage.completion_tokens < self.min_tokens;
        let (grammar, ends) = (&mut self.grammar, self.end_tokens.as_slice());
        let token = self.sampler.sample(logits, |logits| match grammar {
            Some(grammar) => grammar.bar(logits, ends, bars_ends),
            None => {
                bar(logits, if bars_ends { ends } else { &[] });
                Ok(())
            }
        })?;
        if let Some((top, own)) = own {
            self.logprobs.push(logprobs::of(&self.tokens, &own, token, top));
            self.untold += 1;
        }
        Ok(token)
    }

    /// New text, with the log probabilities that were not told before.
    fn chunk(&mut self, text: String) -> TextChunk {
        let told = self.logprobs.len().saturating_sub(std::mem::take(&mut self.untold));
        let new = self.logprobs.get(told..).unwrap_or_default().to_vec();
        TextChunk::from(text).with_logprobs(new)
    }

    /// Passes a piece of text through the stop strings to the whole text.
    fn append_until_stop(&mut self, piece: Option<&str>) -> Result<(Option<String>, Stopped)> {
        let Some(piece) = piece else { return Ok((None, Stopped::No)) };
        let (text, stopped) = match self.usage.completion_tokens < self.min_tokens {
            true => (piece.to_owned(), Stopped::No),
            false => self.stop.push(piece),
        };
        self.append(&text)?;
        Ok((Some(text).filter(|text| !text.is_empty()), stopped))
    }

    /// Appends to the whole text, up to its limit.
    fn append(&mut self, text: &str) -> Result<()> {
        if self.text.len() + text.len() > MAX_BYTES {
            let reason = format!("the answer cannot be written: it becomes longer than {MAX_BYTES} bytes");
            return Err(Error::InvalidInput(reason));
        }
        self.text.push_str(text);
        Ok(())
    }

    /// Ends the text: flushes the detokenizer and the stop strings, which may yet find one.
    fn end(&mut self, token: u32, text: Option<String>, reason: FinishReason) -> Result<GenerationStep> {
        let mut whole = text.unwrap_or_default();
        let rest = self.detokenizer.flush()?;
        let (text, stopped) = self.append_until_stop(rest.as_deref())?;
        whole.extend(text);
        let reason = match stopped {
            Stopped::Yes => FinishReason::Stop,
            Stopped::No => {
                let held = self.stop.flush();
                self.append(&held)?;
                whole.push_str(&held);
                reason
            }
        };
        Ok(self.finished(token, Some(whole).filter(|text| !text.is_empty()), reason))
    }

    fn finished(&mut self, token: u32, text: Option<String>, finish_reason: FinishReason) -> GenerationStep {
        let chunk = (text.is_some() || self.untold > 0).then(|| self.chunk(text.unwrap_or_default()));
        let completion = Completion::new(std::mem::take(&mut self.text), finish_reason, self.usage)
            .with_logprobs(std::mem::take(&mut self.logprobs));
        GenerationStep { token, chunk, finished: Some(completion) }
    }
}

/// Leaves none of these tokens to be chosen.
fn bar(logits: &mut [f32], tokens: &[u32]) {
    for token in tokens {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests;
