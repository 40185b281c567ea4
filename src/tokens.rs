//! Text to token numbers and back, as the model's own `tokenizer.json` says. Texts to embed are cut to the
//! model's longest input; prompts are taken whole. Padding is left out: the kernels need none.
//!
//! A tokenizer comes from outside. What it may make of a text before it looks for tokens, and of tokens when
//! it writes them, is bounded in `output_bounds`, and where it panics, the request alone fails; a text then
//! has at most as many tokens as bytes, and the few around it. The time that its regular expressions take is
//! bounded only by their engine's limit of a million steps back for each match.

mod output_bounds;
mod reading;
mod long_text;
mod texts;
mod pairs;
mod pieces;
mod bytes;
mod plain_text;
mod special_names;
mod class_names;
mod settings;
mod sentence_piece;
mod files;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::BpeBuilder;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{
    AddedToken, NormalizerWrapper, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::error::{Error, Result};
use crate::source::read_config;
use bytes::Letters;
pub(crate) use bytes::{byte_of, letters_to_bytes};
pub(crate) use files::TokenizerFiles;
use output_bounds::guarded;
pub(crate) use output_bounds::{MAX_ADDED_TOKENS, MAX_BYTES, MAX_MERGES, MAX_TOKENS, OutputBounds};
pub(crate) use pieces::Pieces;
pub(crate) use plain_text::Mask;
use plain_text::{Place, PlainText, in_letters};
pub(crate) use settings::{QWEN2, TokenizerSettings};
pub(crate) use special_names::{named_token, special_names};

/// A model's tokenizer, shared by its workers. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Tokens {
    tokenizer: Arc<Tokenizer>,
    /// Put after each text to embed, where the tokenizer does not do it itself.
    closing: Option<u32>,
    /// A text to embed may have no token.
    may_be_empty: bool,
    /// The tokens of a pair come with the segments of the two texts.
    tells_segments: bool,
    /// Tokens such as `<0x0A>` stand for bytes.
    byte_fallback: bool,
    letters: Letters,
    output_bounds: OutputBounds,
    /// Encodes what people write in a prompt, unless their special tokens are the template's equals.
    plain_text: Option<Arc<PlainText>>,
    /// Maximum number of bytes of a text for each of its tokens, where that is known; of a tokenizer for prompts.
    bytes_per_token: Option<usize>,
    /// The text of each token, in place of the tokenizer's decoder.
    pieces: Option<Arc<Pieces>>,
    /// The tokens around a text are put around a conversation too, whose beginning is this text.
    chat_beginning: Option<String>,
    /// Rows of the model, one for each token. A vocabulary may have more tokens.
    rows: Option<usize>,
}

/// A `tokenizer.json` that is not checked yet: see [`OutputBounds::of`].
pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    let invalid = |reason: String| Error::InvalidTokenizer { file: path.to_owned(), reason };
    let file = read_config(path)?;
    guarded(|| reading::read(&file)).map_err(invalid)
}

/// Treatment of the special tokens that the tokenizer puts around texts, for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Specials {
    /// As for a text of its own.
    Added,
    /// It has them already, from a template.
    AsWritten,
}

/// One text's tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenIds {
    /// Their numbers in the vocabulary.
    pub(crate) ids: Vec<u32>,
    /// The text had more than it is cut to.
    pub(crate) is_cut: bool,
    /// Segment of each; empty where all are in the first.
    pub(crate) segments: Vec<u32>,
    /// Number of tokens at the start that belong to a prompt and that pooling leaves out; fewer than there
    /// are.
    pub(crate) skipped: usize,
    /// Number of the task whose adapter the model is to use.
    pub(crate) task: Option<usize>,
    /// Number of tokens at the end that no token attends to; fewer than there are.
    pub(crate) unseen: usize,
    pub(crate) side: Side,
}

/// Side of a search that a text is on, for models that read the two differently.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Side {
    /// It is to be found.
    #[default]
    Document,
    /// It asks.
    Query,
}

impl Tokens {
    /// Reads a tokenizer; texts are cut to `longest` tokens, special ones included.
    pub(crate) fn read(files: impl Into<TokenizerFiles>, longest: usize, lowercase: bool) -> Result<Self> {
        let files = files.into();
        Self::cutting(files.open()?, &files, longest, lowercase)
    }

    /// The same without special tokens around texts, which may have no token at all then.
    pub(crate) fn read_bare(files: &TokenizerFiles, longest: usize) -> Result<Self> {
        let mut tokenizer = files.open()?;
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        Ok(Self { may_be_empty: true, ..Self::cutting(tokenizer, files, longest, false)? })
    }

