//! Bounds on the output of a tokenizer. A `tokenizer.json` is untrusted: its normalizer can expand each letter to a
//! megabyte, its template repeat the text or a special token a thousand times, its decoder write a megabyte for each
//! token. The worst-case growth of each step is computed when the file is read (`parts`), and steps that exceed what
//! published models need are refused. Where the worst case would be too long for a certain text, the normalizer runs
//! step by step, and stops before a step whose worst case exceeds the limit. A panic in a tokenizer becomes an error.

mod parts;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use tokenizers::{
    Encoding, Model as _, NormalizedString, Normalizer, NormalizerWrapper, OffsetType, PreTokenizer as _,
    Tokenizer,
};

use super::Specials;
use crate::source::{Entries, Values};

/// Most bytes of a normalized text, and of the decoded tokens of a whole answer: four times the longest prompt.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Maximum number of bytes of what is made at once where a text is tried in pieces.
const PIECE: usize = 4 << 20;
/// Maximum number of values in a tokenizer's file; that of Gemma 3 has 2.1 million.
const MAX_VALUES: usize = 4 << 20;
/// Most values in its normalizer, its split, its decoder or its post-processor; published ones have some hundreds.
const MAX_PART: usize = 4096;
/// Most regular expressions in one of these; published ones have up to 5.
const MAX_PATTERNS: usize = 32;
/// Maximum number of tokens of a vocabulary; XLM-V has 901,629.
pub(crate) const MAX_TOKENS: usize = 1 << 20;
/// Maximum number of merges, each of which is three values of a file.
pub(crate) const MAX_MERGES: usize = MAX_VALUES / 3;
/// Most added tokens; Gemma 3 has 6,415.
pub(crate) const MAX_ADDED_TOKENS: usize = 1 << 16;
/// Maximum number of bytes of a token. Those of the fixtures have up to 3,072.
const MAX_TOKEN: usize = 16 << 10;

/// Refuses a file that would take more memory than any tokenizer needs, of which nothing is kept for that.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn check_size(file: &[u8]) -> Result<(), String> {
    type Part = Values<MAX_PART, MAX_PATTERNS>;
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Parts {
        #[serde(rename = "normalizer")]
        _normalizer: Part,
        #[serde(rename = "pre_tokenizer")]
        _split: Part,
        #[serde(rename = "post_processor")]
        _processor: Part,
        #[serde(rename = "decoder")]
        _decoder: Part,
        #[serde(rename = "added_tokens")]
        _added: Entries<MAX_ADDED_TOKENS>,
        #[serde(rename = "model")]
        _model: Model,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Model {
        #[serde(rename = "vocab")]
        _vocabulary: Entries<MAX_TOKENS>,
    }
    let words = |error: serde_json::Error| error.to_string();
    serde_json::from_slice::<Values<MAX_VALUES>>(file).map_err(words)?;
    serde_json::from_slice::<Parts>(file).map(drop).map_err(words)
}

/// Refuses a file whose added tokens would become too long: its normalizer runs over them while it is read.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn check_added(file: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Parts {
        normalizer: Option<NormalizerWrapper>,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        content: String,
    }
    let read: Parts = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    check_growth(read.normalizer.as_ref(), read.added_tokens.iter().map(|token| token.content.len()).sum())
}

/// Refuses added tokens of so many bytes together that would become too long.
///
/// # Errors
/// A sentence that names the fault.
pub(super) fn check_growth(normalizer: Option<&NormalizerWrapper>, bytes: usize) -> Result<(), String> {
    let factors = parts::normalizer(normalizer)?;
    let most = factors.iter().copied().fold(bytes, usize::saturating_mul);
    if most > MAX_BYTES {
        return Err(format!("its added tokens can become {most} bytes; at most {MAX_BYTES} are allowed"));
    }
    Ok(())
}

/// Worst-case growth of a text in a tokenizer, in bytes for each byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputBounds {
    /// Each step of its normalizer.
    normalizer: Vec<usize>,
    split: usize,
    decoder: usize,
    /// Bytes of its longest token.
    token: usize,
}

