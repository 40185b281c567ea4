//! Python's methods of texts, lists and maps, as chat templates call them, each with what a call spends. Those that change
//! a value do not exist, as in the sandbox that transformers renders templates in.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::budget::{self, ESCAPED, ITEM, spend};
use super::text::{self, Padding};

/// Arguments of a call, by place or by name.
struct Arguments<'a> {
    placed: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Arguments<'a> {
    fn of(values: &'a [Value]) -> Result<Self, Error> {
        let named = values.last().filter(|last| last.is_kwargs());
        let placed = values.get(..values.len() - usize::from(named.is_some())).unwrap_or_default();
        Ok(Self { placed, named: named.map(|named| Kwargs::try_from(named.clone())).transpose()? })
    }

    fn get(&self, at: usize, name: &str) -> Result<Option<Value>, Error> {
        match (self.placed.get(at), &self.named) {
            (Some(value), _) => Ok(Some(value.clone())),
            (None, Some(named)) => named.get::<Option<Value>>(name),
            (None, None) => Ok(None),
        }
    }

    /// A text, unless it is left out or none.
    fn text(&self, at: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.get(at, name)? {
            Some(value) if value.as_str().is_some() => Ok(Some(value)),
            Some(value) if !value.is_none() => Err(refused(format!("{} is no text", value.kind()))),
            _ => Ok(None),
        }
    }

    /// A whole number, unless it is left out or none.
    fn number(&self, at: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(at, name)? {
            Some(value) if value.is_none() => Ok(None),
            Some(value) if value.is_integer() || value.kind() == ValueKind::Bool => {
                i64::try_from(value).map(Some)
            }
            Some(value) => Err(refused(format!("{} is no whole number", value.kind()))),
            None => Ok(None),
        }
    }

    /// A number of letters: a negative one is none.
    fn width(&self, at: usize, name: &str) -> Result<Option<usize>, Error> {
        Ok(self.number(at, name)?.map(|width| usize::try_from(width).unwrap_or_default()))
    }

    /// Maximum number of times that something is done: a negative number, or none, is no limit.
    fn times(&self, at: usize, name: &str) -> Result<usize, Error> {
        let times = self.number(at, name)?.unwrap_or(-1);
        Ok(usize::try_from(times).unwrap_or(usize::MAX))
    }

    /// Checks that no more is given than a method takes.
    fn end(&self, most: usize) -> Result<(), Error> {
        if self.placed.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.as_ref().map_or(Ok(()), Kwargs::assert_all_used)
    }
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn needed<T>(value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
}

/// Calls a method by which a value's text, or its items, are asked for; what it computes item by item is a list.
pub(super) fn call_listed(
    state: &mut State,
    value: &Value,
    method: &str,
    values: &[Value],
) -> Result<Value, Error> {
    let result = call(state, value, method, values)?;
    match result.kind() {
        ValueKind::Iterable => Ok(Value::from(result.try_iter()?.collect::<Vec<_>>())),
        _ => Ok(result),
    }
}

