//! Metadata of a decoder in a GGUF file by their keys, with the defaults that llama.cpp has for absent ones. A number may
//! be one for all layers or a list with one for each. Their meaning is left to the architectures.

use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::kernels::AttentionMask;
use crate::models::config_file::unsupported;

/// A file's metadata, which carry the architecture's name before theirs.
pub(super) struct Metadata<'a> {
    pub(super) file: &'a GgufFile,
    pub(super) name: &'static str,
    /// Number of layers, which lists have as many numbers as.
    pub(super) layers: usize,
}

impl Metadata<'_> {
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The key with the architecture's name before it.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    pub(super) fn required(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        self.file.invalid(format!("it has no number {}", self.key(key)))
    }

    /// One number for all layers: a list is refused unless it repeats one number.
    pub(super) fn optional(&self, key: &str) -> Result<Option<usize>> {
        let Some(numbers) = self.of_layers(key)? else { return Ok(None) };
        match numbers.as_slice() {
            [first, rest @ ..] if rest.iter().all(|number| number == first) => Ok(Some(*first)),
            [] => Ok(None),
            _ => {
                let found = format!("{numbers:?}");
                Err(unsupported(self.path(), self.key(key), &found, "one number for all layers"))
            }
        }
    }

    /// One number for each layer.
    pub(super) fn of_layers(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let name = self.key(key);
        let bad =
            |value: &Value| self.file.invalid(format!("{name} has the value {value:?}, which is no number"));
        match self.file.header().value(&name) {
            None => Ok(None),
            Some(Value::List(list)) if list.len() == self.layers => list
                .iter()
                .map(|value| number(value).ok_or_else(|| bad(value)))
                .collect::<Result<_>>()
                .map(Some),
            Some(Value::List(list)) => {
                let (found, layers) = (list.len(), self.layers);
                Err(self.file.invalid(format!("{name} has {found} values for {layers} layers")))
            }
            Some(value) => Ok(Some(vec![number(value).ok_or_else(|| bad(value))?; self.layers])),
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.file.header().float(&self.key(key))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.file.header().text(&self.key(key))
    }

    /// The mask of each layer by `attention.sliding_window` and `attention.sliding_window_pattern`; a window of 0 is none.
    /// Without them in the file, `window` and `pattern` count: of so many layers the last sees everything.
    pub(super) fn masks(&self, window: usize, pattern: usize) -> Result<Vec<AttentionMask>> {
        let windows =
            self.of_layers("attention.sliding_window")?.unwrap_or_else(|| vec![window; self.layers]);
        let (key, window_key) = ("attention.sliding_window_pattern", self.key("attention.sliding_window"));
        // A window for each layer is a pattern itself.
        let pattern = if self.file.header().list(&window_key).is_some() { 0 } else { pattern };
        let slides: Vec<bool> = match self.file.header().value(&self.key(key)) {
            Some(Value::List(_)) => {
                self.of_layers(key)?.unwrap_or_default().iter().map(|flag| *flag != 0).collect()
            }
            _ => {
                let pattern = self.optional(key)?.unwrap_or(pattern);
                let slides = |layer: usize| pattern == 0 || layer % pattern + 1 < pattern;
                (0..self.layers).map(slides).collect()
            }
        };
        let mask = |(window, slides): (usize, bool)| match window {
            1.. if slides => AttentionMask::SlidingWindow(window),
            _ => AttentionMask::Causal,
        };
        Ok(windows.into_iter().zip(slides).map(mask).collect())
    }
}

/// A whole number that is not negative; a truth counts as 0 or 1.
fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Unsigned(number) => usize::try_from(*number).ok(),
        Value::Signed(number) => usize::try_from(*number).ok(),
        Value::Truth(truth) => Some(usize::from(*truth)),
        Value::Float(_) | Value::Text(_) | Value::List(_) => None,
    }
}
