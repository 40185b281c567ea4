//! What lies in the place of a model's file where something went wrong on its way here: the pointer that Git has without
//! its extension for large files, the page that a web server answers with in place of the file, or where a link led to.

use std::borrow::Cow;
use std::path::Path;

use crate::error::Error;

/// Bytes of a file that tell.
pub(super) const BEGINNING: usize = 64;

/// Beginnings of pointers.
const POINTERS: [&str; 2] =
    ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"];
/// Beginnings of pages, in small letters.
const PAGES: [&str; 3] = ["<!doctype html", "<html", "<?xml"];

/// The error for such a file, by its first bytes; nothing for any other file.
pub(super) fn refused(path: &Path, beginning: &[u8]) -> Option<Error> {
    let text = beginning.strip_prefix("\u{feff}".as_bytes()).unwrap_or(beginning).trim_ascii_start();
    let begins =
        |with: &str| text.get(..with.len()).is_some_and(|text| text.eq_ignore_ascii_case(with.as_bytes()));
    let (found, advice) = if POINTERS.into_iter().any(begins) {
        ("a Git LFS pointer", "fetch it with `git lfs pull`, or from the hub")
    } else if PAGES.into_iter().any(begins) {
        ("an HTML page of a web server", "download it once more, from the address of the file's content")
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
        for page in
            ["<!DOCTYPE html>\n<html>", "\n <html lang=\"en\">", "\u{feff}<HTML>", "<?xml version=\"1.0\"?>"]
        {
            assert!(found(page).contains("HTML"), "{page}");
        }
        assert!(found("../../blobs/0123").contains("link"));
        for file in ["..", "{\"a\": 1}", "GGUF", "", "<s>\n</s>", "version: 1", "<htm"] {
            assert_eq!(found(file), "", "{file}");
        }
    }
}
