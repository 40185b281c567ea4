//! Text out of tokens as they come. A character is never split, and the pieces together are exactly what the tokenizer
//! makes of all tokens at once, also where a token's text depends on those before it: spaces at the start, characters
//! in several byte tokens, bytes that turn out to be no text.

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
    pub(super) fn push(&mut self, token: u32) -> Option<String> {
        if !self.tokens.has_text(token) {
            return None;
        }
        self.window.push(token);
        if self.tokens.is_byte(token) {
            // Whether a run of bytes is text is known at its end.
            return None;
        }
        let text = self.tokens.decode(&self.window)?;
        // The sign for bytes that are no text may yet become a character.
        let certain = text.strip_suffix('\u{fffd}').unwrap_or(&text).len();
        let piece = self.give(&text, certain)?;
        self.text = text;
        self.cut();
        Some(piece).filter(|piece| !piece.is_empty())
    }

    /// No token follows: the rest of the text.
    pub(super) fn flush(&mut self) -> Option<String> {
        let text = self.tokens.decode(&self.window)?;
        let certain = text.len();
        let piece = self.give(&text, certain)?;
        self.text = text;
        Some(piece).filter(|piece| !piece.is_empty())
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
        let Some(end) = self.tokens.decode(&self.window[start..]) else { return };
        let open = self.text.len() - self.given;
        if self.text.ends_with(&end) && end.len() > open {
            self.window.drain(..start);
            self.given = end.len() - open;
            self.text = end;
        }
    }
}
