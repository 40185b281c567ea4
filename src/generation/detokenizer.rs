//! Text out of tokens as they come. A character is never split, and the pieces together are exactly what the tokenizer
//! makes of all tokens at once, also where a token's text depends on those before it: spaces at the start, characters
//! in several byte tokens, bytes that turn out to be no text. Where the tokenizer can say nothing of them, that is an
//! error, since the text would lack them.

use crate::error::Result;
use crate::tokens::Tokens;

/// Tokens of the window; beyond, it is cut down to [`KEPT`].
const WINDOW: usize = 32;
/// Tokens that a cut window keeps. A character has at most four bytes, so what is open lies within them.
const KEPT: usize = 8;

/// The last tokens of a text, and how much of what they say was given out.
pub(super) struct Detokenizer {
    tokens: Tokens,
    window: Vec<u32>,
    /// The window's text when it was last looked at.
    text: String,
    /// Bytes of it that were given out.
    given: usize,
}

impl Detokenizer {
    pub(super) fn new(tokens: &Tokens) -> Self {
        Self { tokens: tokens.clone(), window: Vec::new(), text: String::new(), given: 0 }
    }

    /// Takes the next token; gives the text that is certain with it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] if the tokenizer fails on the window, or could make too much of it.
    pub(super) fn push(&mut self, token: u32) -> Result<Option<String>> {
        if !self.tokens.has_text(token) {
            return Ok(None);
        }
        self.window.push(token);
        if self.tokens.is_byte(token) {
            // Whether a run of bytes is text is known at its end.
            return Ok(None);
        }
        let text = self.tokens.decode(&self.window)?;
        // The sign for bytes that are no text may yet become a character.
        let certain = text.strip_suffix('\u{fffd}').unwrap_or(&text).len();
        let Some(piece) = self.give(&text, certain) else { return Ok(None) };
        self.text = text;
        self.cut();
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// No token follows: the rest of the text.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn flush(&mut self) -> Result<Option<String>> {
        let text = self.tokens.decode(&self.window)?;
        let certain = text.len();
        let Some(piece) = self.give(&text, certain) else { return Ok(None) };
        self.text = text;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// What is new in the text, up to what is certain. Nothing if it does not go on from what was given out.
    fn give(&mut self, text: &str, certain: usize) -> Option<String> {
        let goes_on = text.get(..self.given) == self.text.get(..self.given);
        let piece = text.get(self.given..certain).filter(|_| goes_on)?.to_owned();
        self.given = certain;
        Some(piece)
    }

    /// Keeps the window short, where its last tokens alone say the same as they do in it.
    fn cut(&mut self) {
        if self.window.len() <= WINDOW {
            return;
        }
        let start = self.window.len() - KEPT;
        let Ok(end) = self.tokens.decode(&self.window[start..]) else { return };
        let open = self.text.len() - self.given;
        if self.text.ends_with(&end) && end.len() > open {
            self.window.drain(..start);
            self.given = end.len() - open;
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
                assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
            }
        }
    }
}
