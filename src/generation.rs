//! From a prompt to the text that follows it, one token at a time: the chat template, the choice of a token, text out of
//! tokens, and when it is enough. Whoever runs a model asks it for logits and hands them to [`Generation::accept`];
//! what the logits come from is left to the models.

mod detokenizer;
mod gguf_tokens;
mod sampler;
mod stop;
mod template;

use model_actors::{Completion, FinishReason, Sampling, Usage};

use crate::error::Result;
use crate::tokens::Tokens;
use detokenizer::Detokenizer;
pub(crate) use gguf_tokens::{special_tokens_of, tokens_of};
use sampler::Sampler;
use stop::{StopStrings, Stopped};
pub(crate) use template::{ChatTemplate, SpecialTokens, read as read_chat_template};

/// One text on its way. It holds no more than the text, the window of the detokenizer and one mark for each token of
/// the vocabulary that occurred.
pub(crate) struct Generation {
    sampler: Sampler,
    detokenizer: Detokenizer,
    stop: StopStrings,
    end_tokens: Vec<u32>,
    max_tokens: usize,
    text: String,
    usage: Usage,
}

/// What a step made.
#[derive(Debug)]
pub(crate) struct Next {
    /// The token that was chosen; the next input of the model, unless this was the last.
    pub(crate) token: u32,
    /// The text that is certain by now and was not given out before; never empty.
    pub(crate) text: Option<String>,
    /// The whole text, if this was its last token.
    pub(crate) finished: Option<Completion>,
}

impl Generation {
    /// Begins after a prompt. `max_tokens` has to be what is asked for or what the context has room for, whichever is
    /// less; any of `end_tokens` ends the text and is no part of it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] for settings that are out of range, which a capability's own check finds before.
    pub(crate) fn new(
        tokens: &Tokens,
        sampling: &Sampling,
        stop: &[String],
        max_tokens: usize,
        prompt: &[u32],
        end_tokens: &[u32],
    ) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(sampling, prompt)?,
            detokenizer: Detokenizer::new(tokens),
            stop: StopStrings::new(stop),
            end_tokens: end_tokens.to_vec(),
            max_tokens,
            text: String::new(),
            usage: Usage { prompt_tokens: prompt.len(), completion_tokens: 0 },
        })
    }

    /// Chooses the next token by the logits that the model made for it, one for each token of its vocabulary. The
    /// logits are spoiled.
    ///
    /// # Errors
    /// [`crate::Error::NotFiniteOutput`] if a logit is not finite.
    pub(crate) fn accept(&mut self, logits: &mut [f32]) -> Result<Next> {
        let token = self.sampler.choose(logits)?;
        self.usage.completion_tokens += 1;
        if self.end_tokens.contains(&token) {
            return Ok(self.end(token, None, FinishReason::Stop));
        }
        let piece = self.detokenizer.push(token);
        let (text, stopped) = self.offer(piece.as_deref());
        if stopped == Stopped::Yes {
            return Ok(self.finished(token, text, FinishReason::Stop));
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return Ok(self.end(token, text, FinishReason::Length));
        }
        Ok(Next { token, text, finished: None })
    }

    /// Puts a piece of text past the stop strings.
    fn offer(&mut self, piece: Option<&str>) -> (Option<String>, Stopped) {
        let Some(piece) = piece else { return (None, Stopped::No) };
        let (text, stopped) = self.stop.push(piece);
        self.text.push_str(&text);
        (Some(text).filter(|text| !text.is_empty()), stopped)
    }

    /// No more tokens come: what was held back is certain now, unless a stop string turns up in it.
    fn end(&mut self, token: u32, text: Option<String>, reason: FinishReason) -> Next {
        let mut whole = text.unwrap_or_default();
        let rest = self.detokenizer.flush();
        let (text, stopped) = self.offer(rest.as_deref());
        whole.extend(text);
        let reason = match stopped {
            Stopped::Yes => FinishReason::Stop,
            Stopped::No => {
                let held = self.stop.flush();
                self.text.push_str(&held);
                whole.push_str(&held);
                reason
            }
        };
        self.finished(token, Some(whole).filter(|text| !text.is_empty()), reason)
    }

    fn finished(&mut self, token: u32, text: Option<String>, finish_reason: FinishReason) -> Next {
        let completion =
            Completion { text: std::mem::take(&mut self.text), finish_reason, usage: self.usage };
        Next { token, text, finished: Some(completion) }
    }
}
