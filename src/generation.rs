//! From a prompt to the text that follows it, one token at a time: the chat template, the choice of a token, text out of
//! tokens, and when it is enough. Whoever runs a model asks it for logits and hands them to [`Generation::accept`];
//! what the logits come from is left to the models.

mod detokenizer;
mod sampler;
mod stop;
mod template;
mod gguf_tokens;

use model_actors::{Completion, FinishReason, Sampling, Usage};

use crate::error::{Error, Result};
use crate::tokens::{MAX_BYTES, Tokens};
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
    /// [`Error::InvalidInput`] for settings that are out of range, which a capability's own check finds before.
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
            usage: Usage::new(prompt.len(), 0),
        })
    }

    /// Chooses the next token by the logits that the model made for it, one for each token of its vocabulary. The
    /// logits are spoiled.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`] if a logit is not finite. [`Error::InvalidInput`] if the tokenizer cannot write the
    /// token, or the whole text becomes longer than [`MAX_BYTES`]. Either ends the text.
    pub(crate) fn accept(&mut self, logits: &mut [f32]) -> Result<Next> {
        let token = self.sampler.choose(logits)?;
        self.usage.completion_tokens += 1;
        if self.end_tokens.contains(&token) {
            return self.end(token, None, FinishReason::Stop);
        }
        let piece = self.detokenizer.push(token)?;
        let (text, stopped) = self.offer(piece.as_deref())?;
        if stopped == Stopped::Yes {
            return Ok(self.finished(token, text, FinishReason::Stop));
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return self.end(token, text, FinishReason::Length);
        }
        Ok(Next { token, text, finished: None })
    }

    /// Puts a piece of text past the stop strings.
    fn offer(&mut self, piece: Option<&str>) -> Result<(Option<String>, Stopped)> {
        let Some(piece) = piece else { return Ok((None, Stopped::No)) };
        let (text, stopped) = self.stop.push(piece);
        self.keep(&text)?;
        Ok((Some(text).filter(|text| !text.is_empty()), stopped))
    }

    /// Adds to the whole text, as long as that is not too long.
    fn keep(&mut self, text: &str) -> Result<()> {
        if self.text.len() + text.len() > MAX_BYTES {
            let reason = format!("the answer cannot be written: it becomes longer than {MAX_BYTES} bytes");
            return Err(Error::InvalidInput(reason));
        }
        self.text.push_str(text);
        Ok(())
    }

    /// No more tokens come: what was held back is certain now, unless a stop string turns up in it.
    fn end(&mut self, token: u32, text: Option<String>, reason: FinishReason) -> Result<Next> {
        let mut whole = text.unwrap_or_default();
        let rest = self.detokenizer.flush()?;
        let (text, stopped) = self.offer(rest.as_deref())?;
        whole.extend(text);
        let reason = match stopped {
            Stopped::Yes => FinishReason::Stop,
            Stopped::No => {
                let held = self.stop.flush();
                self.keep(&held)?;
                whole.push_str(&held);
                reason
            }
        };
        Ok(self.finished(token, Some(whole).filter(|text| !text.is_empty()), reason))
    }

    fn finished(&mut self, token: u32, text: Option<String>, finish_reason: FinishReason) -> Next {
        let completion = Completion::new(std::mem::take(&mut self.text), finish_reason, self.usage);
        Next { token, text, finished: Some(completion) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};
    use tokenizers::Tokenizer;

    use super::*;

    /// A text of a model with these two words and this decoder.
    fn text_of(words: [&str; 2], decoder: &Value, end_tokens: &[u32]) -> Generation {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": {words[0]: 0, words[1]: 1}, "unk_token": words[0]},
        });
        let tokenizer = Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap();
        let tokens = Tokens::whole(tokenizer).unwrap();
        let greedy = Sampling::default().with_temperature(0.0);
        Generation::new(&tokens, &greedy, &[], 1 << 20, &[], end_tokens).unwrap()
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn a_text_that_becomes_too_long_ends_with_an_error() {
        // 256 KiB a token.
        let decoder = replace(&"b".repeat(1 << 10), &"c".repeat(16 << 10));
        let mut text = text_of(["a", &"b".repeat(16 << 10)], &decoder, &[]);
        let mut bytes = 0;
        let error = loop {
            match text.accept(&mut [0.0, 1.0]) {
                Ok(next) => bytes += next.text.map_or(0, |piece| piece.len()),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("16777216")), "{error}");
        assert_eq!(bytes, MAX_BYTES);
    }

    #[test]
    fn tokens_that_cannot_be_written_end_a_text_with_an_error() {
        // A run of bytes is written at its end, and so many are too much by then.
        let sixteen = replace("a", &"a".repeat(16));
        let decoder = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, sixteen]});
        for end_tokens in [Vec::new(), vec![0]] {
            let mut text = text_of(["a", "<0x61>"], &decoder, &end_tokens);
            for _ in 0..150_000 {
                assert_eq!(text.accept(&mut [0.0, 1.0]).unwrap().text, None);
            }
            let error = text.accept(&mut [1.0, 0.0]).unwrap_err();
            assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("tokenizer")), "{error}");
        }
        // It panics on a token of fewer signs than it strips.
        let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 2});
        let error = text_of(["a", " "], &strip, &[]).accept(&mut [0.0, 1.0]).unwrap_err();
        assert!(matches!(&error, Error::InvalidInput(reason) if reason.contains("tokenizer")), "{error}");
    }
}
