//! Numbers that Python's json writes and that are no JSON: `Infinity`, `-Infinity` and `NaN`, as themselves or, since
//! transformers 5, in a table of their own. They are put into JSON before it is read; all else of a file is left as it is.

use std::borrow::Cow;

/// The largest number stands for infinity: compared with, or as a bound of, any other number it is the same, and in 32
/// bits it is infinity.
const INFINITY: &[u8] = b"1.7976931348623157e308";

/// Numbers as Python writes them, and what stands for it. NaN has no number that is like it, and counts as not set.
const WORDS: [(&[u8], &[u8], &[u8]); 3] =
    [(b"Infinity", b"", INFINITY), (b"-Infinity", b"-", INFINITY), (b"NaN", b"", b"null")];

/// A file whose numbers are all JSON. It is at most three times as long.
pub(super) fn as_json(file: &[u8]) -> Cow<'_, [u8]> {
    let has = |word: &[u8]| file.windows(word.len()).any(|part| part == word);
    if !has(b"Infinity") && !has(b"NaN") {
        return Cow::Borrowed(file);
    }
    let mut json = Vec::with_capacity(file.len());
    let mut rest = file;
    while let [first, after @ ..] = rest {
        if let Some((number, after)) = table(rest).or_else(|| word(rest)) {
            // With blanks around it, it does not become part of what is beside it.
            json.extend([b" ".as_slice(), &number, b" "].concat());
            rest = after;
        } else if *first == b'"' {
            let (text, after) = rest.split_at(text_length(rest));
            json.extend(text);
            rest = after;
        } else {
            json.push(*first);
            rest = after;
        }
    }
    Cow::Owned(json)
}

/// A word at the beginning, as the number that stands for it, and what comes behind it.
fn word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    WORDS.iter().find_map(|(word, sign, number)| Some(([*sign, *number].concat(), text.strip_prefix(*word)?)))
}

/// The same for `{"__float__": "Infinity"}`.
fn table(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text;
    for part in [b"{".as_slice(), b"\"__float__\"", b":", b"\""] {
        rest = rest.strip_prefix(part)?;
        if part != b"\"" {
            rest = rest.trim_ascii_start();
        }
    }
    let (number, rest) = word(rest)?;
    Some((number, rest.strip_prefix(b"\"")?.trim_ascii_start().strip_prefix(b"}")?))
}

/// Bytes of the text at the beginning, with its quotation marks; of all that is there, if it has no end.
fn text_length(text: &[u8]) -> usize {
    let mut is_escaped = false;
    let end = text.iter().skip(1).position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(text: &str) -> Option<Value> {
        serde_json::from_slice(&as_json(text.as_bytes())).ok()
    }

    #[test]
    fn numbers_that_only_python_writes_are_read() {
        let text = r#"{"time_step_limit": [0.0, Infinity], "a":-Infinity,"b":[NaN,1] }"#;
        let expected = json!({"time_step_limit": [0.0, f64::MAX], "a": f64::MIN, "b": [null, 1]});
        assert_eq!(read(text), Some(expected));
        assert_eq!(read("Infinity"), Some(json!(f64::MAX)));
        let tables = r#"[{"__float__": "Infinity"}, { "__float__":"-Infinity" }, {"__float__": "NaN"}]"#;
        assert_eq!(read(tables), Some(json!([f64::MAX, f64::MIN, null])));
    }

    #[test]
    fn texts_are_left_as_they_are() {
        for value in [
            json!({"Infinity": "-Infinity", "NaN": "a \"NaN\" \\"}),
            json!(["\\\\", "NaN", "\\\"Infinity", 1.5, {"__float__": "Infinity ", "x": "NaN"}]),
        ] {
            assert_eq!(read(&value.to_string()), Some(value));
        }
        let plain = br#"{"a": [1, "b"]}"#;
        assert!(matches!(as_json(plain), Cow::Borrowed(same) if same == plain));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "1Infinity",
            "Infinity1",
            "-NaN",
            "- Infinity",
            "+Infinity",
            "--Infinity",
            "1NaN",
            "NaN1",
            "[Infinity",
            "inf",
            "nan",
            "\"Infinity",
            "\"NaN\\\"",
            r#"{"__float__": Infinity"}"#,
            r#"{"__float__": "Infinity}"#,
            "{Infinity: 1}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_becomes_at_most_three_times_as_long() {
        for word in ["NaN", "Infinity", "-Infinity"] {
            let file = format!("[{}]", vec![word; 1000].join(","));
            let json = as_json(file.as_bytes());
            assert!(json.len() <= 3 * file.len(), "{word}: {} of {}", json.len(), file.len());
        }
    }
}
