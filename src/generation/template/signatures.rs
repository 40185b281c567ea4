//! Parameters of Jinja's filters, as Jinja2 names and orders them. A call's arguments, by place or by name, are brought into
//! the one form that the filter takes before its price is asked, so that what is priced is what is computed.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// How a filter takes its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Placed,
    Named,
}

/// Parameters besides the value itself. A filter that is not listed takes its arguments as they are.
fn parameters(filter: &str) -> Option<(Form, &'static [&'static str])> {
    let named = |names: &'static [&'static str]| Some((Form::Named, names));
    let placed = |names: &'static [&'static str]| Some((Form::Placed, names));
    match filter {
        "default" | "d" => placed(&["default_value", "boolean"]),
        "int" => placed(&["default", "base"]),
        "float" => placed(&["default"]),
        "round" => placed(&["precision", "method"]),
        "trim" => placed(&["chars"]),
        "center" => placed(&["width"]),
        "indent" => placed(&["width", "first", "blank"]),
        "replace" => placed(&["old", "new", "count"]),
        "join" => placed(&["d", "attribute"]),
        "sum" => placed(&["attribute", "start"]),
        "batch" => placed(&["linecount", "fill_with"]),
        "slice" => placed(&["slices", "fill_with"]),
        "attr" => placed(&["name"]),
        "truncate" => placed(&["length", "killwords", "end", "leeway"]),
        "filesizeformat" => placed(&["binary"]),
        "sort" => named(&["reverse", "case_sensitive", "attribute"]),
        "unique" | "min" | "max" => named(&["case_sensitive", "attribute"]),
        "dictsort" => named(&["case_sensitive", "by", "reverse"]),
        "groupby" => named(&["attribute", "default", "case_sensitive"]),
        _ => None,
    }
}

/// Parameters of which Python asks only whether they are true.
const FLAGS: [&str; 7] = ["boolean", "first", "blank", "reverse", "case_sensitive", "killwords", "binary"];

/// A call's values, in the form that the filter takes.
///
/// # Errors
/// The filter has no such parameter, or one is given twice.
pub(super) fn arranged(filter: &str, mut values: Vec<Value>) -> Result<Vec<Value>, Error> {
    let Some((form, names)) = parameters(filter) else { return Ok(values) };
    let named = values.pop_if(|last| last.is_kwargs()).map(Kwargs::try_from).transpose()?;
    let mut given: Vec<Option<Value>> = values.drain(1.min(values.len())..).map(Some).collect();
    if given.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    given.resize(names.len(), None);
    for name in named.iter().flat_map(Kwargs::args) {
        let place = names.iter().position(|own| *own == name).and_then(|at| given.get_mut(at));
        let Some(place @ None) = place else {
            let reason = format!("{filter} is given {name}, which it does not take or has already");
            return Err(Error::new(ErrorKind::TooManyArguments, reason));
        };
        *place = named.as_ref().map(|named| named.get(name)).transpose()?;
    }
    for (_, value) in names.iter().zip(&mut given).filter(|(name, _)| FLAGS.contains(name)) {
        *value = value.take().map(|value| Value::from(value.is_true()));
    }
    match form {
        Form::Placed => {
            let count = given.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            // What is left out before another.
            let gap = if names.contains(&"boolean") { Value::from("") } else { Value::UNDEFINED };
            values.extend(given.into_iter().take(count).map(|value| value.unwrap_or_else(|| gap.clone())));
        }
        Form::Named => {
            let pairs = names.iter().zip(given).filter_map(|(name, value)| Some((*name, value?)));
            values.push(Value::from(pairs.collect::<Kwargs>()));
        }
    }
    Ok(values)
}
