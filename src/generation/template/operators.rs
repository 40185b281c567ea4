//! Operators that the rewriting of templates turns into filters, since they can make much of little, or mean another
//! thing for Python's values than for minijinja's.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};

use super::budget::{self, ITEM, spend};
use super::syntax::{EQUAL, METHOD, ORDERED, PART, REST, TIMES};
use super::{filters, methods};

pub(super) fn add(environment: &mut Environment) {
    add_lookups(environment);
    environment.add_filter(EQUAL, |state: &mut State, left: Value, right: Value| {
        spend(state, budget::smaller_text(&left, &right)?)?;
        Ok::<_, Error>(left == right)
    });
    environment.add_filter(TIMES, |state: &mut State, left: Value, right: Value| {
        match (times(&left), times(&right)) {
            (_, Some(count)) if is_repeated(&left) => repeated(state, &left, count),
            (Some(count), _) if is_repeated(&right) => repeated(state, &right, count),
            _ => {
                spend(state, ITEM)?;
                state.env().compile_expression("left * right")?.eval(context! { left, right })
            }
        }
    });
    environment.add_filter(REST, |state: &mut State, left: Value, right: Value| match left.as_str() {
        Some(format) => {
            let values = std::slice::from_ref(&right);
            let cost = budget::text(&left)?.saturating_add(budget::text(&right)?);
            spend(state, cost.saturating_add(methods::formatted_bytes(format, '%', values)?))?;
            filters::percent(format, &right).map(Value::from)
        }
        None => {
            spend(state, ITEM)?;
            state.env().compile_expression("left % right")?.eval(context! { left, right })
        }
    });
    environment.add_filter(ORDERED, |state: &mut State, left: Value, right: Value, operator: &str| {
        spend(state, budget::text(&left)?.saturating_add(budget::text(&right)?))?;
        let both = |is: fn(&Value) -> bool| is(&left) && is(&right);
        let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
        let list = |value: &Value| value.kind() == ValueKind::Seq;
        if !(both(number) || both(|value| value.as_str().is_some()) || both(list)) {
            let reason = format!("a {} is not {operator} a {}", left.kind(), right.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        Ok(match operator {
            "<" => left < right,
            "<=" => left <= right,
            ">" => left > right,
            _ => left >= right,
        })
    });
}

/// A method that is asked for and not called.
#[derive(Debug)]
struct Method;

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

fn add_lookups(environment: &mut Environment) {
    environment.add_filter(METHOD, |state: &mut State, value: Value, name: &str| {
        spend(state, ITEM)?;
        let named = value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"));
        if value.kind() == ValueKind::Map && !named {
            return Ok(Value::from_object(Method));
        }
        value.get_attr(name)
    });
    environment.add_filter(
        PART,
        |state: &mut State, value: Value, start: Value, stop: Value, step: Value| {
            spend(state, budget::copy(&value).saturating_add(budget::items(&value)))?;
            let letters = value.as_str().map(|text| text.chars().collect::<Vec<_>>());
            let count = letters.as_ref().map(Vec::len).or(value.len()).unwrap_or_default();
            let places = places(count, position(&start)?, position(&stop)?, position(&step)?)?;
            if let Some(letters) = letters {
                return Ok(places.filter_map(|at| letters.get(at)).collect::<String>().into());
            }
            if value.kind() != ValueKind::Seq && value.kind() != ValueKind::Iterable {
                let reason = format!("a {} has no parts", value.kind());
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
            let items: Vec<Value> = value.try_iter()?.collect();
            let part: Vec<Value> = places.filter_map(|at| items.get(at)).cloned().collect();
            Ok(if value.is_tuple() { Value::from(Tuple::new(part)) } else { Value::from(part) })
        },
    );
}

/// A position in a slice: nothing where it is left out.
fn position(value: &Value) -> Result<Option<i64>, Error> {
    if value.is_none() || value.is_undefined() {
        return Ok(None);
    }
    let refused = || Error::new(ErrorKind::InvalidOperation, "a position is no whole number");
    if !value.is_integer() && value.kind() != ValueKind::Bool {
        return Err(refused());
    }
    i64::try_from(value.clone()).map(Some).map_err(|_| refused())
}

/// Places of a slice among so many items, as Python counts them.
fn places(
    count: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<impl Iterator<Item = usize>, Error> {
    let (count, step) = (i64::try_from(count).unwrap_or(i64::MAX), step.unwrap_or(1));
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "the step of a slice is zero"));
    }
    let forward = step > 0;
    let (least, most) = if forward { (0, count) } else { (-1, count - 1) };
    let within = |given: Option<i64>, default| match given {
        Some(at) if at < 0 => at.saturating_add(count).clamp(least, most),
        Some(at) => at.clamp(least, most),
        None => default,
    };
    let first = within(start, if forward { least } else { most });
    let end = within(stop, if forward { most } else { least });
    let inside = move |at: &i64| if forward { *at < end } else { *at > end };
    let places = std::iter::successors(Some(first), move |at| at.checked_add(step));
    Ok(places.take_while(inside).filter_map(|at| usize::try_from(at).ok()))
}

/// True for values that multiplication repeats.
fn is_repeated(value: &Value) -> bool {
    value.as_str().is_some() || value.kind() == ValueKind::Seq
}

/// How often a whole number repeats what it multiplies: a negative one never does.
fn times(number: &Value) -> Option<usize> {
    if !(number.is_integer() || number.kind() == ValueKind::Bool) {
        return None;
    }
    Some(i64::try_from(number.clone()).map_or(usize::MAX, |times| usize::try_from(times).unwrap_or_default()))
}

fn repeated(state: &mut State, value: &Value, times: usize) -> Result<Value, Error> {
    spend(state, budget::copy(value).saturating_mul(times as u64))?;
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let all: Vec<Value> = std::iter::repeat_n(&items, times).flatten().cloned().collect();
    Ok(if value.is_tuple() { Value::from(Tuple::new(all)) } else { Value::from(all) })
}
