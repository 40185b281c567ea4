//! Random JSON schemas: objects, arrays, enumerations, numbers with bounds, strings with patterns and lengths, alternatives,
//! references and all of them in each other. A seed gives the same schema always.

use fastrand::Rng;
use serde_json::{Map, Value, json};

const PATTERNS: [&str; 6] =
    ["^[a-z]{2,5}$", "^(red|green|blue)$", "[0-9]{2}", "^A+b*$", "^\\d{4}-\\d{2}$", "^[^\"]{1,4}$"];
const FORMATS: [&str; 5] = ["date", "time", "date-time", "uuid", "ipv4"];
const NAMES: [&str; 8] = ["name", "age", "a b", "größe", "x/y", "items", "quote\"d", "id"];

/// Depth of definitions, which a schema refers to.
const SHALLOW: usize = 1;

/// A schema with definitions, one of which may refer to itself.
pub(crate) fn schema(seed: u64) -> Value {
    let mut random = Rng::with_seed(seed);
    let mut whole = part(&mut random, 3);
    let list = json!({
        "type": "object", "properties": {"value": part(&mut random, SHALLOW), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}},
        "required": ["value", "next"], "additionalProperties": false
    });
    let definitions = json!({"list": list, "leaf": leaf(&mut random)});
    if let Some(entries) = whole.as_object_mut() {
        entries.insert("$defs".to_owned(), definitions);
    }
    whole
}

fn part(random: &mut Rng, depth: usize) -> Value {
    match if depth == 0 { 0 } else { random.usize(0..10) } {
        0..=2 => leaf(random),
        3..=5 => object(random, depth),
        6 | 7 => array(random, depth),
        8 => {
            json!({"anyOf": (0..random.usize(1..4)).map(|_| part(random, depth - 1)).collect::<Vec<Value>>()})
        }
        _ => json!({"$ref": if random.bool() { "#/$defs/list" } else { "#/$defs/leaf" }}),
    }
}

fn object(random: &mut Rng, depth: usize) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for _ in 0..random.usize(0..4) {
        let name = NAMES[random.usize(0..NAMES.len())];
        properties.insert(name.to_owned(), part(random, depth - 1));
        if random.bool() && !required.contains(&name) {
            required.push(name);
        }
    }
    let mut object = json!({"type": "object", "properties": properties, "required": required});
    match random.usize(0..4) {
        0 => object["additionalProperties"] = leaf(random),
        1 => {}
        _ => object["additionalProperties"] = false.into(),
    }
    object
}

fn array(random: &mut Rng, depth: usize) -> Value {
    let (least, more) = (random.usize(0..3), random.usize(0..3));
    let mut array = json!({"type": "array", "items": part(random, depth - 1), "minItems": least});
    if random.bool() {
        array["maxItems"] = (least + more).into();
    }
    if random.usize(0..4) == 0 {
        array["prefixItems"] = json!([leaf(random), part(random, depth - 1)]);
    }
    array
}

fn leaf(random: &mut Rng) -> Value {
    let (low, span) = (random.i32(-500..500), random.i32(0..700));
    match random.usize(0..12) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "integer", "minimum": low, "maximum": low + span}),
        3 => json!({"type": "integer", "exclusiveMinimum": low, "multipleOf": random.i32(1..8)}),
        4 => {
            json!({"type": "number", "minimum": f64::from(low) / 8.0, "exclusiveMaximum": f64::from(low + span + 1) / 8.0})
        }
        5 => json!({"type": ["string", "null"], "maxLength": random.usize(0..9)}),
        6 => json!({"type": "string", "minLength": random.usize(0..4), "maxLength": 4 + random.usize(0..9)}),
        7 => json!({"type": "string", "pattern": PATTERNS[random.usize(0..PATTERNS.len())], "maxLength": 20}),
        8 => json!({"type": "string", "format": FORMATS[random.usize(0..FORMATS.len())]}),
        9 => json!({"enum": ["red", 7, null, {"deep": [1, 2.5]}, "\u{fc}\n"]}),
        10 => json!({"const": NAMES[random.usize(0..NAMES.len())]}),
        _ => json!({"type": "string"}),
    }
}
