//! Metadata of a decoder in a GGUF file by their keys, with the defaults that llama.cpp has for absent ones. A number may
//! be one for all layers or a list with one for each. Their meaning is left to the architectures.

use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::kernels::AttentionMask;
#[cfg(feature = "transformers")]
use crate::language_model::ModelShape;
use crate::models::config_file::unsupported;
#[cfg(feature = "transformers")]
use crate::models::config_file::{MAX_SIDE, invalid};

/// A file's metadata, which carry the architecture's name before theirs.
pub(crate) struct Metadata<'a> {
    pub(crate) file: &'a GgufFile,
    pub(crate) name: &'static str,
    /// Number of layers, which lists have as many numbers as.
    pub(crate) layers: usize,
}

#[cfg(feature = "transformers")]
impl Metadata<'_> {
    /// The sizes of a model whose layers have one number of heads.
    ///
    /// # Errors
    /// [`Error::InvalidGguf`] if a size is missing; [`Error::InvalidConfig`] for one that no model has.
    pub(crate) fn shape(&self) -> Result<ModelShape> {
        let heads = self.required("attention.head_count")?;
        self.shape_with(self.optional("attention.head_count_kv")?.unwrap_or(heads))
    }

    /// The same with keys and values of so many heads.
    ///
    /// # Errors
    /// As [`Self::shape`].
    pub(crate) fn shape_with(&self, kv_heads: usize) -> Result<ModelShape> {
        let embeddings = self.file.header().tensor("token_embd.weight");
        let vocabulary = embeddings.and_then(|embeddings| embeddings.shape.first().copied());
        let (width, heads) = (self.required("embedding_length")?, self.required("attention.head_count")?);
        let whole = width.checked_div(heads).unwrap_or(0);
        let shape = ModelShape {
            vocabulary: vocabulary.ok_or(Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?,
            context: self.required("context_length")?,
            width,
            layers: self.layers,
            heads,
            kv_heads,
            head_size: self.optional("attention.key_length")?.unwrap_or(whole),
            intermediate: self.required("feed_forward_length")?,
            state_bytes: 0,
        };
        let ModelShape { vocabulary, context, head_size, intermediate, .. } = shape;
        let sides = [vocabulary, context, width, heads, kv_heads, head_size, intermediate];
        match sides.into_iter().find(|side| !(1..=MAX_SIDE).contains(side)) {
            Some(side) => Err(invalid(self.path(), format!("a size is {side}; 1 to {MAX_SIDE} are allowed"))),
            None => Ok(shape),
        }
    }
}

impl Metadata<'_> {
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The key with the architecture's name before it.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// The error for a value that is valid elsewhere and not supported here.
    #[cfg(feature = "transformers")]
    pub(crate) fn unsupported(
        &self,
        key: &str,
        found: &str,
        supported: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Error {
        unsupported(self.path(), self.key(key), found, supported)
    }

    pub(crate) fn required(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        self.file.invalid(format!("it has no number {}", self.key(key)))
    }

    /// One number for all layers: a list is refused unless it repeats one number.
    pub(crate) fn optional(&self, key: &str) -> Result<Option<usize>> {
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
    pub(crate) fn of_layers(&self, key: &str) -> Result<Option<Vec<usize>>> {
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

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        self.file.header().float(&self.key(key))
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
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
pub(super) fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Unsigned(number) => usize::try_from(*number).ok(),
        Value::Signed(number) => usize::try_from(*number).ok(),
        Value::Truth(truth) => Some(usize::from(*truth)),
        Value::Float(_) | Value::Text(_) | Value::List(_) => None,
    }
}
