//! JSON schemas as they are compiled: with the white space that a text may have, with bounds for numbers that have none, and
//! without what the compiler takes for a date or a time beyond those that are one. Whatever such a schema describes, the
//! original describes too.

use serde_json::{Map, Value, json};

use super::Fault;

/// Entry of a schema that has options of the compiler.
const OPTIONS: &str = "x-guidance";
/// White space between the parts of JSON: a space at most, as most models were trained on. Where more is allowed, small
/// models write nothing else.
const WHITE_SPACE: &str = r"\x20";
/// Largest integer that all readers of JSON agree on (RFC 8259, section 6). Without a bound, a model may write digits without
/// end.
const MAX_INTEGER: i64 = (1 << 53) - 1;
/// Largest number of one without a bound, which is written without an exponent: one of any size is more than readers take.
const MAX_NUMBER: i64 = 1_000_000_000_000_000_000;
/// Name of the definition of any JSON.
const ANY: &str = "__any_json";
/// Entries that say nothing of a value.
const ANNOTATIONS: [&str; 10] = [
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "deprecated",
];
/// Entries that hold a schema, several, or several by name.
const ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const SEVERAL: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Seconds below 60, which the compiler allows at any time and leap seconds are at one alone.
const NO_LEAP_SECOND: &str = "^[^:]*:[^:]*:[0-5]";
/// Days but the 29th of February, which the compiler allows in any year.
const NO_LEAP_DAY: &str = "^[^-]*-(0[13-9]|1[0-2])-|^[^-]*-02-([01]|2[0-8])";
/// Formats of texts, with what the compiler is to hold of them besides.
const STRICTER: [(&str, &[&str]); 3] =
    [("time", &[NO_LEAP_SECOND]), ("date", &[NO_LEAP_DAY]), ("date-time", &[NO_LEAP_DAY, NO_LEAP_SECOND])];
/// A schema of this text.
///
/// # Errors
/// A fault of it, and its place.
pub(super) fn parsed(text: &str) -> Result<Value, Fault> {
    let schema: Value = serde_json::from_str(text).map_err(|error| Fault {
        place: format!("line {}, column {}", error.line(), error.column()),
        reason: format!("it is no JSON: {error}"),
    })?;
    match schema {
        Value::Bool(true) => Ok(json!({})),
        Value::Bool(false) => Err(Fault::new("no value satisfies it")),
        schema if schema.get(OPTIONS).is_some() => Err(Fault {
            place: format!("/{OPTIONS}"),
            reason: "options of the compiler cannot be set".to_owned(),
        }),
        schema => Ok(schema),
    }
}

/// The schema as it is compiled.
pub(crate) fn adapted(schema: &Value) -> Value {
    let mut schema = schema.clone();
    // In one with an identifier of its own, a reference begins there.
    let own = usize::from(schema.get("$id").is_some());
    let has_one_root = schema.to_string().matches("\"$id\"").count() == own;
    restrict(&mut schema, has_one_root);
    if let Some(entries) = schema.as_object_mut() {
        let definitions = entries.entry("$defs").or_insert_with(|| json!({}));
        if let Some(definitions) = definitions.as_object_mut() {
            definitions.insert(ANY.to_owned(), any_json());
        }
        entries.insert(OPTIONS.to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    schema
}

fn any_json() -> Value {
    let mut any = json!({"anyOf": [
        {"type": ["null", "boolean", "string", "number"]},
        {"type": "array", "items": reference()},
        {"type": "object", "additionalProperties": reference()},
    ]});
    restrict(&mut any, true);
    any
}

fn reference() -> Value {
    json!({ "$ref": format!("#/$defs/{ANY}") })
}

/// Restricts a schema and those in it. What lacks a description is any JSON, unless it is one of `allOf`, whose parts are
/// put together by the compiler.
fn restrict(schema: &mut Value, alone: bool) {
    let is_annotation = |name: &String| ANNOTATIONS.contains(&name.as_str());
    match schema {
        Value::Bool(true) if alone => *schema = reference(),
        Value::Object(entries) => {
            let alone = alone && !entries.contains_key("allOf");
            if alone && entries.keys().all(is_annotation) {
                entries.insert("$ref".to_owned(), format!("#/$defs/{ANY}").into());
            }
            restrict_value(entries, alone);
            restrict_parts(entries, alone);
            restrict_text(entries);
        }
        _ => {}
    }
}

/// Restricts the schemas in a schema.
fn restrict_parts(entries: &mut Map<String, Value>, alone: bool) {
    for (name, value) in entries.iter_mut() {
        let is = |names: &[&str]| names.contains(&name.as_str());
        match value {
            Value::Array(parts) if is(&SEVERAL) => parts.iter_mut().for_each(|part| restrict(part, alone)),
            Value::Object(parts) if is(&NAMED) => parts.values_mut().for_each(|part| restrict(part, alone)),
            part if is(&ONE) => restrict(part, alone),
            _ => {}
        }
    }
}

/// Adds what a schema of numbers, objects or arrays leaves out.
fn restrict_value(entries: &mut Map<String, Value>, alone: bool) {
    let kind = entries.get("type").cloned().unwrap_or_default();
    let is = |name: &str| {
        kind.as_str() == Some(name)
            || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() == Some(name)))
    };
    if is("integer") {
        bound(entries, MAX_INTEGER);
    }
    if is("number") {
        bound(entries, MAX_NUMBER);
    }
    for (name, parts) in [("object", "additionalProperties"), ("array", "items")] {
        if alone && is(name) {
            entries.entry(parts).or_insert_with(reference);
        }
    }
}