impl OutputBounds {
    /// # Errors
    /// A sentence that names the part that is refused.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        Self::with_vocabulary(tokenizer, &tokenizer.get_vocab(true))
    }

    /// The same for a tokenizer whose tokens, the added ones included, are known: the crate gives copies of them alone.
    pub(super) fn with_vocabulary(
        tokenizer: &Tokenizer,
        vocabulary: &HashMap<String, u32>,
    ) -> Result<Self, String> {
        if let Some(processor) = tokenizer.get_post_processor() {
            parts::check_post_processor(processor)?;
        }
        let token = vocabulary.keys().map(String::len).max().unwrap_or(0);
        if token > MAX_TOKEN {
            return Err(format!("it has a token of {token} bytes; at most {MAX_TOKEN} are allowed"));
        }
        Ok(Self {
            normalizer: parts::normalizer(tokenizer.get_normalizer())?,
            split: parts::split(tokenizer.get_pre_tokenizer())?,
            decoder: parts::decoder(tokenizer.get_decoder())?,
            token,
        })
    }

    /// Encodes a text.
    ///
    /// # Errors
    /// A sentence, if it becomes too long or the tokenizer fails.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        specials: Specials,
    ) -> Result<Vec<u32>, String> {
        Ok(self.encoding(tokenizer, text, specials)?.get_ids().to_vec())
    }

    /// The same with what the tokenizer has cut off.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn encoding(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        specials: Specials,
    ) -> Result<Encoding, String> {
        guarded(|| {
            self.check(tokenizer, text)?;
            tokenizer.encode_fast(text, specials == Specials::Added).map_err(|error| error.to_string())
        })
    }

    /// The tokens of a text before any are cut off or put around it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn bare(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
        let words = |error: tokenizers::Error| error.to_string();
        guarded(|| {
            self.check(tokenizer, text)?;
            let added = tokenizer.get_added_vocabulary();
            let mut pieces = added.extract_and_normalize(tokenizer.get_normalizer(), text);
            if let Some(split) = tokenizer.get_pre_tokenizer() {
                split.pre_tokenize(&mut pieces).map_err(words)?;
            }
            pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get())).map_err(words)?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(words)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Decodes tokens to text, without the special ones.
    ///
    /// # Errors
    /// A sentence, if it becomes too long or the tokenizer fails.
    pub(super) fn decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, String> {
        guarded(|| {
            if !self.can_decode(tokenizer, ids) {
                let tokens = ids.len();
                return Err(format!("it could make more than {MAX_BYTES} bytes of {tokens} tokens"));
            }
            tokenizer.decode(ids, true).map_err(|error| error.to_string())
        })
    }

    /// # Errors
    /// A sentence with the number, if a text becomes too long.
    pub(crate) fn check(&self, tokenizer: &Tokenizer, text: &str) -> Result<(), String> {
        let fits = |normalized: usize| normalized.saturating_mul(self.split) <= MAX_BYTES;
        if fits(self.normalizer.iter().copied().fold(text.len(), usize::saturating_mul)) {
            return Ok(());
        }
        let trial = self.trial(tokenizer);
        tokenizer.get_added_vocabulary().extract_and_normalize(Some(&trial), text);
        match fits(trial.bytes.into_inner()) {
            true => Ok(()),
            false => {
                Err(format!("the tokenizer could make more than {MAX_BYTES} bytes of its {}", text.len()))
            }
        }
    }

    fn trial<'a>(&self, tokenizer: &'a Tokenizer) -> Trial<'a> {
        let steps = tokenizer.get_normalizer().map(parts::steps).unwrap_or_default();
        let steps = steps.into_iter().zip(self.normalizer.iter().copied()).collect();
        Trial { steps, bytes: AtomicUsize::new(0) }
    }

    /// Checks that the text of tokens stays short enough to be written.
    fn can_decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> bool {
        let fits = |bytes: usize| bytes.saturating_mul(self.decoder) <= MAX_BYTES;
        // One more for each: without a decoder, spaces stand between them.
        let length = |id: &u32| 1 + tokenizer.id_to_token(*id).map_or(0, |token| token.len());
        fits(ids.len().saturating_mul(self.token + 1)) || fits(ids.iter().map(length).sum())
    }
}

/// Normalizes the parts of a text as its tokenizer will, up to the step that could make too much of one.
struct Trial<'a> {
    /// With what each makes of a byte at worst.
    steps: Vec<(&'a NormalizerWrapper, usize)>,
    /// Bytes of the parts so far; more than any text may have once it was stopped. What an error says is lost
    /// on the way.
    bytes: AtomicUsize,
}

impl Normalizer for Trial<'_> {
    fn normalize(&self, part: &mut NormalizedString) -> tokenizers::Result<()> {
        let before = self.bytes.swap(usize::MAX, Ordering::Relaxed);
        for (step, factor) in &self.steps {
            if before.saturating_add(most_after(step, *factor, part.get())?) > MAX_BYTES {
                return Ok(());
            }
            step.normalize(part)?;
        }
        self.bytes.store(before.saturating_add(part.get().len()), Ordering::Relaxed);
        Ok(())
    }
}

/// Most bytes of a text after a step. One that looks at a letter alone is tried in pieces; what another would
/// find in a piece says nothing of the whole.
fn most_after(step: &NormalizerWrapper, factor: usize, text: &str) -> tokenizers::Result<usize> {
    use NormalizerWrapper::{NFKC, NFKD, Precompiled};
    let most = text.len().max(1).saturating_mul(factor);
    if most <= PIECE || !matches!(step, NFKC(_) | NFKD(_) | Precompiled(_)) {
        return Ok(most);
    }
    let (mut bytes, mut rest) = (0, text);
    while !rest.is_empty() && bytes <= MAX_BYTES {
        let (piece, after) = rest.split_at(boundary(rest, PIECE / factor));
        let mut piece = NormalizedString::from(piece);
        step.normalize(&mut piece)?;
        (bytes, rest) = (bytes + piece.get().len(), after);
    }
    Ok(bytes)
}

/// The end of a letter, at or before so many bytes.
pub(super) fn boundary(text: &str, most: usize) -> usize {
    let most = most.min(text.len());
    (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(most)
}

/// Runs a tokenizer. It is other people's code on a file from outside: one that panics must not take a worker
/// with it.
///
/// # Errors
/// Those of the work, and one for a panic.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the tokenizer panicked".to_owned()))
}
