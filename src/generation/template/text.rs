//! Texts as Python's `str` takes them apart and writes them: whitespace, lines, letters of words, padding. Pure functions;
//! what they cost a template is weighed by their callers.

/// Python's whitespace, to which four separators belong besides Unicode's.
pub(super) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

/// `split` at whitespace, at most so many times, from the left.
pub(super) fn split_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() < most { rest.find(is_space) } else { None };
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(part);
        rest = after.trim_start_matches(is_space);
    }
    parts
}

/// `rsplit` at whitespace, at most so many times, from the right.
pub(super) fn split_spaces_from_right(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space =
            if parts.len() < most { rest.char_indices().rfind(|(_, sign)| is_space(*sign)) } else { None };
        let start = space.map_or(0, |(at, sign)| at + sign.len_utf8());
        let (before, part) = rest.split_at(start);
        parts.push(part);
        rest = before.trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// `splitlines`: lines with or without what ends them.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |sign: char| {
        matches!(
            sign,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let after = rest.get(at..).unwrap_or_default();
        let end = if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(1, char::len_utf8) };
        let (line, next) = rest.split_at(at + end);
        lines.push(if keep_ends { line } else { rest.split_at(at).0 });
        rest = next;
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `title`: the first letter of each run of letters large, the others small.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for letter in text.chars() {
        match within {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
        within = letter.is_lowercase() || letter.is_uppercase();
    }
    out
}

/// `capitalize`: the first letter large, the others small.
pub(super) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.as_str().to_lowercase().chars()).collect()
}

/// `swapcase`.
pub(super) fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_uppercase() {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
    }
    out
}

/// `istitle`: large letters only at the start of a run of letters, small ones only after one.
pub(super) fn is_title(text: &str) -> bool {
    let (mut within, mut any) = (false, false);
    for letter in text.chars() {
        let (large, small) = (letter.is_uppercase(), letter.is_lowercase());
        if (large && within) || (small && !within) {
            return false;
        }
        within = large || small;
        any |= within;
    }
    any
}

/// Side or sides on which a text is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    Left,
    Right,
    Both,
}

/// `ljust`, `rjust` and `center`: the text with so many letters at least.
pub(super) fn padded(text: &str, width: usize, fill: char, padding: Padding) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match padding {
        Padding::Left => missing,
        Padding::Right => 0,
        // The odd one goes to the left where the width is odd too.
        Padding::Both => missing / 2 + (missing & width & 1),
    };
    let fills = |count: usize| std::iter::repeat_n(fill, count);
    fills(left).chain(text.chars()).chain(fills(missing - left)).collect()
}

/// `zfill`: zeros behind the sign of a number.
pub(super) fn zero_filled(text: &str, width: usize) -> String {
    let (sign, digits) = match text.chars().next() {
        Some('+' | '-') => text.split_at(1),
        _ => ("", text),
    };
    format!("{sign}{}", padded(digits, width.saturating_sub(sign.len()), '0', Padding::Left))
}

/// `expandtabs`: spaces up to the next multiple of a width.
pub(super) fn without_tabs(text: &str, width: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for letter in text.chars() {
        match letter {
            '\t' => {
                let missing = column_rest(column, width);
                out.extend(std::iter::repeat_n(' ', missing));
                column += missing;
            }
            '\n' | '\r' => {
                out.push(letter);
                column = 0;
            }
            _ => {
                out.push(letter);
                column += 1;
            }
        }
    }
    out
}

/// Spaces from a column to the next multiple of a width, of which zero has none.
fn column_rest(column: usize, width: usize) -> usize {
    column.checked_rem(width).map_or(0, |over| width - over)
}

/// Jinja's `indent`: lines but the first, and blank ones, begin with so much.
pub(super) fn indented(text: &str, indent: &str, first: bool, blank: bool) -> String {
    // As Jinja, which ends the text before it takes it apart.
    let text = format!("{text}\n");
    let mut out = String::with_capacity(text.len());
    for (at, line) in lines(&text, false).into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let indents = if at == 0 { first } else { blank || !line.is_empty() };
        if indents {
            out.push_str(indent);
        }
        out.push_str(line);
    }
    out
}

/// A floating-point number as Python writes it: with an exponent from `1e16` on and below `1e-4`.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    let written = format!("{number:?}");
    match written.split_once('e') {
        Some((digits, power)) => {
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
            format!("{}e{sign}{power:0>2}", digits.strip_suffix(".0").unwrap_or(digits))
        }
        None => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_as_python_splits_them() {
        assert_eq!(split_spaces(" a b  c ", 1), ["a", "b  c "]);
        assert_eq!(split_spaces(" a\u{1f}b ", usize::MAX), ["a", "b"]);
        assert_eq!(split_spaces_from_right(" a b  c ", 1), [" a b", "c"]);
        assert_eq!(split_spaces_from_right("  ", 1), [""; 0]);
        assert_eq!(lines("a\r\nb\n\nc\u{2028}", false), ["a", "b", "", "c"]);
        assert_eq!(lines("a\r\nb\rc", true), ["a\r\n", "b\r", "c"]);
    }

    #[test]
    fn texts_are_written_as_python_writes_them() {
        assert_eq!(title("they're bill's FRIENDS"), "They'Re Bill'S Friends");
        assert!(is_title("The Cat") && !is_title("The cat") && !is_title("1"));
        assert_eq!(padded("ab", 5, '*', Padding::Both), "**ab*");
        assert_eq!(padded("a", 4, '*', Padding::Both), "*a**");
        assert_eq!(zero_filled("-42", 5), "-0042");
        assert_eq!(without_tabs("a\tb\n\tc", 4), "a   b\n    c");
        assert_eq!(indented("a\n\nb\n", "  ", false, false), "a\n\n  b\n");
        assert_eq!(
            [float(1e16), float(0.00001), float(2.0), float(1.5e-7)],
            ["1e+16", "1e-05", "2.0", "1.5e-07"]
        );
    }
}
