//! The place of a fault in a JSON schema, which the compiler does not tell: the innermost part that has the fault by itself.
//! It is found by trial, part by part, with the definitions that a part may refer to.

use serde_json::{Map, Value};

/// Maximum number of parts that are tried.
const MAX_TRIALS: usize = 256;
/// Entries whose values are schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Entries that parts refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// The JSON pointer of the innermost part of a schema that fails with this reason; `fails` compiles a schema and gives its
/// reason. Empty if no part does.
pub(super) fn of(schema: &Value, reason: &str, fails: impl Fn(&Value) -> Option<String>) -> String {
    let (mut place, mut part, mut trials) = (String::new(), schema, 0);
    loop {
        let is_at_fault = |(_, part): &(String, &Value)| {
            trials += 1;
            let tried = with_definitions(part, schema);
            trials <= MAX_TRIALS
                && fails(&tried).is_some_and(|own| reason.contains(&own) || own.contains(reason))
        };
        let Some((name, inner)) = parts(part).into_iter().find(is_at_fault) else { return place };
        place.push_str(&name);
        part = inner;
    }
}

/// The schemas directly in a schema, with their places.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    let mut found = Vec::new();
    for (name, value) in schema.as_object().into_iter().flatten() {
        match value {
            Value::Object(entries) if NAMED.contains(&name.as_str()) => {
                found.extend(entries.iter().map(|(own, part)| (format!("/{name}/{}", escaped(own)), part)));
            }
            Value::Object(_) if !["const", "default", "enum"].contains(&name.as_str()) => {
                found.push((format!("/{}", escaped(name)), value));
            }
            Value::Array(entries) if !["enum", "examples"].contains(&name.as_str()) => {
                let schemas = entries.iter().enumerate().filter(|(_, part)| part.is_object());
                found.extend(schemas.map(|(index, part)| (format!("/{}/{index}", escaped(name)), part)));
            }
            _ => {}
        }
    }
    found
}

fn with_definitions(part: &Value, schema: &Value) -> Value {
    let mut whole: Map<String, Value> = part.as_object().cloned().unwrap_or_default();
    for name in DEFINITIONS {
        if let Some(definitions) = schema.get(name) {
            whole.entry(name).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_innermost_part_with_the_fault_is_found() {
        // Whatever holds the word is at fault.
        let fails = |schema: &Value| schema.to_string().contains("bad").then(|| "bad".to_owned());
        let schema = json!({
            "type": "object",
            "properties": {"good": {"type": "string"}, "a/b": {"items": {"anyOf": [{"type": "null"}, {"bad": 1}]}}}
        });
        assert_eq!(of(&schema, "bad", fails), "/properties/a~1b/items/anyOf/1");
        assert_eq!(of(&json!({"bad": 1}), "bad", fails), "");
        assert_eq!(of(&schema, "other", fails), "");
    }
}
