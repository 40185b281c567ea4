//! Text generation, one token at a time: chat template, sampler, log probabilities, detokenizer and stop conditions. The
//! caller runs the model and hands its logits to [`Generation::accept`]; the models themselves are elsewhere.

mod sampler;
mod logprobs;
mod detokenizer;
mod stop;
mod grammar_text;
mod plain_arguments;
mod calls;
mod parts;
mod template;
mod messages;
mod gguf_tokens;

use model_actors::{
    Completion, DescribeImage, FinishReason, GenerateText, Sampling, TextChunk, TokenLogprobs, Tool,
    ToolCall, Usage,
};

use crate::error::{Error, Result};
use crate::structured::{Grammar, Progress};
use crate::tokens::{MAX_BYTES, Tokens};
use detokenizer::Detokenizer;
pub(crate) use gguf_tokens::{special_tokens_of, tokens_of};
pub(crate) use messages::encode as encode_messages;
pub(crate) use parts::PartMarks;
use parts::{Parts, Piece};
use sampler::Sampler;
use stop::{StopStrings, Stopped};
pub(crate) use template::{ChatTemplate, Conversation, SpecialTokens, read as read_chat_template};

/// Tokens of the end of a prompt in which a template may have begun what the model thinks.
const PROMPT_END: usize = 8;

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
    /// Those of one of several answers, by its number.
    pub(crate) fn of_answer(&self, answer: usize) -> Self {
        Self { sampling: self.sampling.of_answer(answer), ..*self }
    }

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
    /// Thoughts of the model, its words and its calls of tools.
    parts: Parts,
    /// Marks of these that are special tokens, so that the tokenizer leaves them out.
    special_marks: Vec<(u32, &'static str)>,
    /// The token with which a text may begin to think before it keeps to a constraint.
    thought: Option<u32>,
    reasoning: String,
    calls: Vec<ToolCall>,
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
            parts: Parts::default(),
            special_marks: Vec::new(),
            thought: None,
            reasoning: String::new(),
            calls: Vec::new(),
            text: String::new(),
            logprobs: Vec::new(),
            untold: 0,
            usage: Usage::new(prompt.len(), 0),
        })
    }

    /// The same text, after a prompt of which so many tokens need not be read.
    pub(crate) fn with_cached_tokens(self, cached: usize) -> Self {
        Self { usage: self.usage.with_cached_tokens(cached), ..self }
    }

    /// The same text, for a prompt of so many tokens, of which those it began with are only what counts as repeated.
    pub(crate) fn after(mut self, prompt_tokens: usize) -> Self {
        self.usage.prompt_tokens = prompt_tokens;
        self
    }

    /// The same text, which keeps to a constraint.
    pub(crate) fn keeping_to(self, grammar: Option<Grammar>) -> Self {
        Self { grammar, ..self }
    }

    /// The same text, whose parts have these marks, after a prompt. What the model thinks keeps to no constraint.
    pub(crate) fn in_parts(self, marks: PartMarks, prompt: &[u32], tools: &[Tool]) -> Self {
        let id = |mark: &'static str| Some((self.tokens.id(mark)?, mark));
        let special = marks.all().filter_map(id).filter(|(id, _)| !self.tokens.has_text(*id)).collect();
        let last = prompt.get(prompt.len().saturating_sub(PROMPT_END)..).unwrap_or_default();
        let end: Vec<u8> = last.iter().flat_map(|token| self.tokens.bytes(*token)).collect();
        let parts = Parts::new(marks, &String::from_utf8_lossy(&end)).calling(tools);
        let thought = marks.thought().and_then(|mark| self.tokens.id(mark));
        Self { parts, special_marks: special, thought, ..self }
    }

    /// True before its first token.
    pub(crate) fn is_empty(&self) -> bool {
        self.usage.completion_tokens == 0
    }

    /// Samples the next token from the model's logits, one for each token of its vocabulary, which are
    /// overwritten, and appends it to the text.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`] if a logit is not finite. [`Error::InvalidInput`] if the tokenizer cannot write the
    /// token, or the whole text becomes longer than [`MAX_BYTES`]. [`Error::ConstraintFailed`] if the text cannot go on as
    /// its constraint says. Each ends the text.
    pub(crate) fn accept(&mut self, logits: &mut [f32]) -> Result<GenerationStep> {
        let may_think = self.grammar.is_none() || self.parts.is_at_start();
        let thinks = self.parts.thinks();
        let token = self.choose(logits)?;
        self.usage.completion_tokens += 1;
        if self.end_tokens.contains(&token) {
            return self.end(token, Piece::default(), FinishReason::Stop);
        }
        let begins_to_think = may_think && Some(token) == self.thought;
        let grammar = self.grammar.as_mut().filter(|_| !thinks && !begins_to_think);
        let progress = grammar.map(|grammar| grammar.take(token)).transpose()?;
        let written = self.written(token)?;
        let (piece, stopped) = self.append_until_stop(written.as_deref())?;
        if thinks && self.grammar.is_some() && !piece.text.is_empty() {
            let reason =
                "a token holds both the end of what the model thinks and the beginning of its answer";
            let tokens = self.usage.completion_tokens;
            return Err(Error::ConstraintFailed { tokens, reason: reason.to_owned() });
        }
        if stopped == Stopped::Yes {
            let rest = self.parts.flush(FinishReason::Length)?;
            self.append(&rest)?;
            return self.finished(token, piece.and(rest), FinishReason::Stop);
        }
        if progress == Some(Progress::Complete) {
            return self.end(token, piece, FinishReason::Stop);
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return self.end(token, piece, FinishReason::Length);
        }
        Ok(GenerationStep { token, chunk: (!piece.is_empty()).then(|| self.chunk(piece)), finished: None })
    }

    /// The text that a token adds, marks of parts included.
    fn written(&mut self, token: u32) -> Result<Option<String>> {
        let Some((_, mark)) = self.special_marks.iter().find(|(special, _)| *special == token) else {
            return self.detokenizer.push(token);
        };
        let before = self.detokenizer.flush()?.unwrap_or_default();
        Ok(Some(before + mark))
    }

    /// Samples a token, and notes its log probability.
    fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        // They are changed for the choice.
        let own = self.top.map(|top| (top, logits.to_vec()));
        let bars_ends = self.usage.completion_tokens < self.min_tokens;
        let (thinks, is_kept) = (self.parts.thinks(), self.grammar.is_some());
        let grammar = self.grammar.as_mut().filter(|_| !thinks);
        let thought = self.thought.filter(|_| self.parts.is_at_start()).map(|token| token as usize);
        let ends = self.end_tokens.as_slice();
        let token = self.sampler.sample(logits, |logits| match grammar {
            Some(grammar) => {
                let before = thought.and_then(|token| Some((token, *logits.get(token)?)));
                grammar.bar(logits, ends, bars_ends)?;
                if let Some((token, logit)) = before
                    && let Some(own) = logits.get_mut(token)
                {
                    *own = logit;
                }
                Ok(())
            }
            None => {
                // An answer is still to come.
                bar(logits, if bars_ends || thinks && is_kept { ends } else { &[] });
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
    fn chunk(&mut self, piece: Piece) -> TextChunk {
        let told = self.logprobs.len().saturating_sub(std::mem::take(&mut self.untold));
        let new = self.logprobs.get(told..).unwrap_or_default().to_vec();
        let Piece { text, reasoning, calls } = piece;
        TextChunk::from(text).with_reasoning(reasoning).with_tool_calls(calls).with_logprobs(new)
    }

    /// Passes a piece of text through the stop strings to the parts of the whole.
    fn append_until_stop(&mut self, piece: Option<&str>) -> Result<(Piece, Stopped)> {
        let Some(piece) = piece else { return Ok((Piece::default(), Stopped::No)) };
        let (text, stopped) = match self.usage.completion_tokens < self.min_tokens {
            true => (piece.to_owned(), Stopped::No),
            false => self.stop.push(piece),
        };
        let piece = self.parts.push(&text)?;
        self.append(&piece)?;
        Ok((piece, stopped))
    }

    /// Appends to the whole text, up to its limit.
    fn append(&mut self, piece: &Piece) -> Result<()> {
        if self.text.len() + self.reasoning.len() + piece.text.len() + piece.reasoning.len() > MAX_BYTES {
            let reason = format!("the answer cannot be written: it becomes longer than {MAX_BYTES} bytes");
            return Err(Error::InvalidInput(reason));
        }
        self.text.push_str(&piece.text);
        self.reasoning.push_str(&piece.reasoning);
        self.calls.extend_from_slice(&piece.calls);
        Ok(())
    }

    /// Ends the text: flushes the detokenizer, the stop strings, which may yet find one, and the parts.
    fn end(&mut self, token: u32, before: Piece, reason: FinishReason) -> Result<GenerationStep> {
        let rest = self.detokenizer.flush()?;
        let (piece, stopped) = self.append_until_stop(rest.as_deref())?;
        let mut whole = before.and(piece);
        let reason = match stopped {
            Stopped::Yes => FinishReason::Stop,
            Stopped::No => {
                let held = self.stop.flush();
                let piece = self.parts.push(&held)?;
                self.append(&piece)?;
                whole = whole.and(piece);
                reason
            }
        };
        let held = self.parts.flush(if stopped == Stopped::Yes { FinishReason::Length } else { reason })?;
        self.append(&held)?;
        self.finished(token, whole.and(held), reason)
    }

    fn finished(&mut self, token: u32, piece: Piece, reason: FinishReason) -> Result<GenerationStep> {
        let chunk = (!piece.is_empty() || self.untold > 0).then(|| self.chunk(piece));
        let calls = std::mem::take(&mut self.calls);
        let reason =
            if reason == FinishReason::Stop && !calls.is_empty() { FinishReason::ToolCalls } else { reason };
        let completion = Completion::new(std::mem::take(&mut self.text), reason, self.usage)
            .with_reasoning(std::mem::take(&mut self.reasoning))
            .with_tool_calls(calls)
            .with_logprobs(std::mem::take(&mut self.logprobs));
        Ok(GenerationStep { token, chunk, finished: Some(completion) })
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
