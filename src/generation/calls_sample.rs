//! A tool that the tests of calls share.

use model_actors::Tool;
use serde_json::json;

/// A tool with arguments of each kind.
pub(in crate::generation) fn ticket() -> Tool {
    Tool::new("ticket").with_parameters(json!({
        "type": "object",
        "properties": {
            "class": { "enum": ["first", "second"] },
            "count": { "type": "integer", "minimum": 1, "maximum": 9 },
            "note": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null },
            "seat": { "$ref": "#/$defs/Seat" },
            "stops": { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 3 },
            "to": { "type": "string", "description": "Where to" },
            "window": { "type": ["boolean", "null"] },
        },
        "required": ["to", "stops"],
        "additionalProperties": false,
        "$defs": { "Seat": {
            "type": "object",
            "properties": { "row": { "type": "number" }, "side": { "type": "string" } },
            "required": ["row"],
        } },
    }))
}
