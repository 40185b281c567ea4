//! Jinja's own filters, tests and functions, each with what a call spends. One that is not listed here does not exist:
//! `format`, `sum`, `pprint`, `batch`, `slice`, `chain`, `zip` and `debug`, whose results can be much larger
//! than their inputs or which are not Jinja's, have no use in chat templates.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, context, filters, functions, tests};

use super::budget::{self, ESCAPED, ITEM, spend};
use super::paths;
use super::syntax::{COPIED, EQUAL, INDEXED, KEPT, LISTED, NESTED, TICKED, TIMES, WHOLE};

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
/// Most spaces that lines are indented by.
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
        Cost::Item => "length" filters::length, "count" filters::length, "attr" filters::attr,
            "first" filters::first, "last" filters::last;
        Cost::Nest => "map" filters::map;
        Cost::List => "list" filters::list, "items" filters::items, "select" filters::select,
            "reject" filters::reject, "selectattr" filters::selectattr, "rejectattr" filters::rejectattr;
        Cost::Text(1) => "safe" filters::safe, "trim" filters::trim, "join" filters::join, "split" filters::split,
            "lines" filters::lines, "round" filters::round, "int" filters::int, "float" filters::float,
            "string" filters::string, "reverse" filters::reverse, "replace" filters::replace, "indent" filters::indent;
        Cost::Text(ESCAPED) => "escape" filters::escape, "e" filters::escape, "lower" filters::lower,
            "upper" filters::upper, "title" filters::title, "capitalize" filters::capitalize;
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
            "string" tests::is_string, "sequence" tests::is_sequence, "iterable" tests::is_iterable,
            "mapping" tests::is_mapping, "true" tests::is_true, "false" tests::is_false, "filter" tests::is_filter,
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
            let values = values.into_values();
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
        Cost::Text(1) => "range" functions::range;
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
    environment.add_filter(EQUAL, |state: &mut State, left: Value, right: Value| {
        spend(state, budget::smaller_text(&left, &right)?)?;
        Ok::<_, Error>(left == right)
    });
    environment.add_filter(TIMES, |state: &mut State, left: Value, right: Value| {
        let repeated = |value: &Value, times: &Value| {
            times.as_usize().map_or(0, |times| budget::copy(value).saturating_mul(times as u64))
        };
        let numbers = left.is_number() && right.is_number();
        let cost = if numbers { ITEM } else { repeated(&left, &right).max(repeated(&right, &left)) };
        spend(state, cost)?;
        state.env().compile_expression("left * right")?.eval(context! { left, right }).and_then(listed)
    });
}

/// A list of what is computed item by item; any other value as it is.
pub(super) fn listed(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
        _ => Ok(value),
    }
}

/// Bytes of what a filter, or Python's method of the same name, makes of its values beyond their own text.
pub(super) fn result_of(name: &str, values: &[Value]) -> Result<u64, Error> {
    let written = |at: usize| values.get(at).map(Value::to_string).unwrap_or_default();
    let counted = |count: usize, each: u64| Ok((count as u64).saturating_mul(each));
    match (name, values) {
        ("split", [_, separator, ..]) if !separator.is_none() => {
            counted(written(0).matches(&written(1)).count() + 1, ITEM)
        }
        ("split", [..]) => counted(written(0).matches(char::is_whitespace).count() + 1, ITEM),
        ("lines" | "splitlines", [..]) => counted(written(0).matches('\n').count() + 1, ITEM),
        ("indent", [_, options @ ..]) => {
            let named = options.last().filter(|last| last.is_kwargs());
            let named = named.map(|options| options.get_attr("width")).transpose()?;
            let widths = [options.first(), named.as_ref()].into_iter().flatten();
            let width = widths.filter_map(Value::as_usize).max();
            let width = width.unwrap_or_default();
            if width > MAX_INDENT {
                let reason = format!("indent: the width is above {MAX_INDENT}");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
            counted(written(0).matches('\n').count() + 1, width as u64)
        }
        ("replace", [_, _, to, ..]) => {
            counted(written(0).matches(&written(1)).count(), to.to_string().len() as u64)
        }
        ("join", [list, between @ ..]) => counted(list.len().unwrap_or_default(), budget::texts(between)?),
        ("trim" | "strip" | "lstrip" | "rstrip", [_, letters, ..]) => {
            counted(written(0).len(), letters.to_string().len() as u64 / 4)
        }
        _ => Ok(0),
    }
}

/// Calls one of Python's methods, by which a value's text, or its items, are asked for.
pub(super) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let mut values: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
    let cost = match (value.kind(), method) {
        (ValueKind::String, "format") => return Err(Error::from(ErrorKind::UnknownMethod)),
        (ValueKind::String, "upper" | "lower" | "title" | "capitalize") => Cost::Text(ESCAPED),
        (ValueKind::Map, "items" | "keys" | "values") => Cost::List,
        (ValueKind::Map, "get") => Cost::Text(1),
        (ValueKind::String | ValueKind::Seq, _) => Cost::Text(1),
        _ => Cost::Little,
    };
    match (value.kind(), method) {
        // The map is not read through for one of its items.
        (ValueKind::Map, "get") => spend(state, cost.of(&values[1..])?)?,
        _ => spend(state, cost.of(&values)?)?,
    }
    if value.kind() == ValueKind::String {
        // The method is called on the separator, the filter on the list.
        if method == "join" {
            values.rotate_left(1);
        }
        spend(state, result_of(method, &values)?)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments).and_then(listed)
}
