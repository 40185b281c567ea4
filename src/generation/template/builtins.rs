//! Jinja's own filters, tests and functions, each with what a call spends. One that is not listed here does not exist:
//! `pprint`, `chain`, `zip` and `debug`, which are not Jinja's or whose results can be much larger than their inputs,
//! have no use in chat templates.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions, tests};

use super::budget::{self, ESCAPED, ITEM, spend};
use super::syntax::{COPIED, INDEXED, KEPT, LISTED, NESTED, TICKED, WHOLE, WRITTEN};
use super::{filters as own, methods, operators, paths, signatures, text};

/// Bytes that a call spends, by the kind of what it does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cost {
    /// Looks at the kind of a value.
    Little,
    /// Looks one item of a value up, or counts them.
    Item,
    /// As [`Self::List`], of a list in which each item is put into another.
    Nest,
    /// Makes a list of a value's items, and looks the other arguments up in each.
    List,
    /// Reads all of its arguments, and makes no more than so many times their text.
    Text(u64),
    /// Compares a value's items with each other.
    Sort,
}

/// Times that an item is compared while a list is sorted: the logarithm of the longest list, and a margin.
const COMPARED: u64 = 32;
/// Maximum number of spaces that lines are indented by.
const MAX_INDENT: usize = 100;
/// Bytes of the other arguments that are looked up in an item at the price of the item.
const LOOKED_UP: u64 = 1024;

impl Cost {
    fn of(self, values: &[Value]) -> Result<u64, Error> {
        let Some((first, others)) = values.split_first() else { return Ok(ITEM) };
        Ok(match self {
            Self::Little => ITEM.saturating_add(budget::texts(others)?),
            Self::Item => budget::indexed(first).saturating_add(budget::texts(others)?),
            Self::List | Self::Nest => {
                budget::items(first).saturating_mul(1 + budget::texts(others)? / LOOKED_UP)
            }
            Self::Text(times) => budget::texts(values)?.saturating_mul(times),
            Self::Sort => {
                budget::items(first).saturating_add(budget::texts(values)?).saturating_mul(COMPARED)
            }
        })
    }
}

