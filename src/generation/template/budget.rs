//! Budget of what a template handles while it renders. minijinja's fuel counts steps, but a step that doubles a text,
//! lists its letters or sorts them costs no more fuel than another. So each step that reads or makes a value of more
//! than constant size first spends what the value counts for; that bounds memory and time.

use std::time::Instant;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use crate::large_stack::MAX_TIME;

/// Maximum number of bytes that a template may handle in all; a prompt has at most 4 MiB and is handled a few times.
const MAX_HANDLED: u64 = 256 << 20;
/// Bytes that each value counts for besides its text.
const PART: u64 = 16;
/// Bytes that an item of a list or map counts for where a list or map is made or read through.
pub(super) const ITEM: u64 = 64;
/// Bytes that a number takes at most when it is written: all digits of the largest 64-bit float.
const NUMBER: u64 = 330;
/// Times that a text becomes longer at most when it is quoted or escaped.
pub(super) const ESCAPED: u64 = 6;
/// Most nested lists and maps of a value that is read through.
const MAX_DEPTH: usize = 64;

/// Holds the rest of the budget of the render that a state belongs to.
struct Budget {
    left: u64,
    ends: Instant,
}

/// Spends bytes of the render's budget.
///
/// # Errors
/// The budget or the time for the render is used up.
pub(super) fn spend(state: &mut State, bytes: u64) -> Result<(), Error> {
    let start = || Budget { left: MAX_HANDLED, ends: Instant::now() + MAX_TIME };
    let budget = state.get_or_insert_extension_with(start);
    if Instant::now() > budget.ends {
        let reason = format!("it took longer than {} s", MAX_TIME.as_secs());
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    budget.left = budget.left.checked_sub(bytes).ok_or_else(too_much)?;
    Ok(())
}

/// Error about the budget of bytes, which is not that of steps.
fn too_much() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("it handled more than {MAX_HANDLED} bytes on its way"))
}

/// Upper bound of the bytes that a value takes when it is written, and of the work of reading all of it.
///
/// # Errors
/// They are more than any budget, or the value is too deep.
pub(super) fn text(value: &Value) -> Result<u64, Error> {
    text_within(value, MAX_HANDLED)
}

fn text_within(value: &Value, most: u64) -> Result<u64, Error> {
    let mut left = most;
    weigh(value, &mut left, 1, MAX_DEPTH)?;
    Ok(most - left)
}

/// As [`text`], of the smaller of two values, which is all that is read where they are compared for equality. The larger
/// is not read for it either.
///
/// # Errors
/// As [`text`], of both.
pub(super) fn smaller_text(left: &Value, right: &Value) -> Result<u64, Error> {
    let mut most = ITEM;
    loop {
        let found = text_within(left, most).or_else(|_| text_within(right, most));
        if found.is_ok() || most >= MAX_HANDLED {
            return found;
        }
        most = (most * 8).min(MAX_HANDLED);
    }
}

/// As [`text`], of several values together.
///
/// # Errors
/// As [`text`].
pub(super) fn texts(values: &[Value]) -> Result<u64, Error> {
    values.iter().try_fold(0u64, |sum, value| Ok(sum.saturating_add(text(value)?)))
}

fn weigh(value: &Value, left: &mut u64, escaped: u64, depth: usize) -> Result<(), Error> {
    let own = match value.kind() {
        ValueKind::String => PART + escaped * value.as_str().map_or(0, str::len) as u64,
        ValueKind::Number => NUMBER,
        _ => PART,
    };
    *left = left.checked_sub(own).ok_or_else(too_much)?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    for item in value.try_iter()? {
        weigh(&item, left, ESCAPED, depth)?;
        if value.kind() == ValueKind::Map {
            weigh(&value.get_item(&item)?, left, ESCAPED, depth)?;
        }
    }
    Ok(())
}

/// Bytes that a copy of a value takes: those of a text, or a reference for each item.
pub(super) fn copy(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => PART + text.len() as u64,
        None => items(value),
    }
}

/// Bytes that a text counts for.
pub(super) fn of_text(text: &str) -> u64 {
    PART + text.len() as u64
}

/// Bytes that a list of a value's items takes: of a text, a list of its letters.
pub(super) fn items(value: &Value) -> u64 {
    let count = match (value.kind(), value.as_str()) {
        (_, Some(text)) => text.len(),
        // All that is made here knows its length.
        (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map, None) => value.len().unwrap_or(usize::MAX),
        _ => 0,
    };
    PART.saturating_add((count as u64).saturating_mul(ITEM))
}

/// Bytes that are gone over to find an item: letters of a text, or items where they are computed one by one.
pub(super) fn indexed(value: &Value) -> u64 {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => PART + text.len() as u64,
        (ValueKind::Iterable, None) => items(value),
        _ => ITEM,
    }
}

/// Refuses a list or map with too many levels, which would take as much stack to drop, hash or compare. Tells what
/// looking through it costs.
///
/// # Errors
/// As said, or there is more in it than any budget.
pub(super) fn check_levels(value: &Value) -> Result<u64, Error> {
    scanned(value, ITEM, |_| Ok(()))
}

/// Refuses a value that holds a namespace or a loop, for which alone a name in it could stand for the value itself: such
/// a circle would never be freed.
///
/// # Errors
/// As said, or as [`text`].
pub(super) fn check_holds_no_scope(value: &Value) -> Result<u64, Error> {
    scanned(value, PART, |value| {
        let Some(object) = value.as_object() else { return Ok(()) };
        if ["Namespace", "Loop"].iter().any(|scope| object.type_name().ends_with(scope)) {
            let reason = "a namespace or a loop is kept in a namespace";
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        Ok(())
    })
}

/// Checks a value and all in it, each for so many bytes. Tells what that costs.
fn scanned(value: &Value, each: u64, check: fn(&Value) -> Result<(), Error>) -> Result<u64, Error> {
    let mut left = MAX_HANDLED;
    scan(value, MAX_DEPTH, &mut |value| {
        left = left.checked_sub(each).ok_or_else(too_much)?;
        check(value)
    })?;
    Ok(MAX_HANDLED - left)
}

fn scan(
    value: &Value,
    depth: usize,
    visit: &mut impl FnMut(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    visit(value)?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    for item in value.try_iter()? {
        if value.kind() == ValueKind::Map {
            scan(&value.get_item(&item)?, depth, visit)?;
        }
        scan(&item, depth, visit)?;
    }
    Ok(())
}

/// Error about a value's levels.
fn too_deep() -> Error {
    let reason = format!("a value has more than {MAX_DEPTH} levels in each other");
    Error::new(ErrorKind::InvalidOperation, reason)
}
