//! Filters and tests of Jinja2 that minijinja lacks, or has otherwise than Jinja2 as transformers sets it up.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

use super::text::{self, Padding};

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// A value as text, as Python's `str` writes it.
pub(super) fn written(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => inner(value),
    }
}

/// A value as Python's `repr` writes it. Its levels have been counted.
fn inner(value: &Value) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    let items = || value.try_iter().map(|items| items.map(|item| inner(&item)).collect::<Vec<_>>());
    match value.kind() {
        ValueKind::String => format!("{value:?}"),
        ValueKind::Number => number(value).unwrap_or_else(|| value.to_string()),
        ValueKind::Seq if value.is_tuple() && value.len() == Some(1) => {
            format!("({},)", joined(items().unwrap_or_default()))
        }
        ValueKind::Seq if value.is_tuple() => format!("({})", joined(items().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => format!("[{}]", joined(items().unwrap_or_default())),
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", inner(&key), inner(&item))
            };
            let pairs = value.try_iter().map(|keys| keys.map(pair).collect());
            format!("{{{}}}", joined(pairs.unwrap_or_default()))
        }
        _ => value.to_string(),
    }
}

/// A floating-point number as Python writes it.
pub(super) fn number(value: &Value) -> Option<String> {
    let float = value.kind() == ValueKind::Number && !value.is_integer();
    if float { f64::try_from(value.clone()).ok().map(text::float) } else { None }
}

/// Number of items or letters; what is undefined has none.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| refused(format!("a value of type {} has no length", value.kind())))
}

pub(super) fn string(value: &Value) -> Value {
    if value.as_str().is_some() { value.clone() } else { Value::from(written(value)) }
}

/// A text that HTML shows as it is, unless it is one already.
pub(super) fn escape(value: &Value) -> Value {
    if value.is_safe() { value.clone() } else { forceescape(value) }
}

/// A text that HTML shows as it is.
pub(super) fn forceescape(value: &Value) -> Value {
    let text = written(value).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// A whole number, or the default where there is none. Its arguments are the default and the base of a text.
pub(super) fn int(value: &Value, arguments: Rest<Value>) -> Value {
    let base = arguments.get(1).filter(|base| !base.is_undefined());
    let base = base.map_or(Some(10), |base| base.as_usize().and_then(|base| u32::try_from(base).ok()));
    let text = written(value);
    let text = text.trim_matches(text::is_space).replace('_', "");
    #[allow(clippy::cast_possible_truncation, reason = "as Python leaves out the part behind the point")]
    let whole = |number: f64| number.is_finite().then_some(number as i64);
    let parsed = match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::String => {
            let own = base.and_then(|base| in_base(&text, base));
            own.or_else(|| text.parse().ok().and_then(whole))
        }
        ValueKind::Number => text.parse().ok().or_else(|| text.parse().ok().and_then(whole)),
        _ => None,
    };
    parsed.map_or_else(|| default_or(&arguments, Value::from(0)), Value::from)
}

/// A whole number as Python reads it in a base; in base 0, or its own, its prefix may tell the base.
fn in_base(text: &str, base: u32) -> Option<i64> {
    let (sign, digits) = match text.chars().next() {
        Some(sign @ ('+' | '-')) => (if sign == '-' { "-" } else { "" }, text.get(1..)?),
        _ => ("", text),
    };
    let prefixed = |prefix: &str, own: u32| {
        let head = digits.get(..2).filter(|head| head.eq_ignore_ascii_case(prefix));
        head.filter(|_| base == own || base == 0).and_then(|_| Some((digits.get(2..)?, own)))
    };
    let found = prefixed("0x", 16).or_else(|| prefixed("0o", 8)).or_else(|| prefixed("0b", 2));
    let (digits, base) = found.unwrap_or((digits, if base == 0 { 10 } else { base }));
    let is_plain = (2..=36).contains(&base) && digits.chars().all(char::is_alphanumeric);
    if is_plain { i64::from_str_radix(&format!("{sign}{digits}"), base).ok() } else { None }
}