    fn cutting(
        mut tokenizer: Tokenizer,
        files: &TokenizerFiles,
        longest: usize,
        lowercase: bool,
    ) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidTokenizer { file: files.path().to_owned(), reason };
        let special = tokenizer.get_post_processor().map_or(0, |processor| {
            use tokenizers::PostProcessor as _;
            processor.added_tokens(false)
        });
        if longest <= special {
            return Err(invalid(format!(
                "inputs of {longest} tokens have no room beside {special} special ones"
            )));
        }
        let own_side = tokenizer.get_truncation().map(|own| own.direction);
        let truncation = TruncationParams {
            direction: files.cut_side().or(own_side).unwrap_or(TruncationDirection::Right),
            max_length: longest,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        if lowercase {
            let own = tokenizer.get_normalizer().cloned();
            let lower = NormalizerWrapper::from(Lowercase);
            let all = Sequence::new(std::iter::once(lower).chain(own).collect());
            // It runs over the added tokens.
            let set = || tokenizer.with_normalizer(Some(all)).map(|_| ()).map_err(|error| error.to_string());
            guarded(set).map_err(invalid)?;
        }
        // For prompts the model's registration says it, whose templates write special tokens.
        tokenizer.set_encode_special_tokens(files.splits_special_tokens());
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        let tells_segments = files.tells_segments();
        Ok(Self { tells_segments, ..Self::of(tokenizer).map_err(invalid)? })
    }

