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
    if value.is_safe() {
        return value.clone();
    }
    let text = written(value).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// A whole number, or the default where there is none.
pub(super) fn int(value: &Value, default: Option<Value>) -> Value {
    let text = written(value);
    let text = text.trim_matches(text::is_space).replace('_', "");
    #[allow(clippy::cast_possible_truncation, reason = "as Python leaves out the part behind the point")]
    let whole = |number: f64| number.is_finite().then_some(number as i64);
    let parsed = match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number | ValueKind::String => {
            text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
        }
        _ => None,
    };
    parsed.map(Value::from).or(default).unwrap_or_else(|| Value::from(0))
}

/// A floating-point number, or the default where there is none.
pub(super) fn float(value: &Value, default: Option<Value>) -> Value {
    let text = written(value);
    let parsed: Option<f64> = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number | ValueKind::String => {
            text.trim_matches(text::is_space).replace('_', "").parse().ok()
        }
        _ => None,
    };
    parsed.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0))
}

pub(super) fn replace(
    value: &Value,
    old: &Value,
    new: &Value,
    count: Option<i64>,
    named: Kwargs,
) -> Result<String, Error> {
    let count = count.map_or_else(|| named.get::<Option<i64>>("count"), |count| Ok(Some(count)))?;
    named.assert_all_used()?;
    let times = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    Ok(written(value).replacen(&written(old), &written(new), times))
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
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| named.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| named.get::<Option<bool>>("first"), |first| Ok(Some(first)))?;
    let blank = blank.map_or_else(|| named.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?;
    named.assert_all_used()?;
    let indent = match width {
        Some(width) if width.as_str().is_some() => written(&width),
        Some(width) => " ".repeat(width.as_usize().unwrap_or_default()),
        None => " ".repeat(4),
    };
    Ok(text::indented(&written(value), &indent, first.unwrap_or(false), blank.unwrap_or(false)))
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

pub(super) fn sum(
    values: &Value,
    attribute: Option<Value>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let attribute = attribute.map_or_else(|| named.get::<Option<Value>>("attribute"), |own| Ok(Some(own)))?;
    let start = start.map_or_else(|| named.get::<Option<Value>>("start"), |own| Ok(Some(own)))?;
    named.assert_all_used()?;
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

/// What Python can go through: texts, lists, maps, and what is undefined.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined()
        || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// What has a length and items: as [`is_iterable`], since all that is computed here is a list.
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
