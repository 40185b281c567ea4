//! Functions that chat templates call besides Jinja's own: those that transformers adds. Values are written as Python
//! writes them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize as _;
use serde_json::ser::Formatter;

use super::budget::{self, spend};
use super::limits::LimitedWriter;
use super::{clock, filters, methods, text};

/// Maximum number of bytes that `tojson` writes.
const MAX_JSON_BYTES: usize = 8 << 20;
/// Maximum number of letters that a level of JSON is indented by, and of a separator.
const MAX_INDENT: usize = 16;

/// Adds the functions and filters that transformers has besides Jinja's own.
pub(super) fn add(environment: &mut Environment) {
    environment.set_unknown_method_callback(methods::call_listed);
    environment.set_formatter(write_as_python);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |state: &mut State, message: Value| -> Result<Value, Error> {
            spend(state, budget::text(&message)?)?;
            Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
        },
    );
    environment.add_function("strftime_now", |state: &mut State, format: Value| {
        spend(state, budget::text(&format)?.saturating_mul(clock::FIELD_BYTES))?;
        Ok::<_, Error>(clock::now(&format.to_string()))
    });
}

/// `None`, `True` and `False`, where minijinja would write them small.
fn write_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    spend(state, budget::text(value)?)?;
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::Number | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            return out.write_str(&filters::written(value)).map_err(Error::from);
        }
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// Python's `json.dumps` as transformers calls it, which escapes nothing for HTML.
fn to_json(
    state: &mut State,
    value: Value,
    ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    spend(state, budget::text(&value)?)?;
    let ascii = ascii.map_or_else(|| options.get("ensure_ascii"), |ascii| Ok(Some(ascii)))?;
    let indent = indent.map_or_else(|| options.get("indent"), |indent| Ok(Some(indent)))?;
    let separators: Option<Value> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let invalid = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(&indent)).transpose()?;
    let [between, after_key] = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => [separator(&separators, 0)?, separator(&separators, 1)?],
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
    };
    let value = if sorted == Some(true) { with_sorted_keys(&value)? } else { value };
    let mut out = LimitedWriter::new(MAX_JSON_BYTES);
    let layout =
        PythonLayout { indent, between, after_key, ascii: ascii == Some(true), depth: 0, has_value: false };
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, layout);
    if holds_undefined(&value)? {
        return Err(invalid("what is undefined is no JSON".to_owned()));
    }
    value.serialize(&mut serializer).map_err(|error| invalid(error.to_string()))?;
    let out = out.into_bytes();
    spend(state, out.len() as u64)?;
    String::from_utf8(out).map(Value::from).map_err(|error| invalid(error.to_string()))
}

/// The spaces, or the text, that a level is indented by.
fn indentation(indent: &Value) -> Result<String, Error> {
    let indent = match (indent.as_str(), indent.as_usize()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(width)) if width <= MAX_INDENT => " ".repeat(width),
        _ => String::new(),
    };
    if indent.is_empty() || indent.len() > MAX_INDENT {
        let reason = format!("tojson: the indent is not between 1 and {MAX_INDENT}");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok(indent)
}

/// One of the two separators, a short text.
fn separator(separators: &Value, at: usize) -> Result<String, Error> {
    let separator = separators.get_item_by_index(at)?;
    let text = separator.as_str().filter(|text| text.len() <= MAX_INDENT);
    let reason = "tojson: the separators are no two short texts";
    text.map(str::to_owned).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, reason))
}

/// The same with the keys of all maps in order. The value is no deeper than values are.
fn with_sorted_keys(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            keys.sort();
            let pair = |key: Value| Ok((key.clone(), with_sorted_keys(&value.get_item(&key)?)?));
            Ok(Value::from_pairs(keys.into_iter().map(pair).collect::<Result<Vec<_>, Error>>()?))
        }
        ValueKind::Seq => value.try_iter()?.map(|item| with_sorted_keys(&item)).collect::<Result<_, _>>(),
        _ => Ok(value.clone()),
    }
}

/// True if a value is undefined, or one in it.
fn holds_undefined(value: &Value) -> Result<bool, Error> {
    let mut items = match value.kind() {
        ValueKind::Undefined => return Ok(true),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => value.try_iter()?,
        _ => return Ok(false),
    };
    let is_map = value.kind() == ValueKind::Map;
    items.try_fold(false, |found, item| {
        let item = if is_map { value.get_item(&item)? } else { item };
        Ok(found || holds_undefined(&item)?)
    })
}

/// Spaces and lines as `json.dumps` sets them.
struct PythonLayout {
    indent: Option<String>,
    between: String,
    after_key: String,
    /// Letters beyond ASCII are escaped.
    ascii: bool,
    depth: usize,
    has_value: bool,
}

impl PythonLayout {
    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }

    fn begin<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, sign: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        writer.write_all(sign)
    }

    fn end<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, sign: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.line(writer)?;
        }
        self.has_value = true;
        writer.write_all(sign)
    }

    fn next<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            writer.write_all(self.between.as_bytes())?;
        }
        self.line(writer)
    }
}

impl Formatter for PythonLayout {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.after_key.as_bytes())
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, number: f64) -> std::io::Result<()> {
        writer.write_all(text::float(number).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        fragment.chars().try_for_each(|letter| match matches!(letter, ' '..='~') {
            true => write!(writer, "{letter}"),
            false => {
                letter.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))
            }
        })
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}
