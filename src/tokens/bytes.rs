//! The bytes that a token stands for in a text. A byte-level vocabulary writes each byte as a letter, and one of
//! SentencePiece writes spaces as `▁` and single bytes as `<0x0A>`; an added token is written as it is.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokenizers::Tokenizer;

/// The way in which a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// A letter for each byte.
    Bytes,
    /// Text, with `▁` for a space; single bytes too, if it falls back to them.
    SentencePiece { bytes: bool },
    /// Text as it is.
    Plain,
}

impl Letters {
    /// As the tokenizer's decoder tells.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let has = |part: &str| decoder.as_ref().is_some_and(|decoder| decoder.contains(part));
        match () {
            () if has("\"ByteLevel\"") => Self::Bytes,
            () if has("▁") => Self::SentencePiece { bytes: has("\"ByteFallback\"") },
            () => Self::Plain,
        }
    }

    /// The bytes of a token that is no added one.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::Bytes => letters_to_bytes(token),
            Self::SentencePiece { bytes } => match byte_of(token).filter(|_| bytes) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::Plain => token.as_bytes().to_vec(),
        }
    }
}

/// The bytes of a token of byte-level BPE; one that has other letters is taken as it is.
pub(crate) fn letters_to_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|letter| BYTES.get(&letter).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a token such as `<0x0A>` stands for.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The byte that each letter of byte-level BPE stands for: those that can be printed for themselves, the others in their
/// order for the letters from 256 on.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let own = (0..=255u8).filter(printed).map(|byte| (char::from(byte), byte));
    let others = (0..=255u8).filter(|byte| !printed(byte)).zip(256u32..);
    own.chain(others.filter_map(|(byte, letter)| Some((char::from_u32(letter)?, byte)))).collect()
});

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_a_letter_and_other_letters_are_text() {
        let letters: HashMap<u8, char> = BYTES.iter().map(|(letter, byte)| (*byte, *letter)).collect();
        assert_eq!(letters.len(), 256);
        let token: String = (0..=255u8).map(|byte| letters[&byte]).collect();
        assert_eq!(letters_to_bytes(&token), (0..=255u8).collect::<Vec<u8>>());
        assert_eq!(letters_to_bytes("Ġcafé"), b" caf\xe9");
        assert_eq!(letters_to_bytes("日"), "日".as_bytes());
    }

    #[test]
    fn sentence_piece_writes_spaces_and_bytes_in_its_own_way() {
        let (with, without) =
            (Letters::SentencePiece { bytes: true }, Letters::SentencePiece { bytes: false });
        assert_eq!(with.bytes("▁the▁cat"), b" the cat");
        assert_eq!((with.bytes("<0x0A>"), without.bytes("<0x0A>")), (b"\n".to_vec(), b"<0x0A>".to_vec()));
        for text in ["<0x0>", "<0x0A", "<0xZZ>", "<0x0A0>"] {
            assert_eq!(with.bytes(text), text.as_bytes());
        }
        assert_eq!(Letters::Plain.bytes("▁a"), "▁a".as_bytes());
    }
}
