//! Stop strings, which may lie across several pieces of text: text that may still become one is held back.
//! The result does not depend on how the text is cut into pieces: of several matches the one that is complete
//! first ends the text, and of those the one that began first.

/// Result of the search for a stop string: the text ends at one, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    Yes,
    No,
}

/// Stop strings, and the end of the text that may still become one of them, which is shorter than the
/// longest.
#[derive(Debug, Default)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    held_back: String,
}

impl StopStrings {
    /// Creates a search for these strings, of which empty ones are left out.
    pub(super) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|string| !string.is_empty()).cloned().collect();
        Self { strings, held_back: String::new() }
    }

    /// Takes more text. Gives the text that cannot become part of a stop string any more.
    pub(super) fn push(&mut self, piece: &str) -> (String, Stopped) {
        self.held_back.push_str(piece);
        let first = |string: &String| self.held_back.find(string.as_str()).map(|at| (at + string.len(), at));
        if let Some((_, at)) = self.strings.iter().filter_map(first).min() {
            let mut text = std::mem::take(&mut self.held_back);
            text.truncate(at);
            return (text, Stopped::Yes);
        }
        let keep = self.strings.iter().map(|string| overlap(&self.held_back, string)).max().unwrap_or(0);
        let rest = self.held_back.split_off(self.held_back.len() - keep);
        (std::mem::replace(&mut self.held_back, rest), Stopped::No)
    }

    /// Gives the text that was held back, after the last piece.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held_back)
    }
}

/// Bytes of the longest proper prefix of `string` that `text` ends with.
pub(super) fn overlap(text: &str, string: &str) -> usize {
    let longest = text.len().min(string.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|length| string.as_bytes().starts_with(&text.as_bytes()[text.len() - length..]))
        .unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Stopped) {
        let strings: Vec<String> = strings.iter().map(|string| (*string).to_owned()).collect();
        let (mut stop, mut whole) = (StopStrings::new(&strings), String::new());
        for piece in pieces {
            let (text, stopped) = stop.push(piece);
            whole.push_str(&text);
            assert!(stop.held_back.len() < strings.iter().map(String::len).max().unwrap_or(1).max(1));
            if stopped == Stopped::Yes {
                return (whole, stopped);
            }
        }
        whole.push_str(&stop.flush());
        (whole, Stopped::No)
    }

    #[test]
    fn a_string_may_lie_across_pieces() {
        assert_eq!(run(&["</s>"], &["one <", "/", "s> two"]), ("one ".to_owned(), Stopped::Yes));
        assert_eq!(run(&["</s>"], &["one <", "/", "b> two"]), ("one </b> two".to_owned(), Stopped::No));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), Stopped::Yes));
        assert_eq!(run(&["ab"], &["xa"]), ("xa".to_owned(), Stopped::No));
        assert_eq!(run(&[""], &["text"]), ("text".to_owned(), Stopped::No));
        assert_eq!(run(&["é!"], &["caf", "é", "?", "é", "!"]), ("café?".to_owned(), Stopped::Yes));
    }

    #[test]
    fn what_is_found_does_not_depend_on_the_pieces() {
        let (text, strings) = ("the cat sat on the mat, abcabd", ["sat on", "at on t", "abd", "on"]);
        let expected = run(&strings, &[text]);
        assert_eq!(expected, ("the cat ".to_owned(), Stopped::Yes));
        for width in 1..text.len() {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(width).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            assert_eq!(run(&strings, &pieces), expected, "pieces of {width}");
        }
    }
}
