//! The sizes of a language model by which its limits and its memory are known before it is loaded.

use serde_json::Value;

/// Sizes of a language model, from which limits on prompts and the memory of its caches are computed.
///
/// ```
/// use candle_actors::ModelShape;
/// let settings = serde_json::json!({
///     "vocab_size": 1000, "max_position_embeddings": 512, "hidden_size": 64, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
/// });
/// let shape = ModelShape::read(&settings).unwrap().with_context(256);
/// assert_eq!((shape.vocabulary, shape.context, shape.head_size), (1000, 256, 16));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelShape {
    /// Number of tokens that it knows; logits have one number for each.
    pub vocabulary: usize,
    /// Maximum number of tokens of prompt and answer together.
    pub context: usize,
    /// Length of a token's vector.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Heads whose keys and values are kept; 0 for a model that keeps none.
    pub kv_heads: usize,
    /// Length of a head's vectors.
    pub head_size: usize,
    /// Width of a layer's feed-forward network.
    pub intermediate: usize,
    /// Bytes that a text takes however long it is, as the state of a recurrent model.
    pub state_bytes: u64,
}

impl ModelShape {
    /// The sizes under the names that most configurations use. A window of attention bounds the context, since the
    /// library's caches do not forget what leaves the window.
    ///
    /// # Errors
    /// Names the size that is missing or no number.
    pub fn read(settings: &Value) -> Result<Self, String> {
        let width = size(settings, &["hidden_size", "n_embd", "d_model"])?;
        let heads = size(settings, &["num_attention_heads", "n_head", "n_heads"])?;
        let context = size(
            settings,
            &["max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"],
        )?;
        let uses_window = settings.get("use_sliding_window") != Some(&Value::Bool(false));
        let window = optional(settings, &["sliding_window"])?.filter(|_| uses_window);
        let head_size = match optional(settings, &["head_dim"])? {
            Some(size) => size,
            None => width.checked_div(heads).unwrap_or_default(),
        };
        Ok(Self {
            vocabulary: size(settings, &["vocab_size"])?,
            context: window.map_or(context, |window| window.min(context)),
            width,
            layers: size(settings, &["num_hidden_layers", "n_layer", "n_layers"])?,
            heads,
            kv_heads: optional(settings, &["num_key_value_heads"])?.unwrap_or(heads),
            head_size,
            intermediate: optional(settings, &["intermediate_size", "n_inner"])?
                .unwrap_or(width.saturating_mul(4)),
            state_bytes: 0,
        })
    }

    /// The same with another context.
    pub fn with_context(self, context: usize) -> Self {
        Self { context, ..self }
    }

    /// The same with another vocabulary.
    pub fn with_vocabulary(self, vocabulary: usize) -> Self {
        Self { vocabulary, ..self }
    }

    /// The same with keys and values of so many heads of this length.
    pub fn with_cache(self, kv_heads: usize, head_size: usize) -> Self {
        Self { kv_heads, head_size, ..self }
    }

    /// The same with a state of so many bytes for each text.
    pub fn with_state_bytes(self, state_bytes: u64) -> Self {
        Self { state_bytes, ..self }
    }

    /// Bytes of the keys and values of so many tokens.
    pub(crate) fn cache_bytes(&self, tokens: usize) -> u64 {
        let layer = 8u64.saturating_mul(product(&[self.kv_heads, self.head_size]));
        layer.saturating_mul(product(&[self.layers, tokens]))
    }

    /// Bytes of the tables of rotary positions, of which a model that keeps nothing of single tokens has none.
    pub(crate) fn table_bytes(&self) -> u64 {
        if self.kv_heads == 0 { 0 } else { 8u64.saturating_mul(product(&[self.context, self.head_size])) }
    }

    /// Bytes that a pass over so many rows needs besides weights and caches, in a text of `longest` tokens: the library
    /// joins a layer's old and new keys and values into new tensors, repeats them for all heads, and has scores, mask and
    /// weights of attention beside each other.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> u64 {
        let heads = product(&[self.heads.max(self.kv_heads), self.head_size]);
        let keys = 4 * 6u64.saturating_mul(heads).saturating_mul(longest as u64);
        let scores = 4 * 4u64.saturating_mul(product(&[self.heads, rows, longest]));
        let widest = product(&[self.width]) * 8 + product(&[self.intermediate]) * 4;
        let hidden = 4u64.saturating_mul(widest).saturating_mul(rows as u64);
        let logits = 12u64.saturating_mul(self.vocabulary as u64);
        [keys, scores, hidden, logits].into_iter().fold(0, u64::saturating_add)
    }
}

fn product(sides: &[usize]) -> u64 {
    sides.iter().fold(1, |product, side| product.saturating_mul(*side as u64))
}

fn size(settings: &Value, names: &[&str]) -> Result<usize, String> {
    optional(settings, names)?.ok_or_else(|| format!("it has no {}", names.join(" and no ")))
}

/// The first of these settings that is there.
fn optional(settings: &Value, names: &[&str]) -> Result<Option<usize>, String> {
    let found = names
        .iter()
        .find_map(|name| settings.get(name).filter(|value| !value.is_null()).map(|value| (name, value)));
    let Some((name, value)) = found else { return Ok(None) };
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    size.map(Some).ok_or_else(|| format!("{name} is {value}, which is no size"))
}