fn call(state: &mut State, value: &Value, method: &str, values: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            spend(state, weigh_text(text, method, values)?)?;
            call_on_text(text, method, values)
        }
        (None, ValueKind::Map) => {
            let own = if method == "get" { ITEM } else { budget::items(value) };
            spend(state, own.saturating_add(budget::texts(values)?))?;
            match method {
                "copy" => Ok(value.clone()),
                _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, values),
            }
        }
        (None, ValueKind::Seq) => {
            spend(state, budget::text(value)?.saturating_add(budget::texts(values)?))?;
            call_on_list(value, method, values)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn call_on_list(list: &Value, method: &str, values: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::of(values)?;
    match method {
        "copy" => Ok(list.clone()),
        "count" => {
            let item = needed(arguments.get(0, "value")?)?;
            Ok(Value::from(list.try_iter()?.filter(|other| *other == item).count()))
        }
        "index" => {
            let item = needed(arguments.get(0, "value")?)?;
            let at = list.try_iter()?.position(|other| other == item);
            at.map(Value::from).ok_or_else(|| refused("the item is not in the list".to_owned()))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Bytes that a method of a text spends: those of its input, and of what it makes beyond that.
fn weigh_text(text: &str, method: &str, values: &[Value]) -> Result<u64, Error> {
    let arguments = Arguments::of(values)?;
    let own = budget::of_text(text).saturating_add(budget::texts(values)?);
    let counted = |count: usize, each: u64| (count as u64).saturating_mul(each);
    let made = match method {
        "upper" | "lower" | "title" | "capitalize" | "swapcase" | "casefold" => counted(text.len(), ESCAPED),
        "split" | "rsplit" => match arguments.text(0, "sep")? {
            Some(separator) if separator.as_str() != Some("") => {
                counted(text.matches(separator.as_str().unwrap_or_default()).count() + 1, ITEM)
            }
            _ => counted(text.matches(text::is_space).count() + 1, ITEM),
        },
        "splitlines" => counted(text.matches(text::is_space).count() + 1, ITEM),
        "replace" => {
            let (old, new) = (arguments.text(0, "old")?, arguments.text(1, "new")?);
            let (old, new) = (old.as_ref().and_then(Value::as_str), new.as_ref().and_then(Value::as_str));
            counted(text.matches(old.unwrap_or_default()).count(), new.map_or(0, str::len) as u64)
        }
        "join" => {
            // By place only, as in Python; and so it is called.
            let items = arguments.placed.first().and_then(Value::len).unwrap_or_default();
            counted(items, text.len() as u64)
        }
        "strip" | "lstrip" | "rstrip" => {
            let letters = arguments.text(0, "chars")?;
            counted(text.len(), letters.as_ref().and_then(Value::as_str).map_or(0, str::len) as u64 / 4)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            counted(arguments.width(0, "width")?.unwrap_or_default(), size_of::<char>() as u64)
        }
        "expandtabs" => {
            let width = arguments.width(0, "tabsize")?.unwrap_or(TAB);
            counted(text.matches('\t').count(), width as u64)
        }
        "format" => formatted_bytes(text, '{', values)?,
        _ => 0,
    };
    Ok(own.saturating_add(made))
}

/// Columns of a tab.
const TAB: usize = 8;

/// Most bytes that a format makes: its numbers are widths, and each of its fields may be any of the values.
pub(super) fn formatted_bytes(format: &str, field: char, values: &[Value]) -> Result<u64, Error> {
    let widths = format.split(|sign: char| !sign.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = widths.map(|digits| digits.parse::<u64>().unwrap_or(u64::MAX));
    // A fill is a character for each column.
    let widths = widths.fold(0u64, u64::saturating_add).saturating_mul(size_of::<char>() as u64);
    let fields = format.matches(field).count() as u64;
    Ok(fields.saturating_mul(budget::texts(values)?).saturating_add(widths))
}

/// Part of a text between two positions of letters, as Python counts them, and the letters before it.
fn window<'a>(text: &'a str, arguments: &Arguments, at: usize) -> Result<Option<(&'a str, usize)>, Error> {
    let (start, end) = (arguments.number(at, "start")?, arguments.number(at + 1, "end")?);
    if (start, end) == (None, None) {
        return Ok(Some((text, 0)));
    }
    let count = text.chars().count();
    let place = |given: i64| match usize::try_from(given) {
        Ok(place) => place,
        Err(_) => count.saturating_sub(usize::try_from(given.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place).min(count));
    if start > end {
        return Ok(None);
    }
    let byte = |letter: usize| text.char_indices().nth(letter).map_or(text.len(), |(byte, _)| byte);
    Ok(text.get(byte(start)..byte(end)).map(|part| (part, start)))
}

fn list(parts: Vec<&str>) -> Value {
    Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>())
}

fn call_on_text(text: &str, method: &str, values: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::of(values)?;
    let (made, most) = match method {
        "format" => return format(FormatStyle::StrFormat, text, values).map(Value::from),
        "split" | "rsplit" => (split(text, method == "split", &arguments)?, 2),
        "partition" | "rpartition" => {
            let separator = needed(arguments.text(0, "sep")?)?;
            (partition(text, separator.as_str().unwrap_or_default(), method == "partition")?, 1)
        }
        "strip" | "lstrip" | "rstrip" => (strip(text, method, &arguments)?, 1),
        "startswith" | "endswith" => (Value::from(begins_or_ends(text, method, &arguments)?), 3),
        "find" | "rfind" | "index" | "rindex" => (find(text, method, &arguments)?, 3),
        "count" => {
            let sought = needed(arguments.text(0, "sub")?)?;
            let within = window(text, &arguments, 1)?;
            let found =
                within.map_or(0, |(part, _)| part.matches(sought.as_str().unwrap_or_default()).count());
            (Value::from(found), 3)
        }
        "join" => (join(text, needed(arguments.placed.first())?)?, 1),
        "replace" => {
            let (old, new) = (needed(arguments.text(0, "old")?)?, needed(arguments.text(1, "new")?)?);
            let times = arguments.times(2, "count")?;
            let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
            (Value::from(text.replacen(old, new, times)), 3)
        }
        "removeprefix" => {
            let prefix = needed(arguments.text(0, "prefix")?)?;
            (Value::from(text.strip_prefix(prefix.as_str().unwrap_or_default()).unwrap_or(text)), 1)
        }
        "removesuffix" => {
            let suffix = needed(arguments.text(0, "suffix")?)?;
            (Value::from(text.strip_suffix(suffix.as_str().unwrap_or_default()).unwrap_or(text)), 1)
        }
        "splitlines" => {
            let keep = arguments.get(0, "keepends")?.is_some_and(|keep| keep.is_true());
            (list(text::lines(text, keep)), 1)
        }
        "center" | "ljust" | "rjust" => {
            let width = needed(arguments.width(0, "width")?)?;
            let fill = arguments.text(1, "fillchar")?;
            let fill = fill.as_ref().and_then(Value::as_str).unwrap_or(" ");
            let mut letters = fill.chars();
            let (Some(fill), None) = (letters.next(), letters.next()) else {
                return Err(refused("the fill is not one character".to_owned()));
            };
            let padding = match method {
                "ljust" => Padding::Right,
                "rjust" => Padding::Left,
                _ => Padding::Both,
            };
            (Value::from(text::padded(text, width, fill, padding)), 2)
        }
        "zfill" => (Value::from(text::zero_filled(text, needed(arguments.width(0, "width")?)?)), 1),
        "expandtabs" => {
            let width = arguments.width(0, "tabsize")?.unwrap_or(TAB);
            (Value::from(text::without_tabs(text, width)), 1)
        }
        _ => (plain(text, method).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?, 0),
    };
    arguments.end(most)?;
    Ok(made)
}

/// Methods without arguments.
fn plain(text: &str, method: &str) -> Option<Value> {
    let all = |test: fn(char) -> bool| Value::from(!text.is_empty() && text.chars().all(test));
    let any = |test: fn(char) -> bool| text.chars().any(test);
    Some(match method {
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "title" => Value::from(text::title(text)),
        "capitalize" => Value::from(text::capitalize(text)),
        "swapcase" => Value::from(text::swap_case(text)),
        "islower" => Value::from(any(char::is_lowercase) && !any(char::is_uppercase)),
        "isupper" => Value::from(any(char::is_uppercase) && !any(char::is_lowercase)),
        "istitle" => Value::from(text::is_title(text)),
        "isspace" => all(text::is_space),
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Value::from(text.is_ascii()),
        _ => return None,
    })
}

fn split(text: &str, from_left: bool, arguments: &Arguments) -> Result<Value, Error> {
    let (separator, most) = (arguments.text(0, "sep")?, arguments.times(1, "maxsplit")?);
    let parts = match (separator.as_ref().and_then(Value::as_str), from_left) {
        (Some(""), _) => return Err(refused("the separator is empty".to_owned())),
        (Some(separator), true) => text.splitn(most.saturating_add(1), separator).collect(),
        (Some(separator), false) => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        (None, true) => text::split_spaces(text, most),
        (None, false) => text::split_spaces_from_right(text, most),
    };
    Ok(list(parts))
}

fn partition(text: &str, separator: &str, from_left: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(refused("the separator is empty".to_owned()));
    }
    let found = if from_left { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match (found, from_left) {
        (Some((before, after)), _) => [before, separator, after],
        (None, true) => [text, "", ""],
        (None, false) => ["", "", text],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn strip(text: &str, method: &str, arguments: &Arguments) -> Result<Value, Error> {
    let letters = arguments.text(0, "chars")?;
    let letters: Option<Vec<char>> =
        letters.as_ref().and_then(Value::as_str).map(|letters| letters.chars().collect());
    let strips = |letter: char| letters.as_ref().map_or(text::is_space(letter), |all| all.contains(&letter));
    let mut rest = text;
    if method != "rstrip" {
        rest = rest.trim_start_matches(strips);
    }
    if method != "lstrip" {
        rest = rest.trim_end_matches(strips);
    }
    Ok(Value::from(rest))
}

fn begins_or_ends(text: &str, method: &str, arguments: &Arguments) -> Result<bool, Error> {
    let sought = needed(arguments.get(0, "prefix")?)?;
    let Some((part, _)) = window(text, arguments, 1)? else { return Ok(false) };
    let test = |sought: &Value| match sought.as_str() {
        Some(sought) if method == "startswith" => Ok(part.starts_with(sought)),
        Some(sought) => Ok(part.ends_with(sought)),
        None => Err(refused(format!("{method} is given a {} and no text", sought.kind()))),
    };
    if sought.is_tuple() {
        return sought.try_iter()?.try_fold(false, |found, sought| Ok(test(&sought)? || found));
    }
    test(&sought)
}

fn find(text: &str, method: &str, arguments: &Arguments) -> Result<Value, Error> {
    let sought = needed(arguments.text(0, "sub")?)?;
    let sought = sought.as_str().unwrap_or_default();
    let from_left = matches!(method, "find" | "index");
    let found = window(text, arguments, 1)?.and_then(|(part, before)| {
        let at = if from_left { part.find(sought) } else { part.rfind(sought) };
        at.and_then(|at| part.get(..at)).map(|before_it| before + before_it.chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("index") => Err(refused("the text is not found".to_owned())),
        None => Ok(Value::from(-1)),
    }
}

fn join(between: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (at, item) in items.try_iter()?.enumerate() {
        if at > 0 {
            out.push_str(between);
        }
        let text = item.as_str();
        out.push_str(text.ok_or_else(|| refused(format!("item {at} is a {} and no text", item.kind())))?);
    }
    Ok(Value::from(out))
}