/// The first argument, where it is given.
fn default_or(arguments: &[Value], default: Value) -> Value {
    arguments.first().filter(|given| !given.is_undefined()).cloned().unwrap_or(default)
}

/// A floating-point number, or the default where there is none.
pub(super) fn float(value: &Value, arguments: Rest<Value>) -> Value {
    let text = written(value);
    let parsed: Option<f64> = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number | ValueKind::String => {
            text.trim_matches(text::is_space).replace('_', "").parse().ok()
        }
        _ => None,
    };
    parsed.map_or_else(|| default_or(&arguments, Value::from(0.0)), Value::from)
}

pub(super) fn replace(value: &Value, old: &Value, new: &Value, count: Option<i64>) -> String {
    let times = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    written(value).replacen(&written(old), &written(new), times)
}

pub(super) fn title(value: &Value) -> String {
    let text = written(value);
    let mut out = String::with_capacity(text.len());
    let mut starts = true;
    for letter in text.chars() {
        let separates = text::is_space(letter) || matches!(letter, '-' | '(' | '{' | '[' | '<');
        match starts && !separates {
            true => out.extend(letter.to_uppercase()),
            false => out.extend(letter.to_lowercase()),
        }
        starts = separates;
    }
    out
}

pub(super) fn capitalize(value: &Value) -> String {
    text::capitalize(&written(value))
}

pub(super) fn center(value: &Value, width: Option<usize>) -> String {
    text::padded(&written(value), width.unwrap_or(80), ' ', Padding::Both)
}

pub(super) fn wordcount(value: &Value) -> usize {
    written(value)
        .split(|letter: char| !(letter.is_alphanumeric() || letter == '_'))
        .filter(|word| !word.is_empty())
        .count()
}

pub(super) fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
) -> String {
    let indent = match width {
        Some(width) if width.as_str().is_some() => written(&width),
        Some(width) => " ".repeat(width.as_usize().unwrap_or_default()),
        None => " ".repeat(4),
    };
    text::indented(&written(value), &indent, first.unwrap_or(false), blank.unwrap_or(false))
}

/// Jinja's `format`: its values by place, or all by name.
pub(super) fn format_values(value: &Value, values: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let (text, values) = (written(value), values.into_values());
    match values.first().filter(|first| first.is_kwargs()) {
        Some(named) => percent(&text, named),
        None => percent(&text, &Value::from(Tuple::new(values))),
    }
}

/// Python's `%` of a text: a tuple is its values, a map has them by name, anything else is the only one.
pub(super) fn percent(format_text: &str, value: &Value) -> Result<String, Error> {
    let values = match value.is_tuple() {
        true => value.try_iter()?.collect(),
        false => vec![value.clone()],
    };
    // Two signs stand for one.
    let fields = format_text.replace("%%", "").matches('%').count();
    if fields < values.len() && value.kind() != ValueKind::Map {
        return Err(refused("not all arguments are used by the format".to_owned()));
    }
    format(FormatStyle::Printf, format_text, &values)
}

pub(super) fn sum(values: &Value, attribute: Option<Value>, start: Option<Value>) -> Result<Value, Error> {
    let (mut whole, mut float, mut is_float) = (0i64, 0f64, false);
    let items = values.try_iter()?.map(|item| match &attribute {
        Some(name) => item.get_item(name),
        None => Ok(item),
    });
    for item in start.into_iter().map(Ok).chain(items) {
        let item = item?;
        match i64::try_from(item.clone()) {
            Ok(number) if item.is_integer() || item.kind() == ValueKind::Bool => {
                whole =
                    whole.checked_add(number).ok_or_else(|| refused("the sum is too large".to_owned()))?;
            }
            _ => {
                float += f64::try_from(item)?;
                is_float = true;
            }
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "as Python adds a whole number to others")]
    let sum = if is_float { Value::from(whole as f64 + float) } else { Value::from(whole) };
    Ok(sum)
}

