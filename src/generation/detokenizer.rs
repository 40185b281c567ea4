//! Incremental detokenizer: text of tokens as they come. A character is never split, and the pieces together
//! are exactly the text of all tokens at once, also where a token's text depends on those before it: spaces
//! at the start, characters in several byte tokens, bytes that are not UTF-8. Tokens that the tokenizer
//! cannot decode are an error, since the text would lack them.

use crate::error::Result;
use crate::tokens::Tokens;

/// Maximum number of tokens of the window; beyond, it is cut down to [`WINDOW_TAIL`].
const WINDOW: usize = 32;
/// Tokens that a cut window keeps. A character has at most four bytes, so an incomplete one lies within them.
const WINDOW_TAIL: usize = 8;

/// The last tokens of a text, and how much of their text was emitted.
pub(super) struct Detokenizer {
    tokens: Tokens,
    window: Vec<u32>,
    /// Text of the window when it was last decoded.
    text: String,
    /// Bytes of it that were emitted.
    emitted: usize,
}

impl Detokenizer {
    pub(super) fn new(tokens: &Tokens) -> Self {
        Self { tokens: tokens.clone(), window: Vec::new(), text: String::new(), emitted: 0 }
    }

    /// Takes the next token. Gives the text that can no longer change and was not emitted before.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] if the tokenizer fails on the window, or its text could become too long.
    pub(super) fn push(&mut self, token: u32) -> Result<Option<String>> {
        if !self.tokens.has_text(token) {
            return Ok(None);
        }
        self.window.push(token);
        if self.tokens.is_byte(token) {
            // A run of bytes is decoded at its end.
            return Ok(None);
        }
        let text = self.tokens.decode(&self.window)?;
        // The replacement character may yet become another one.
        let certain = text.strip_suffix('\u{fffd}').unwrap_or(&text).len();
        let Some(piece) = self.emit(&text, certain) else { return Ok(None) };
        self.text = text;
        self.cut_window();
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Gives the rest of the text, after the last token.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn flush(&mut self) -> Result<Option<String>> {
        let text = self.tokens.decode(&self.window)?;
        let certain = text.len();
        let Some(piece) = self.emit(&text, certain) else { return Ok(None) };
        self.text = text;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Marks the text as emitted up to `certain` bytes and gives the new part; none if it does not continue
    /// what was emitted.
    fn emit(&mut self, text: &str, certain: usize) -> Option<String> {
        let continues = text.get(..self.emitted) == self.text.get(..self.emitted);
        let piece = text.get(self.emitted..certain).filter(|_| continues)?.to_owned();
        self.emitted = certain;
        Some(piece)
    }

    /// Cuts the window, if its last tokens alone have the same text as in it.
    fn cut_window(&mut self) {
        if self.window.len() <= WINDOW {
            return;
        }
        let start = self.window.len() - WINDOW_TAIL;
        let Ok(end) = self.tokens.decode(&self.window[start..]) else { return };
        let open = self.text.len() - self.emitted;
        if self.text.ends_with(&end) && end.len() > open {
            self.window.drain(..start);
            self.emitted = end.len() - open;
            self.text = end;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Every tokenizer in the repository.
    fn tokenizers() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let families = std::fs::read_dir(root.join("tests/fixtures/text_to_text")).unwrap();
        let mut found: Vec<PathBuf> = families.map(|entry| entry.unwrap().path()).collect();
        found.push(root.join("models/english-embedding-small"));
        found.into_iter().map(|folder| folder.join("tokenizer.json")).filter(|file| file.exists()).collect()
    }

    fn pieces(tokens: &Tokens, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokens);
        let mut pieces: Vec<String> = ids.iter().filter_map(|id| detokenizer.push(*id).unwrap()).collect();
        pieces.extend(detokenizer.flush().unwrap());
        pieces
    }

    #[test]
    fn pieces_of_random_tokens_are_the_text_of_all_tokens() {
        let mut random = fastrand::Rng::with_seed(11);
        for path in tokenizers() {
            let tokens = Tokens::read_whole(&path).unwrap();
            let (vocabulary, mut long) = (tokens.vocabulary() as u32, 0);
            for round in 0..300 {
                let length = random.usize(0..if round % 10 == 0 { 300 } else { 40 });
                // Also runs of a few tokens, so that bytes follow bytes, and tokens that do not exist.
                let few: Vec<u32> = (0..6).map(|_| random.u32(0..vocabulary)).collect();
                let pick = |random: &mut fastrand::Rng| match round % 3 {
                    0 => few[random.usize(0..few.len())],
                    1 => random.u32(0..vocabulary.min(270)),
                    _ => random.u32(0..vocabulary + 5),
                };
                let ids: Vec<u32> = (0..length).map(|_| pick(&mut random)).collect();
                let pieces = pieces(&tokens, &ids);
                assert!(pieces.iter().all(|piece| !piece.is_empty()));
                assert_eq!(pieces.concat(), tokens.decode(&ids).unwrap(), "{}: {ids:?}", path.display());
                long = long.max(pieces.len());
            }
            println!("{}: {vocabulary} tokens, up to {long} pieces", path.display());
            assert!(long > 20);
        }
    }

    #[test]
    fn real_text_comes_in_pieces_of_whole_characters() {
        let text = "The naïve café — 日本語, 🦀🦀 and \u{301} e\u{301}; it's   spaced\n\nout. Ångström";
        for path in tokenizers() {
            let tokens = Tokens::read_whole(&path).unwrap();
            let ids = tokens.encode_prompt(text, crate::tokens::Specials::AsWritten).unwrap();
            let pieces = pieces(&tokens, &ids);
            assert_eq!(pieces.concat(), tokens.decode(&ids).unwrap(), "{}", path.display());
            assert!(pieces.len() > 10, "{}: it comes bit by bit", path.display());
            if tokens.decode(&ids).unwrap() == text {
                let written = ids.iter().filter(|id| tokens.has_text(**id));
                let bytes: Vec<u8> = written.flat_map(|id| tokens.bytes(*id)).collect();
                // SentencePiece begins with a space that is not part of the text.
                assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text, "{}", path.display());
                assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
            }
        }
    }
}
