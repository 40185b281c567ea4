//! Text generation, one token at a time: chat template, sampler, detokenizer and stop conditions. The caller
//! runs the model and hands its logits to [`Generation::accept`]; the models themselves are elsewhere.

mod sampler;
mod detokenizer;
mod stop;
mod template;
mod messages;
mod gguf_tokens;

use model_actors::{Completion, FinishReason, Sampling, Usage};

use crate::error::{Error, Result};
use crate::tokens::{MAX_BYTES, Tokens};
use detokenizer::Detokenizer;
pub(crate) use gguf_tokens::{special_tokens_of, tokens_of};
pub(crate) use messages::encode as encode_messages;
use sampler::Sampler;
use stop::{StopStrings, Stopped};
pub(crate) use template::{ChatTemplate, SpecialTokens, read as read_chat_template};

/// Generation of one text. It holds no more than the text, the window of the detokenizer and one entry for
/// each token of the vocabulary that occurred.
pub(crate) struct Generation {
    sampler: Sampler,
    detokenizer: Detokenizer,
    stop: StopStrings,
    end_tokens: Vec<u32>,
    max_tokens: usize,
    text: String,
    usage: Usage,
}

/// Result of one step.
#[derive(Debug)]
pub(crate) struct GenerationStep {
    /// The sampled token; the next input of the model, unless this was the last step.
    pub(crate) token: u32,
    /// New text that can no longer change; never empty.
    pub(crate) text: Option<String>,
    /// The whole text, after the last step.
    pub(crate) finished: Option<Completion>,
}

impl Generation {
    /// Starts a text after a prompt. `max_tokens` is the number that the request asks for or that the context
    /// has room for, whichever is less; any of `end_tokens` ends the text and is no part of it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for settings that are out of range, which the capability's own check refuses first.
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

    /// Samples the next token from the model's logits, one for each token of its vocabulary, which are
    /// overwritten, and appends it to the text.
    ///
    /// # Errors
    /// [`Error::NotFiniteOutput`] if a logit is not finite. [`Error::InvalidInput`] if the tokenizer cannot write the
    /// token, or the whole text becomes longer than [`MAX_BYTES`]. Either ends the text.
    pub(crate) fn accept(&mut self, logits: &mut [f32]) -> Result<GenerationStep> {
        let token = self.sampler.sample(logits)?;
        self.usage.completion_tokens += 1;
        if self.end_tokens.contains(&token) {
            return self.end(token, None, FinishReason::Stop);
        }
        let piece = self.detokenizer.push(token)?;
        let (text, stopped) = self.append_until_stop(piece.as_deref())?;
        if stopped == Stopped::Yes {
            return Ok(self.finished(token, text, FinishReason::Stop));
        }
        if self.usage.completion_tokens >= self.max_tokens {
            return self.end(token, text, FinishReason::Length);
        }
        Ok(GenerationStep { token, text, finished: None })
    }

    /// Passes a piece of text through the stop strings to the whole text.
    fn append_until_stop(&mut self, piece: Option<&str>) -> Result<(Option<String>, Stopped)> {
        let Some(piece) = piece else { return Ok((None, Stopped::No)) };
        let (text, stopped) = self.stop.push(piece);
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
        let completion = Completion::new(std::mem::take(&mut self.text), finish_reason, self.usage);
        GenerationStep { token, text, finished: Some(completion) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};
    use tokenizers::Tokenizer;

    use super::*;

    /// Starts a text of a model with a vocabulary of two words and this decoder.
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
