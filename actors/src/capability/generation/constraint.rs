//! Constraints on the text that a model writes: a JSON schema, a regular expression or a grammar that the whole text keeps
//! to. Here is their form and their size; compiling them, and keeping a model to them, is left to the models' crate.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Cause;
use crate::limits::MAX_CONSTRAINT_BYTES;

/// A rule that the whole text of an answer keeps to. A text that ends by itself, which its finish reason tells, satisfies it;
/// one that `max_tokens`, the context or a stop string cuts off is only the beginning of such a text.
///
/// ```
/// use model_actors::{Capability, Constraint, GenerateText, TextToText};
/// let digits = GenerateText::from("A number: ").with_constraint(Constraint::Regex("[0-9]{1,3}".to_owned()));
/// assert!(TextToText::check(&digits).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Constraint {
    /// JSON that this JSON schema describes; the schema is JSON itself. Properties come in the order of the schema.
    JsonSchema(String),
    /// A text that this regular expression matches as a whole, in the syntax of Rust's `regex` without look-around.
    Regex(String),
    /// A text of this context-free grammar, in the variant of Lark that llguidance reads: its rule `start` is the whole
    /// text.
    Lark(String),
}

impl Constraint {
    /// JSON that a schema describes, given as a JSON value or as its text.
    ///
    /// ```
    /// use model_actors::Constraint;
    /// let flag = Constraint::json_schema(r#"{"type": "boolean"}"#);
    /// assert_eq!(flag.text(), r#"{"type": "boolean"}"#);
    /// ```
    pub fn json_schema(schema: impl ToString) -> Self {
        Self::JsonSchema(schema.to_string())
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::json_schema(r#"{"type":"object"}"#)
    }

    /// The schema, expression or grammar.
    pub fn text(&self) -> &str {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }

    /// Checks its size.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        match self.text().len() {
            1..=MAX_CONSTRAINT_BYTES => Ok(()),
            bytes => {
                Err(format!("the {self} has {bytes} bytes; 1 to {MAX_CONSTRAINT_BYTES} are allowed").into())
            }
        }
    }
}

/// Its kind in words, without the text.
impl fmt::Display for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
        })
    }
}
