//! The text of each token where a file says what kinds of tokens it has, as GGUF files do: control tokens and unused ones
//! have none, bytes are bytes, and what a user has defined is taken as it is. The texts come from others.

/// The text of each token, in bytes: a character may be in several tokens.
#[derive(Debug)]
pub(crate) struct Pieces {
    pieces: Vec<Box<[u8]>>,
    /// A space at the beginning of a text belongs to the tokenizer.
    strips_space: bool,
}

impl Pieces {
    pub(crate) fn new(pieces: Vec<Box<[u8]>>, strips_space: bool) -> Self {
        Self { pieces, strips_space }
    }

    fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], |piece| piece)
    }

    pub(super) fn has_text(&self, id: u32) -> bool {
        !self.piece(id).is_empty()
    }

    /// The text of a token that has one.
    pub(super) fn of(&self, id: u32) -> Option<&[u8]> {
        Some(self.piece(id)).filter(|piece| !piece.is_empty())
    }

    /// The text of tokens; bytes that are no character become the replacement character.
    ///
    /// # Errors
    /// A sentence, if it becomes longer than `most` bytes.
    pub(super) fn decode(&self, ids: &[u32], most: usize) -> Result<String, String> {
        let length = ids.iter().fold(0usize, |sum, id| sum.saturating_add(self.piece(*id).len()));
        if length > most {
            return Err(format!("{} tokens make more than {most} bytes", ids.len()));
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.piece(*id)).copied().collect();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        match text.strip_prefix(' ') {
            Some(rest) if self.strips_space => Ok(rest.to_owned()),
            _ => Ok(text),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn pieces(strips_space: bool) -> Pieces {
        let pieces: [&[u8]; 5] = [b" a", b"", b"\xc3", b"\xa9", b"<0x0A>"];
        Pieces::new(pieces.into_iter().map(Into::into).collect(), strips_space)
    }

    #[test]
    fn pieces_make_a_text_with_characters_in_several_tokens() {
        let all = [0, 1, 2, 3, 4, 0, 99];
        assert_eq!(pieces(false).decode(&all, 99).unwrap(), " aé<0x0A> a");
        assert_eq!(pieces(true).decode(&all, 99).unwrap(), "aé<0x0A> a");
        assert_eq!(pieces(true).decode(&[2, 0], 99).unwrap(), "\u{fffd} a");
        assert_eq!([0, 1, 2, 99].map(|id| pieces(true).has_text(id)), [true, false, true, false]);
    }

    #[test]
    fn a_text_that_becomes_too_long_is_refused() {
        assert!(pieces(false).decode(&[4; 10], 60).is_ok());
        assert!(pieces(false).decode(&[4; 11], 60).is_err());
    }
}
