//! Attributes that filters look up in each item of a list, as paths of parts and several of them. minijinja goes through
//! the path again for each item, and its price would be that of the list alone.

use minijinja::{Error, ErrorKind, Value};

use super::budget;

/// Maximum number of bytes of the paths of one call; published templates name one attribute.
const MAX_BYTES: usize = 256;
/// Maximum number of parts of all paths of one call.
const MAX_PARTS: usize = 16;
/// Maximum number of paths of one call.
const MAX_PATHS: usize = 8;

/// Checks the paths that a filter's arguments name. Tells what it costs to find positions in the items, which are counted
/// from the first.
///
/// # Errors
/// A path is no text or number, or there is too much of it; or as [`budget::text`].
pub(super) fn check(filter: &str, values: &[Value]) -> Result<u64, Error> {
    let named = values.last().filter(|last| last.is_kwargs());
    let named = named.map(|options| options.get_attr("attribute")).transpose()?;
    let place = match filter {
        "selectattr" | "rejectattr" | "groupby" => Some(1),
        "join" => Some(2),
        _ => None,
    };
    let placed = place.and_then(|place| values.get(place)).filter(|value| !value.is_kwargs());
    let mut cost = 0u64;
    for path in [named.as_ref(), placed].into_iter().flatten() {
        cost = cost.saturating_add(check_path(path, values)?);
    }
    Ok(cost)
}

fn check_path(path: &Value, values: &[Value]) -> Result<u64, Error> {
    let refused = |reason: String| Err(Error::new(ErrorKind::InvalidOperation, reason));
    let Some(text) = path.as_str() else {
        return match path {
            number if number.is_number() => values.first().map_or(Ok(0), budget::text),
            none if none.is_none() || none.is_undefined() => Ok(0),
            other => refused(format!("an attribute is a {} and no text", other.kind())),
        };
    };
    let parts = || text.split(['.', ',']);
    let (paths, count) = (text.split(',').count(), parts().count());
    if text.len() > MAX_BYTES || count > MAX_PARTS || paths > MAX_PATHS {
        return refused(format!(
            "an attribute has more than {MAX_BYTES} bytes, {MAX_PARTS} parts or {MAX_PATHS} paths"
        ));
    }
    match parts().any(|part| part.trim().parse::<usize>().is_ok()) {
        true => Ok(values.first().map_or(Ok(0), budget::text)?.saturating_mul(count as u64)),
        false => Ok(0),
    }
}
