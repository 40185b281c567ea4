//! Limit on the memory that a template uses while it runs. Jinja's own limit counts steps, but a step that
//! doubles a text costs no more than another; forty of them are a terabyte. So every place where a template
//! gives a value a name, in a loop, a macro or an assignment, gets a call of [`CHECK`] that counts the
//! value's bytes against a budget, and the growth between two such places is bounded by a check of the
//! template's text.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// The function that the rewritten template calls.
pub(super) const CHECK: &str = "__weigh";
/// Most bytes that a template may handle in all; a prompt has at most 4 MiB and is handled a few times.
const MAX_HANDLED: u64 = 256 << 20;
/// Bytes that each part of a value counts for besides its text.
const PART: u64 = 16;
/// Most nested lists and maps of a value.
const MAX_DEPTH: usize = 64;
/// Most operators in one tag that join values.
const MAX_JOINTS: usize = 64;
const SPENT: &str = "__spent";

/// Counts bytes that the template handles against its budget.
pub(super) fn spend(state: &mut State, bytes: u64) -> Result<(), Error> {
    let spent = state.get_temp(SPENT).and_then(|spent| u64::try_from(spent).ok()).unwrap_or(0);
    let spent = spent.saturating_add(bytes);
    state.set_temp(SPENT, Value::from(spent));
    if spent > MAX_HANDLED { Err(too_much()) } else { Ok(()) }
}

/// Error about the budget of bytes, which is not that of steps.
fn too_much() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("it handled more than {MAX_HANDLED} bytes on its way"))
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value has more than {MAX_DEPTH} levels in each other"))
}

/// Bytes that a value counts for when it is written out.
pub(super) fn weight(value: &Value) -> Result<u64, Error> {
    let mut left = MAX_HANDLED;
    weigh(value, &mut left, MAX_DEPTH)?;
    Ok(MAX_HANDLED - left)
}

fn weigh(value: &Value, left: &mut u64, depth: usize) -> Result<(), Error> {
    let own = PART + value.as_str().map_or(0, str::len) as u64;
    *left = left.checked_sub(own).ok_or_else(too_much)?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    // What cannot be listed, a namespace, got what it holds by assignments of its own.
    let Ok(items) = value.try_iter() else { return Ok(()) };
    for item in items {
        weigh(&item, left, depth)?;
        if value.kind() == ValueKind::Map {
            weigh(&value.get_item(&item)?, left, depth)?;
        }
    }
    Ok(())
}

/// Adds calls of [`CHECK`] to a template wherever a value gets a name.
///
/// # Errors
/// A sentence about an operation that no chat template needs and that could fill the memory.
pub(super) fn guarded(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() * 2);
    let mut rest = source;
    let mut captured: Vec<Vec<String>> = Vec::new();
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_length(tag, b"}}")?,
            Some(b'%') => tag_length(tag, b"%}")?,
            _ => 1,
        };
        let (whole, after) = tag.split_at(length);
        out.push_str(whole);
        rest = after;
        if !whole.starts_with("{%") {
            continue;
        }
        let inside = whole.get(2..whole.len().saturating_sub(2)).unwrap_or_default();
        let inside = inside.trim_matches(|letter: char| "-+".contains(letter) || letter.is_whitespace());
        if inside == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            // What is left of the closing tag is written as it is.
            rest = &rest[end..];
            continue;
        }
        let names = names(inside, &mut captured);
        if let Some(names) = names {
            // The check keeps the spaces after the tag as the tag would.
            let close = ["-%}", "+%}"].into_iter().find(|close| whole.ends_with(close)).unwrap_or("%}");
            out.push_str(&format!("{{% do {CHECK}({}) {close}", names.join(", ")));
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Bytes of a tag up to its end, which is not looked for in strings.
fn tag_length(tag: &str, end: &[u8; 2]) -> Result<usize, String> {
    let bytes = tag.as_bytes();
    let (mut quote, mut depth, mut joints) = (None, 0usize, 0usize);
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), sign) if sign == open => quote = None,
            (Some(_), _) => {}
            (None, sign @ (b'"' | b'\'')) => quote = Some(sign),
            (None, _) if depth == 0 && bytes[at..].starts_with(end) => return Ok(at + 2),
            (None, b'{') => depth += 1,
            (None, b'}') => depth = depth.saturating_sub(1),
            (None, b'~' | b'+' | b',') => joints += 1,
            (None, b'*') => return Err("it multiplies, which chat templates have no need of".to_owned()),
            (None, _) => {}
        }
        if joints > MAX_JOINTS {
            return Err(format!("a tag joins more than {MAX_JOINTS} values"));
        }
        at += 1;
    }
    Ok(tag.len())
}

/// Names that a block tag gives to values; none for another tag.
fn names(inside: &str, captured: &mut Vec<Vec<String>>) -> Option<Vec<String>> {
    let (keyword, rest) =
        inside.split_at(inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len()));
    match keyword {
        "set" => match top(rest, b'=').first() {
            Some(end) => Some(identifiers(&rest[..*end])),
            None => {
                captured.push(identifiers(rest.split('|').next().unwrap_or_default()));
                None
            }
        },
        "endset" => captured.pop(),
        "for" => {
            let end = rest.find(" in ").or_else(|| rest.find(" in")).unwrap_or(rest.len());
            Some(identifiers(&rest[..end]))
        }
        "with" => Some(assigned(rest)),
        "macro" | "call" => {
            let open = rest.find('(');
            Some(open.map_or_else(Vec::new, |open| parameters(&rest[open + 1..])))
        }
        _ => None,
    }
}

/// Names of a macro's parameters, of a text that begins with them.
fn parameters(rest: &str) -> Vec<String> {
    let (mut depth, mut quote) = (0i32, None);
    let end = rest.bytes().position(|sign| {
        match (quote, sign) {
            (Some(open), sign) if sign == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(sign),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')') if depth == 0 => return true,
            (None, b')' | b']' | b'}') => depth -= 1,
            (None, _) => {}
        }
        false
    });
    assigned(&rest[..end.unwrap_or(rest.len())])
}

/// Names in a list of assignments: a, b and c in `a, b=1, c=2`.
fn assigned(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut begin = 0;
    for end in top(text, b',').into_iter().chain([text.len()]) {
        let part = &text[begin..end];
        let name = top(part, b'=').first().map_or(part, |equals| &part[..*equals]);
        names.extend(identifiers(name));
        begin = (end + 1).min(text.len());
    }
    names
}

/// Offsets of a character outside of strings and brackets. The equals sign of a comparison does not count.
fn top(text: &str, sign: u8) -> Vec<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut depth, mut found) = (None, 0i32, Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), here) if here == open => quote = None,
            (Some(_), _) => {}
            (None, here @ (b'"' | b'\'')) => quote = Some(here),
            (None, here) if here == sign && depth == 0 => {
                let compares = sign == b'='
                    && (bytes.get(at + 1) == Some(&b'=') || at > 0 && b"=!<>".contains(&bytes[at - 1]));
                if !compares {
                    found.push(at);
                }
            }
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth -= 1,
            (None, _) => {}
        }
        at += 1;
    }
    found
}

/// Names, with their dots, between any brackets and commas.
fn identifiers(text: &str) -> Vec<String> {
    text.split(|letter: char| !(letter.is_alphanumeric() || "_.".contains(letter)))
        .filter(|name| name.starts_with(|letter: char| letter.is_alphabetic() || letter == '_'))
        .map(str::to_owned)
        .collect()
}