    /// The same, so that each text ends with this token, for which room is kept. A tokenizer that does it
    /// itself stays as it is.
    pub(crate) fn closed_by(self, token: &str, file: &Path) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidTokenizer { file: file.to_owned(), reason };
        let id = self.tokenizer.token_to_id(token);
        let id =
            id.ok_or_else(|| invalid(format!("it lacks the token {token}, which is to end each text")))?;
        let empty = self.output_bounds.encode(&self.tokenizer, "", Specials::Added).map_err(invalid)?;
        if empty.last() == Some(&id) {
            return Ok(self);
        }
        let mut tokenizer = Tokenizer::clone(&self.tokenizer);
        if let Some(mut truncation) = tokenizer.get_truncation().cloned() {
            truncation.max_length = truncation.max_length.saturating_sub(1);
            if truncation.max_length <= empty.len() {
                return Err(invalid("inputs have no room beside the special tokens".to_owned()));
            }
            tokenizer.with_truncation(Some(truncation)).map_err(|error| invalid(error.to_string()))?;
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), closing: Some(id), ..self })
    }

    /// Reads a tokenizer for prompts, which are never cut.
    pub(crate) fn read_whole(files: impl Into<TokenizerFiles>) -> Result<Self> {
        let files = files.into();
        let invalid = |reason: String| Error::InvalidTokenizer { file: files.path().to_owned(), reason };
        Self::whole(files.open()?).map_err(invalid)
    }

    /// The same for a model with so many rows: a text that uses a token beyond them is refused.
    pub(crate) fn with_rows(self, rows: usize) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// A tokenizer for prompts of a model, the steps around it as `tokenizer.json` has them, and the tokens that are matched
    /// before it.
    ///
    /// # Errors
    /// A sentence that names the fault.
    pub(crate) fn of_bpe(model: BpeBuilder, steps: Value, added: Vec<AddedToken>) -> Result<Self, String> {
        Self::whole(reading::put_together(model, steps, added)?)
    }

    /// A tokenizer for prompts, which has been read within the bounds.
    pub(crate) fn whole(mut tokenizer: Tokenizer) -> Result<Self, String> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        let vocabulary = tokenizer.get_vocab(true);
        let bytes_per_token = long_text::bytes_per_token(&tokenizer, &vocabulary);
        let output_bounds = OutputBounds::with_vocabulary(&tokenizer, &vocabulary)?;
        Ok(Self { bytes_per_token, ..Self::within(tokenizer, output_bounds) })
    }

    /// The same, which writes tokens by these pieces in place of the tokenizer's decoder.
    pub(crate) fn written_by(self, pieces: Pieces) -> Self {
        Self { pieces: Some(Arc::new(pieces)), ..self }
    }

    /// The same, which puts the tokens around a text around a conversation too, unless that begins with `beginning`
    /// already: as llama.cpp does, and transformers does not.
    pub(crate) fn around_chats(self, beginning: String) -> Self {
        Self { chat_beginning: Some(beginning), ..self }
    }

    /// Treatment of the special tokens around what a chat template makes.
    pub(crate) fn chat_specials(&self, text: &str) -> Specials {
        match &self.chat_beginning {
            Some(beginning) if !text.starts_with(beginning) => Specials::Added,
            _ => Specials::AsWritten,
        }
    }

    /// Maximum number of bytes of a text for each of its tokens, where that is known.
    pub(crate) fn bytes_per_token(&self) -> Option<usize> {
        self.bytes_per_token
    }

    /// Number of tokens of a prompt that has more than `limit`, as far as they were counted, or at least; nothing for one
    /// that may fit.
    pub(crate) fn count_beyond(&self, text: &str, limit: usize) -> Result<Option<usize>> {
        if let Some(least) = self.bytes_per_token.map(|bytes| text.len().div_ceil(bytes.max(1)))
            && least > limit
        {
            return Ok(Some(least));
        }
        let encode = |piece: &str| self.output_bounds.encode(&self.tokenizer, piece, Specials::AsWritten);
        long_text::count_beyond(text, limit, |piece| encode(piece).map(|ids| ids.len()))
            .map_err(untokenizable)
    }

    fn of(tokenizer: Tokenizer) -> Result<Self, String> {
        let output_bounds = OutputBounds::of(&tokenizer)?;
        Ok(Self::within(tokenizer, output_bounds))
    }

    fn within(tokenizer: Tokenizer, output_bounds: OutputBounds) -> Self {
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let byte_fallback = decoder.is_some_and(|decoder| decoder.contains("\"ByteFallback\""));
        let letters = Letters::of(&tokenizer);
        Self {
            tokenizer: Arc::new(tokenizer),
            closing: None,
            may_be_empty: false,
            tells_segments: false,
            byte_fallback,
            letters,
            output_bounds,
            plain_text: None,
            bytes_per_token: None,
            pieces: None,
            chat_beginning: None,
            rows: None,
        }
    }

    /// The same, so that special tokens in what people write in a prompt are split into the tokens of their text, or
    /// not. `named` are called special by the tokenizer's settings, beside those that the tokenizer calls so.
    ///
    /// # Errors
    /// A sentence, if the tokenizer cannot be taken apart for it.
    pub(crate) fn splitting_special_tokens(self, split: bool, named: &[String]) -> Result<Self, String> {
        let plain_text = match split {
            true => Some(Arc::new(guarded(|| PlainText::of(&self.tokenizer, named))?)),
            false => None,
        };
        Ok(Self { plain_text, ..self })
    }

    /// A prompt's tokens, as it is written; may be none.
    pub(crate) fn encode_prompt(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let ids = self.output_bounds.encode(&self.tokenizer, text, specials);
        self.within_rows(ids.map_err(untokenizable)?)
    }

    /// Refuses a token that the model has no row for.
    fn within_rows(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(rows) = self.rows else { return Ok(ids) };
        let beyond = ids.iter().find(|id| usize::try_from(**id).is_ok_and(|id| id >= rows));
        let Some(beyond) = beyond else { return Ok(ids) };
        let token = self.tokenizer.id_to_token(*beyond).unwrap_or_default();
        Err(Error::InvalidInput(format!(
            "the text has the token {token:?}, number {beyond}, for which the model has none of its {rows} rows"
        )))
    }

    /// The tokens of a text that people wrote, of which none is a special one where these are split.
    pub(crate) fn encode_written(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let Some(plain) = &self.plain_text else { return self.encode_prompt(text, specials) };
        let none = HashSet::new();
        let encoded = guarded(|| {
            self.output_bounds.check(&self.tokenizer, text)?;
            if plain.special_places(&self.tokenizer, text, &none).is_empty() {
                return Ok(None);
            }
            let text_of = |place: Range<usize>| Ok(text.get(place).unwrap_or_default().to_owned());
            plain.encode(&self.tokenizer, (&[], &none), text.len(), text_of, specials).map(Some)
        });
        let ids = encoded.map_err(untokenizable)?;
        ids.map_or_else(|| self.encode_prompt(text, specials), |ids| self.within_rows(ids))
    }

    /// The tokens of what a template makes of texts that people wrote; `check` may still refuse it. Special tokens of the
    /// template are special, and so is every added token that it writes; those that stand in the texts, or that the
    /// template makes of these, are text where they are split. `specials` is asked about the template's own output.
    ///
    /// A prompt without such ones is encoded as it is. A template may look for their characters in the texts, to leave out
    /// what a model was thinking, say. Where that makes a difference, its output counts as long as no text holds a special
    /// token and it has no others than without their characters; if it has, the texts are rendered without a look into
    /// them.
    pub(crate) fn encode_template(
        &self,
        written: &[&str],
        render: impl Fn(&Mask) -> Result<String>,
        check: impl Fn(&str) -> Result<()>,
        specials: impl Fn(&str) -> Specials,
    ) -> Result<Vec<u32>> {
        let text = render(&Mask::default())?;
        check(&text)?;
        let Some(plain) = &self.plain_text else { return self.encode_prompt(&text, specials(&text)) };
        let tokenizer = &*self.tokenizer;
        let mask = guarded(|| plain.mask(tokenizer, written, &text)).map_err(untokenizable)?;
        if mask.is_empty() {
            return self.encode_prompt(&text, specials(&text));
        }
        let masked = match render(&mask) {
            Ok(masked) => masked,
            // It takes the texts as they are, and they do no harm.
            Err(_) if !guarded(|| self.hold_special(plain, written)).map_err(untokenizable)? => {
                return self.encode_prompt(&text, specials(&text));
            }
            Err(error) => return Err(error),
        };
        let around = specials(&masked);
        let encoded = guarded(|| {
            self.output_bounds.check(tokenizer, &text)?;
            self.output_bounds.check(tokenizer, &masked)?;
            let turn_marks = plain.turn_marks(tokenizer, &masked);
            let own = plain.special_places(tokenizer, &masked, &turn_marks);
            let found = plain.special_places(tokenizer, &text, &turn_marks);
            if mask.undo(&masked) == text {
                let own_letters = in_letters(&masked, &own);
                if own_letters.is_some() && own_letters == in_letters(&text, &found) {
                    return Ok(None);
                }
            } else {
                let id = |(_, id): &Place| *id;
                if own.iter().map(id).eq(found.iter().map(id)) && !self.hold_special(plain, written)? {
                    return Ok(None);
                }
                tracing::warn!(
                    "the chat template makes special tokens of messages, or looks for them; they are encoded as text, \
                     and as it renders them without the characters of special tokens"
                );
            }
            let text_of = |place: Range<usize>| -> Result<String, String> {
                let piece = masked.get(place).ok_or("it finds a special token inside of a letter")?;
                Ok(mask.undo(piece).into_owned())
            };
            plain.encode(tokenizer, (&own, &turn_marks), masked.len(), text_of, around).map(Some)
        });
        let ids = encoded.map_err(untokenizable)?;
        ids.map_or_else(|| self.encode_prompt(&text, around), |ids| self.within_rows(ids))
    }

    /// True if texts hold a special token or what may be a turn mark, alone, one after another, or in other cases.
    ///
    /// # Errors
    /// A sentence, if they become too long.
    fn hold_special(&self, plain: &PlainText, texts: &[&str]) -> Result<bool, String> {
        let joined = texts.concat();
        for text in [joined.to_lowercase(), joined.to_uppercase(), joined] {
            self.output_bounds.check(&self.tokenizer, &text)?;
            if plain.holds_any(&self.tokenizer, &text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it becomes too long or the tokenizer fails.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        let failed = |error| Error::InvalidInput(format!("the tokenizer cannot write these tokens: {error}"));
        match &self.pieces {
            Some(pieces) => pieces.decode(ids, MAX_BYTES).map_err(failed),
            None => self.output_bounds.decode(&self.tokenizer, ids).map_err(failed),
        }
    }

    /// The number of a token by its name.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// True if the token is known and not a special one, so that it takes part in the text.
    pub(crate) fn has_text(&self, id: u32) -> bool {
        if let Some(pieces) = &self.pieces {
            return pieces.has_text(id);
        }
        let added = self.tokenizer.get_added_vocabulary();
        match added.get_added_tokens_decoder().get(&id) {
            Some(token) => !(token.special || added.is_special_token(&token.content)),
            None => self.tokenizer.id_to_token(id).is_some(),
        }
    }

    /// The bytes that a token stands for, wherever it is in a text; of one that has no text its name, and none of a number
    /// that is no token's.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        if let Some(piece) = self.pieces.as_ref().and_then(|pieces| pieces.of(id)) {
            return piece.to_vec();
        }
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        match self.tokenizer.id_to_token(id) {
            Some(token) if added => token.into_bytes(),
            Some(token) => self.letters.bytes(&token),
            None => Vec::new(),
        }
    }

    /// True if the token stands for a single byte of a character, so that its text depends on its neighbours.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        self.byte_fallback
            && self.pieces.is_none()
            && self.tokenizer.id_to_token(id).is_some_and(|token| {
                token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') && token.is_ascii()
            })
    }

    /// Tokens that a prompt has before the text that follows it: its own, without a special one at its end.
    pub(crate) fn count_in_front(&self, prompt: &str) -> Result<usize> {
        let ids = self.encode(prompt)?.ids;
        let added = self.tokenizer.get_added_tokens_decoder();
        let closed = ids.last().and_then(|last| added.get(last)).is_some_and(|token| token.special);
        Ok(ids.len() - usize::from(closed))
    }

    /// Text of a token in the vocabulary.
    pub(crate) fn written(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// One more than the largest token number.
    #[cfg(test)]
    pub(crate) fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1)
    }
}

fn untokenizable(reason: String) -> Error {
    Error::InvalidInput(format!("the prompt cannot be tokenized: {reason}"))
}
