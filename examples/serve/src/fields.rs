//! The fields of a JSON object, or of a form, taken one by one: what nobody took is refused by its name, so that no field is ignored
//! without a word. What a field means is left to the endpoints.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Fields of an object that have not been read yet.
pub(crate) struct Fields {
    left: Map<String, Value>,
    /// Place of the object in the request, such as `messages[0]`; empty for the request itself.
    place: String,
    /// True for those of a form, which are texts, whatever they mean.
    is_form: bool,
}

impl Fields {
    /// # Errors
    /// For what is no object.
    pub(crate) fn of(value: Value, place: impl Into<String>) -> Result<Self, ApiError> {
        let place = place.into();
        match value {
            Value::Object(left) => Ok(Self { left, place, is_form: false }),
            _ if place.is_empty() => Err(ApiError::field("", "the body has to be a JSON object")),
            _ => Err(ApiError::field(&place, format!("{place} has to be an object"))),
        }
    }

    /// The texts of a form.
    pub(crate) fn of_form(left: Map<String, Value>) -> Self {
        Self { left, place: String::new(), is_form: true }
    }

    /// Name of a field with its place.
    pub(crate) fn name(&self, field: &str) -> String {
        if self.place.is_empty() { field.to_owned() } else { format!("{}.{field}", self.place) }
    }

    /// A field that may be missing, or `null`, which is the same.
    ///
    /// # Errors
    /// For a value of another type, with its name.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.left.remove(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let read = match value.as_str() {
            // A number or a truth is written there as in JSON.
            Some(text) if self.is_form => {
                serde_json::from_value(value.clone()).or_else(|_| serde_json::from_str(text))
            }
            _ => serde_json::from_value(value),
        };
        read.map(Some).map_err(|error| {
            let name = self.name(field);
            ApiError::field(&name, format!("{name}: {error}"))
        })
    }

    /// # Errors
    /// As [`Self::optional`], and for a field that is missing.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ApiError> {
        self.optional(field)?.ok_or_else(|| {
            let name = self.name(field);
            ApiError::field(&name, format!("the field {name} is missing"))
        })
    }

    /// Takes a field that has one of these values, all of which ask for what is done anyway.
    ///
    /// # Errors
    /// For another value, with the field's name.
    pub(crate) fn only<const N: usize>(&mut self, field: &str, values: [Value; N]) -> Result<(), ApiError> {
        match self.optional::<Value>(field)? {
            Some(value) if !values.iter().any(|known| self.is_same(known, &value)) => {
                let name = self.name(field);
                let known: Vec<String> = values.iter().map(Value::to_string).collect();
                let message = format!("{name} can only be {} here, or left out", known.join(" or "));
                Err(ApiError::field(&name, message))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields that are documented to have no effect.
    pub(crate) fn without_effect(&mut self, fields: &[&str]) {
        fields.iter().for_each(|field| drop(self.left.remove(*field)));
    }

    /// Equality of values that takes 0 and 0.0 for the same, and in a form a value for its text.
    fn is_same(&self, one: &Value, other: &Value) -> bool {
        one == other
            || one.as_f64().is_some_and(|number| other.as_f64() == Some(number))
            || (self.is_form && other.as_str() == Some(one.to_string().as_str()))
    }

    /// # Errors
    /// For a field that nobody took, unless it is `null`.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        match self.left.iter().find(|(_, value)| !value.is_null()) {
            Some((field, _)) => Err(ApiError::unsupported(&self.name(field))),
            None => Ok(()),
        }
    }
}
