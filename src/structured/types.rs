//! Rust types as constraints: the JSON schema of a type, in the form in which it is compiled, and the value that a text is.

use model_actors::{Completion, Constraint, FinishReason};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// Entries with which a schema is put together of others, whose parts describe one object together.
const COMBINED: [&str; 5] = ["allOf", "anyOf", "oneOf", "$ref", "patternProperties"];
/// Formats of numbers, which their bounds tell too, and others that no text is checked against before it is read.
const KNOWN_FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Formats of integers, with the largest of each; signed ones reach as far below zero, and one further.
const INTEGERS: [(&str, i64); 6] = [
    ("uint8", u8::MAX as i64),
    ("uint16", u16::MAX as i64),
    ("uint32", u32::MAX as i64),
    ("int8", i8::MAX as i64),
    ("int16", i16::MAX as i64),
    ("int32", i32::MAX as i64),
];

/// The schema of a type's values: objects have no other properties than the type's, and alternatives need not exclude each
/// other, since reading the value decides.
pub(crate) fn schema_of<T: JsonSchema>() -> Constraint {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    adapt(&mut schema, true);
    Constraint::json_schema(schema)
}

/// Adapts a schema and all schemas in it; `closes` says whether it is an object by itself.
fn adapt(schema: &mut Value, closes: bool) {
    let Some(entries) = schema.as_object_mut() else { return };
    let is_combined = COMBINED.iter().any(|name| entries.contains_key(*name));
    if closes && !is_combined && entries.contains_key("properties") {
        entries.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    if let Some(format) = entries.get("format").and_then(Value::as_str).map(str::to_owned) {
        if let Some((_, largest)) = INTEGERS.into_iter().find(|(name, _)| *name == format) {
            entries.entry("maximum").or_insert(largest.into());
            entries.entry("minimum").or_insert((-largest - 1).into());
        }
        if !KNOWN_FORMATS.contains(&format.as_str()) {
            entries.remove("format");
        }
    }
    if let Some(options) = entries.remove("oneOf") {
        entries.entry("anyOf").or_insert(options);
    }
    let is_object = entries.contains_key("properties");
    for (name, value) in entries.iter_mut() {
        match (name.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                named.values_mut().for_each(|schema| adapt(schema, true));
            }
            ("const" | "default" | "enum" | "examples", _) => {}
            ("allOf" | "anyOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(|schema| adapt(schema, !is_object));
            }
            (_, Value::Array(parts)) => parts.iter_mut().for_each(|schema| adapt(schema, true)),
            (_, value) => adapt(value, true),
        }
    }
}

/// The value that a text is.
///
/// # Errors
/// [`Error::IncompleteOutput`] for a text that was cut off, [`Error::UnexpectedOutput`] for one that is no such value.
pub(crate) fn value_of<T: DeserializeOwned>(completion: &Completion) -> Result<T> {
    let incomplete = || Error::IncompleteOutput { tokens: completion.usage.completion_tokens };
    serde_json::from_str(&completion.text).map_err(|error| {
        // A stop string cuts a text off too.
        let is_cut = completion.finish_reason == FinishReason::Length || error.is_eof();
        if is_cut { incomplete() } else { Error::UnexpectedOutput { reason: error.to_string() } }
    })
}
