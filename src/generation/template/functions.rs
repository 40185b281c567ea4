//! Functions that chat templates call besides Jinja's own: those that transformers adds. Values are written as Python
//! writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize as _;
use serde_json::ser::Formatter;

use super::budget::{self, spend};
use super::builtins;
use super::limits::LimitedWriter;

/// Most bytes that `tojson` writes.
const MAX_JSON_BYTES: usize = 8 << 20;
/// Bytes that a letter of a format of time becomes at most.
const FIELD_BYTES: u64 = 5;

/// Adds the functions and filters that transformers has besides Jinja's own.
pub(super) fn add(environment: &mut Environment) {
    environment.set_unknown_method_callback(builtins::call_method);
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
        spend(state, budget::text(&format)?.saturating_mul(FIELD_BYTES))?;
        Ok::<_, Error>(format_time(&format.to_string(), seconds_now()))
    });
}

/// `None`, `True` and `False`, where minijinja would write them small.
fn write_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    spend(state, budget::text(value)?)?;
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// Python's `json.dumps` as transformers calls it, which escapes nothing for HTML.
fn to_json(state: &mut State, value: Value, options: Kwargs) -> Result<Value, Error> {
    spend(state, budget::text(&value)?)?;
    let indent: Option<usize> = options.get("indent")?;
    // Accepted, and at the value that transformers gives it.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 16) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is above 16"));
    }
    let mut out = LimitedWriter::new(MAX_JSON_BYTES);
    let layout = PythonLayout { indent, depth: 0, has_value: false };
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, layout);
    let invalid = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    value.serialize(&mut serializer).map_err(|error| invalid(error.to_string()))?;
    let out = out.into_bytes();
    spend(state, out.len() as u64)?;
    String::from_utf8(out).map(Value::from).map_err(|error| invalid(error.to_string()))
}

/// Spaces and lines as `json.dumps` sets them.
struct PythonLayout {
    indent: Option<usize>,
    depth: usize,
    has_value: bool,
}

impl PythonLayout {
    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        write!(writer, "\n{:width$}", "", width = indent * self.depth)
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
            writer.write_all(if self.indent.is_some() { b"," } else { b", " })?;
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
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Python's `strftime` in UTC, as far as templates use it; other signs stay as they are.
fn format_time(format: &str, seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let weekday = DAYS[days.rem_euclid(7) as usize];
    let name = MONTHS[month as usize - 1];
    let hour12 = (hour + 11) % 12 + 1;
    let (mut out, mut letters) = (String::new(), format.chars());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(&name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{hour12:02}")),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day after 1 January 1970, in the Gregorian calendar. Years are counted from
/// March, so that the leap day is the last of its year.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let day = |seconds| format_time("%Y-%m-%d %a %H:%M:%S %I %p %b %y %%", seconds);
        assert_eq!(day(0), "1970-01-01 Thu 00:00:00 12 AM Jan 70 %");
        assert_eq!(day(951_782_400), "2000-02-29 Tue 00:00:00 12 AM Feb 00 %");
        assert_eq!(day(1_767_225_599), "2025-12-31 Wed 23:59:59 11 PM Dec 25 %");
        assert_eq!(format_time("%d %B %Y, %A", 1_709_164_800), "29 February 2024, Thursday");
    }
}