/// Name, cost of a call, and function.
type Row = (&'static str, Cost, Value);

/// Rows of a table.
macro_rules! table {
    ($($cost:expr => $($name:literal $function:path),+;)+) => {
        vec![$($(($name, $cost, Value::from_function($function)),)+)+]
    };
}

/// The filters that are listed here.
pub(super) fn filters() -> Vec<Row> {
    table! {
        Cost::Little => "default" filters::default, "d" filters::default, "abs" filters::abs, "bool" filters::bool;
        Cost::Item => "length" own::length, "count" own::length, "attr" filters::attr,
            "first" filters::first, "last" filters::last;
        Cost::Nest => "map" filters::map;
        Cost::List => "list" filters::list, "items" filters::items, "select" filters::select,
            "reject" filters::reject, "selectattr" filters::selectattr, "rejectattr" filters::rejectattr,
            "batch" filters::batch, "slice" filters::slice;
        Cost::Text(1) => "safe" filters::safe, "trim" filters::trim, "join" filters::join, "split" filters::split,
            "lines" filters::lines, "round" filters::round, "int" own::int, "float" own::float,
            "string" own::string, "reverse" filters::reverse, "replace" own::replace, "indent" own::indent,
            "format" own::format_values, "center" own::center, "wordcount" own::wordcount, "sum" own::sum,
            "truncate" own::truncate, "filesizeformat" own::filesizeformat;
        Cost::Text(ESCAPED) => "escape" own::escape, "e" own::escape, "forceescape" own::forceescape,
            "urlencode" own::urlencode, "lower" filters::lower,
            "upper" filters::upper, "title" own::title, "capitalize" own::capitalize;
        Cost::Sort => "sort" filters::sort, "unique" filters::unique, "min" filters::min, "max" filters::max,
            "groupby" filters::groupby, "dictsort" filters::dictsort;
    }
}

/// The tests that are listed here.
pub(super) fn tests() -> Vec<Row> {
    table! {
        Cost::Little => "undefined" tests::is_undefined, "defined" tests::is_defined, "none" tests::is_none,
            "safe" tests::is_safe, "escaped" tests::is_safe, "boolean" tests::is_boolean, "odd" tests::is_odd,
            "even" tests::is_even, "divisibleby" tests::is_divisibleby, "number" tests::is_number,
            "integer" tests::is_integer, "int" tests::is_integer, "float" tests::is_float,
            "string" tests::is_string, "sequence" own::is_sequence, "iterable" own::is_iterable,
            "mapping" own::is_mapping, "callable" own::is_callable, "true" tests::is_true, "false" tests::is_false, "filter" tests::is_filter,
            "test" tests::is_test;
        Cost::Text(1) => "startingwith" tests::is_startingwith, "endingwith" tests::is_endingwith,
            "lower" tests::is_lower, "upper" tests::is_upper, "sameas" tests::is_sameas, "in" tests::is_in,
            "eq" tests::is_eq, "equalto" tests::is_eq, "==" tests::is_eq,
            "ne" tests::is_ne, "!=" tests::is_ne,
            "lt" tests::is_lt, "lessthan" tests::is_lt, "<" tests::is_lt,
            "le" tests::is_le, "<=" tests::is_le,
            "gt" tests::is_gt, "greaterthan" tests::is_gt, ">" tests::is_gt,
            "ge" tests::is_ge, ">=" tests::is_ge;
    }
}

/// Adds everything that is listed here, and the filters that the rewriting inserts.
pub(super) fn add(environment: &mut Environment) {
    for (name, cost, function) in filters() {
        environment.add_filter(name, move |state: &mut State, values: Rest<ValueOrKwargs>| {
            let values = signatures::arranged(name, values.into_values())?;
            spend(state, paths::check(name, &values)?)?;
            spend(state, cost.of(&values)?)?;
            spend(state, result_of(name, &values)?)?;
            let result = function.call(state, &values).and_then(listed)?;
            if matches!(cost, Cost::Nest) || name == "groupby" {
                spend(state, budget::check_levels(&result)?)?;
            }
            Ok::<_, Error>(result)
        });
    }
    for (name, cost, function) in tests() {
        environment.add_test(name, move |state: &mut State, values: Rest<ValueOrKwargs>| {
            let values = values.into_values();
            spend(state, cost.of(&values)?)?;
            function.call(state, &values).map(|answer| answer.is_true())
        });
    }
    let functions = table! {
        Cost::Text(1) => "range" functions::range, "joiner" own::joiner;
        Cost::Nest => "dict" functions::dict, "namespace" functions::namespace;
    };
    for (name, cost, function) in functions {
        environment.add_function(name, move |state: &mut State, values: Rest<ValueOrKwargs>| {
            let values = values.into_values();
            spend(state, cost.of(&values)?)?;
            let result = function.call(state, &values)?;
            if matches!(cost, Cost::Nest) {
                spend(state, budget::check_levels(&result)?)?;
            }
            Ok::<_, Error>(result)
        });
    }
    add_operators(environment);
}

/// The filters that the rewriting inserts.
fn add_operators(environment: &mut Environment) {
    environment.add_filter(WHOLE, |state: &mut State, value: Value| {
        spend(state, budget::text(&value)?)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(COPIED, |state: &mut State, value: Value| {
        if value.is_none() {
            return Err(Error::new(ErrorKind::InvalidOperation, "none has no items"));
        }
        spend(state, budget::copy(&value))?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(LISTED, |state: &mut State, value: Value| {
        spend(state, budget::copy(&value))?;
        listed(value)
    });
    environment.add_filter(KEPT, |state: &mut State, value: Value| {
        spend(state, budget::check_holds_no_scope(&value)?)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(NESTED, |state: &mut State, value: Value| {
        spend(state, budget::check_levels(&value)?)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(INDEXED, |state: &mut State, value: Value| {
        spend(state, budget::indexed(&value))?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(TICKED, |state: &mut State, value: Value| {
        spend(state, ITEM)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(WRITTEN, |state: &mut State, value: Value| {
        spend(state, budget::text(&value)?)?;
        Ok::<_, Error>(own::string(&value))
    });
    operators::add(environment);
}

/// A list of what is computed item by item; any other value as it is.
pub(super) fn listed(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
        _ => Ok(value),
    }
}

/// Bytes of what a filter makes of its values, as they are arranged, beyond their own text.
fn result_of(name: &str, values: &[Value]) -> Result<u64, Error> {
    let written = |at: usize| values.get(at).map(Value::to_string).unwrap_or_default();
    let counted = |count: usize, each: u64| Ok((count as u64).saturating_mul(each));
    let number = |at: usize| values.get(at).and_then(Value::as_usize);
    match (name, values) {
        ("split", [_, separator, ..]) if !separator.is_none() => {
            counted(written(0).matches(&written(1)).count() + 1, ITEM)
        }
        ("split", [..]) => counted(written(0).matches(char::is_whitespace).count() + 1, ITEM),
        ("lines", [..]) => counted(written(0).matches('\n').count() + 1, ITEM),
        ("indent", [_, options @ ..]) => {
            let width = number(1).unwrap_or(4);
            if width > MAX_INDENT {
                let reason = format!("indent: the width is above {MAX_INDENT}");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
            let each = budget::texts(options)?.saturating_add(width as u64);
            counted(written(0).matches(text::is_space).count() + 1, each)
        }
        ("format", [_, others @ ..]) => methods::formatted_bytes(&written(0), '%', others),
        ("center", [..]) => Ok(number(1).unwrap_or(80) as u64),
        ("batch" | "slice", [list, ..]) => {
            let count = number(1).unwrap_or_default();
            counted(count.saturating_add(list.len().unwrap_or_default()), ITEM)
        }
        // Its own way to write numbers, as the filter itself.
        ("replace", [text, from, to, ..]) => {
            let found = own::written(text).matches(&own::written(from)).count();
            counted(found, own::written(to).len() as u64)
        }
        ("join", [list, between @ ..]) => counted(list.len().unwrap_or_default(), budget::texts(between)?),
        ("trim", [_, letters, ..]) => counted(written(0).len(), letters.to_string().len() as u64 / 4),
        _ => Ok(0),
    }
}