/// Jinja's `truncate`: a text that is longer than so many letters, and a few more, ends with a mark instead.
pub(super) fn truncate(
    value: &Value,
    length: Option<usize>,
    kills_words: Option<bool>,
    end: Option<Value>,
    leeway: Option<usize>,
) -> Result<Value, Error> {
    let (length, leeway) = (length.unwrap_or(255), leeway.unwrap_or(5));
    let end = end.map_or_else(|| "...".to_owned(), |end| written(&end));
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(refused(format!("truncate: {length} letters are fewer than those of its end")));
    };
    if self::length(value)? <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let Some(text) = value.as_str() else { return Err(refused(format!("{} is no text", value.kind()))) };
    let kept: String = text.chars().take(kept).collect();
    let words = match kills_words {
        Some(true) => kept.as_str(),
        _ => kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words),
    };
    Ok(Value::from(format!("{words}{end}")))
}

/// A text as a part of an address, or the pairs of a map or list as its query.
pub(super) fn urlencode(value: &Value) -> Result<String, Error> {
    let is_listed = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    if !is_listed {
        return Ok(quoted(&written(value), false));
    }
    let pair = |item: Value| {
        let (key, value) = match value.kind() {
            ValueKind::Map => (item.clone(), value.get_item(&item)?),
            _ if item.len() == Some(2) => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            _ => return Err(refused("urlencode: an item is no pair".to_owned())),
        };
        Ok(format!("{}={}", quoted(&written(&key), true), quoted(&written(&value), true)))
    };
    Ok(value.try_iter()?.map(pair).collect::<Result<Vec<_>, _>>()?.join("&"))
}

/// A text with all bytes escaped that an address, or a query, cannot have.
fn quoted(text: &str, in_query: bool) -> String {
    let hex = |digit: u8| char::from_digit(digit.into(), 16).unwrap_or_default().to_ascii_uppercase();
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            _ => out.extend(['%', hex(byte >> 4), hex(byte & 15)]),
        }
    }
    out
}

/// A number of bytes in the largest unit of which there is one.
pub(super) fn filesizeformat(value: &Value, binary: Option<bool>) -> Result<String, Error> {
    let number = match (value.kind(), value.as_str()) {
        (ValueKind::Bool, _) => Ok(f64::from(u8::from(value.is_true()))),
        (_, Some(text)) => text.trim().parse().map_err(|_| refused(format!("{text} is no number"))),
        _ => f64::try_from(value.clone()),
    }?;
    let binary = binary == Some(true);
    let base = if binary { 1024.0 } else { 1000.0 };
    if number.total_cmp(&1.0).is_eq() {
        return Ok("1 Byte".to_owned());
    }
    if number < base {
        return Ok(format!("{} Bytes", number.trunc()));
    }
    let mut unit = base;
    let mut letters = "kMGTPEZY".chars().peekable();
    while let Some(letter) = letters.next() {
        unit *= base;
        if number < unit || letters.peek().is_none() {
            let letter =
                if binary { format!("{}i", letter.to_ascii_uppercase()) } else { letter.to_string() };
            return Ok(format!("{:.1} {letter}B", base * number / unit));
        }
    }
    Err(refused(format!("{number} is no number of bytes")))
}

/// Jinja's `joiner`: nothing when it is called first, then a text.
pub(super) fn joiner(between: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let between = between.map_or_else(|| named.get::<Option<Value>>("sep"), |own| Ok(Some(own)))?;
    named.assert_all_used()?;
    Ok(minijinja_contrib::globals::joiner(between.map(|between| string(&between))))
}

/// True for what Python can go through: texts, lists, maps, and undefined values.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined()
        || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// True for values with a length and items: as [`is_iterable`], since all that is computed here is a list.
pub(super) fn is_sequence(value: &Value) -> bool {
    is_iterable(value)
}

pub(super) fn is_mapping(value: &Value) -> bool {
    value.kind() == ValueKind::Map
}

/// A function or macro; what is undefined has Python's method for calls too.
pub(super) fn is_callable(value: &Value) -> bool {
    value.is_undefined() || value.as_object().is_some() && value.kind() == ValueKind::Plain
}