/// Adds the bounds that are missing, unless the other one lies beyond them.
fn bound(entries: &mut Map<String, Value>, largest: i64) {
    let given = |entries: &Map<String, Value>, names: [&str; 2]| {
        names.iter().find_map(|name| entries.get(*name)).map(|value| value.as_f64().unwrap_or(f64::NAN))
    };
    let (low, high) = (["minimum", "exclusiveMinimum"], ["maximum", "exclusiveMaximum"]);
    let beyond = largest as f64;
    if given(entries, high).is_none() && given(entries, low).is_none_or(|low| low < beyond) {
        entries.insert("maximum".to_owned(), largest.into());
    }
    if given(entries, low).is_none() && given(entries, high).is_none_or(|high| high > -beyond) {
        entries.insert("minimum".to_owned(), (-largest).into());
    }
}

/// Adds what the compiler is to hold of a format.
fn restrict_text(entries: &mut Map<String, Value>) {
    let format = entries.get("format").and_then(Value::as_str);
    let Some((_, patterns)) = STRICTER.into_iter().find(|(name, _)| format == Some(*name)) else { return };
    let all = entries.entry("allOf").or_insert_with(|| json!([]));
    let patterns = patterns.iter().map(|pattern| json!({ "pattern": pattern }));
    all.as_array_mut().into_iter().for_each(|all| all.extend(patterns.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_has_what_it_lacks() {
        let mut schema = json!({"properties": {
            "free": {"type": "integer"}, "half": {"type": ["null", "integer"], "exclusiveMinimum": 3},
            "huge": {"type": "integer", "minimum": 1e300}, "type": {"const": {"type": "integer"}},
            "list": {"type": "array"}, "any": {"title": "any"}, "true": true,
            "both": {"allOf": [{"type": "object"}, {}]}, "day": {"type": "string", "format": "date"}
        }});
        restrict(&mut schema, true);
        let (largest, any) = (9_007_199_254_740_991_i64, "#/$defs/__any_json");
        assert_eq!(
            schema,
            json!({"properties": {
                "free": {"type": "integer", "minimum": -largest, "maximum": largest},
                "half": {"type": ["null", "integer"], "exclusiveMinimum": 3, "maximum": largest},
                "huge": {"type": "integer", "minimum": 1e300}, "type": {"const": {"type": "integer"}},
                "list": {"type": "array", "items": {"$ref": any}}, "any": {"title": "any", "$ref": any}, "true": {"$ref": any},
                "both": {"allOf": [{"type": "object"}, {}]},
                "day": {"type": "string", "format": "date", "allOf": [{"pattern": NO_LEAP_DAY}]}
            }})
        );
    }
}
