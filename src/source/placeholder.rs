//! Placeholders, which lie where a model's file should be when something went wrong on its way here: the pointer that Git has without
//! its extension for large files, the page or the words that a web server answers
//! with in place of the file, or where a link led to.

use std::borrow::Cow;
use std::path::Path;

use crate::error::Error;

/// Bytes of a file that tell.
pub(super) const BEGINNING: usize = 512;

/// Beginnings of pointers.
const POINTERS: [&str; 2] =
    ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"];
/// Beginnings of pages, in small letters.
const PAGES: [&str; 4] = ["<!doctype html", "<html", "<?xml", "<!--"];
/// Elements that a page may begin with too.
const ELEMENTS: [&str; 3] = ["<head", "<body", "<script"];
/// Beginnings of the words that the hub answers with in place of a file.
const REFUSALS: [&str; 5] = [
    "Entry not found",
    "Invalid credentials",
    "Invalid username or password",
    "{\"error\":\"",
    "{\"error\": \"",
];
/// Endings of the names of weight files, which never begin as a text does.
const WEIGHTS: [&str; 3] = ["safetensors", "gguf", "bin"];

/// The error for such a file, by its first bytes; nothing for any other file.
pub(super) fn refused(path: &Path, beginning: &[u8]) -> Option<Error> {
    let text = beginning.strip_prefix("\u{feff}".as_bytes()).unwrap_or(beginning).trim_ascii_start();
    let begins =
        |with: &str| text.get(..with.len()).is_some_and(|text| text.eq_ignore_ascii_case(with.as_bytes()));
    let is_element =
        |name: &str| begins(name) && text.get(name.len()).is_some_and(|next| b"> \t\r\n".contains(next));
    // The number at the beginning of safetensors can have the byte of a sign, but not eight without a zero.
    let is_weights = path.extension().is_some_and(|ending| WEIGHTS.iter().any(|name| ending == *name));
    let is_text = is_weights && text.get(..8).is_some_and(|text| !text.contains(&0));
    let (found, advice) = if POINTERS.into_iter().any(begins) {
        ("a Git LFS pointer", "fetch it with `git lfs pull`, or from the hub")
    } else if PAGES.into_iter().any(begins) || ELEMENTS.into_iter().any(is_element) || is_text && begins("<")
    {
        ("an HTML page of a web server", "download it once more, from the address of the file's content")
    } else if REFUSALS.into_iter().any(begins) || is_text && begins("{\"error\"") {
        (
            "a web server's refusal",
            "download it once more, with a token that may read it where it is not public",
        )
    } else if begins("../") {
        ("the text of a link", "copy the file that it names")
    } else {
        return None;
    };
    let (found, advice) = (Cow::Borrowed(found), Cow::Borrowed(advice));
    Some(Error::Placeholder { file: path.to_owned(), found, advice })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_pages_are_known_by_how_they_begin() {
        let found = |text: &str| {
            refused(Path::new("a"), text.as_bytes()).map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(found("version https://git-lfs.github.com/spec/v1\noid sha256:ab").contains("Git LFS"));
        let late = format!("{}<html>", " ".repeat(300));
        for page in [
            "<!DOCTYPE html>\n<html>",
            "\n <html lang=\"en\">",
            "\u{feff}<HTML>",
            "<?xml version=\"1.0\"?>",
            "<!-- a page -->\n<html>",
            "<head><title>",
            "<BODY class=\"a\">",
            "<script>",
            &late,
        ] {
            assert!(found(page).contains("HTML"), "{page}");
        }
        for refusal in
            ["Entry not found", "Invalid credentials in Authorization header", "{\"error\":\"no\"}"]
        {
            assert!(found(refusal).contains("refusal"), "{refusal}");
        }
        assert!(found("../../blobs/0123").contains("link"));
        for file in [
            "..",
            "{\"a\": 1}",
            "GGUF",
            "",
            "<s>\n</s>",
            "version: 1",
            "<htm",
            "<header>",
            "<body",
            "{\"error\": 1}",
        ] {
            assert_eq!(found(file), "", "{file}");
        }
    }

    #[test]
    fn weights_never_begin_as_a_text() {
        let found = |name: &str, bytes: &[u8]| refused(Path::new(name), bytes).is_some();
        for name in ["a.safetensors", "a.gguf", "a.bin"] {
            assert!(found(name, b"<p>Sorry</p>") && found(name, b"\n{\"error\" : 1}"), "{name}");
            assert!(!found(name, b"GGUF\x03\0\0\0\0") && !found(name, b"PK\x03\x04abcdefgh"), "{name}");
        }
        // Headers of 60 and of 15,392 bytes.
        assert!(!found("a.safetensors", b"<\0\0\0\0\0\0\0{\"a\": 1}"));
        assert!(!found("a.safetensors", b" <\0\0\0\0\0\0{\"a\": 1}"));
        assert!(!found("a.txt", b"<p>Sorry</p>"));
    }
}
