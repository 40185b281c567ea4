//! A `tokenizer.json` of any content, tried on texts.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::tokens::{Specials, Tokens};

/// Letters that tokenizers, and their normalizers above all, make unlike things of.
const TEXT: &str = "The CAT\u{e9} \u{fdfa} \u{732b}\u{1F408}, 12345.\n\tsleeps";

/// The bytes of a `tokenizer.json`.
pub fn tokenizer(bytes: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(|| super::folder("tokenizer")).join("tokenizer.json");
    std::fs::write(&path, bytes).unwrap();
    try_out(&path);
}

/// A text's tokens, and their text, which may become longer but not without bounds.
pub(super) fn try_out(path: &Path) {
    let Ok(tokens) = Tokens::read_whole(path) else { return };
    let Ok(ids) = tokens.encode_prompt(TEXT, Specials::Added) else { return };
    let text = tokens.decode(&ids).unwrap_or_default();
    assert!(text.len() <= 16 << 20, "{} bytes", text.len());
}
