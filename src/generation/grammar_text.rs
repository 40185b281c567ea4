//! Texts as grammars have them: between quotation marks, and as parts of regular expressions.

use serde_json::json;

/// A text as Lark has it.
pub(super) fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// A text as a part of a regular expression.
pub(super) fn escaped(text: &str) -> String {
    let means_more = |letter: &char| "\\.+*?()|[]{}^$#&-~/".contains(*letter);
    let escaped =
        text.chars().flat_map(|letter| means_more(&letter).then_some('\\').into_iter().chain([letter]));
    escaped.collect::<String>().replace('\n', "\\n")
}
