//! Errors with their long texts cut: those from a file may have any length, and an error goes to all callers, to the log and
//! to every subscriber of events.

use serde_json::Value;

use super::Error;

/// Letters of a text, and entries of a list, that an error keeps on its way through a pool.
const MAX_LETTERS: usize = 1000;
const MAX_ENTRIES: usize = 200;

impl Error {
    /// The same error with its long texts cut.
    pub(super) fn shortened(self) -> Self {
        if self.to_string().len() <= MAX_LETTERS {
            return self;
        }
        let shortened = serde_json::to_value(&self).and_then(|mut value| {
            shorten(&mut value);
            serde_json::from_value(value)
        });
        shortened.unwrap_or(self)
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(MAX_LETTERS) {
                text.truncate(end);
                text.push('…');
            }
        }
        Value::Array(values) => {
            values.truncate(MAX_ENTRIES);
            values.iter_mut().for_each(shorten);
        }
        Value::Object(values) => values.values_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
