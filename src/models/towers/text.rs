//! Texts to rows of vectors, one for each token.

use candle_core::Tensor;

use super::{Stack, StackShape, TextSettings, norm};
use crate::error::{Error, Result};
use crate::kernels::{AttentionMask, LayerNorm};
use crate::weights::WeightReader;

/// A text transformer; pooling is left to its users.
pub(crate) struct TextTower {
    words: Tensor,
    positions: Tensor,
    stack: Stack,
    last_norm: LayerNorm,
}

impl TextTower {
    /// Loads the tensors that begin with `name`, which is empty or ends with a dot.
    pub(crate) fn load(
        reader: &WeightReader<'_>,
        name: &str,
        settings: &TextSettings,
        shape: &StackShape,
        mask: AttentionMask,
    ) -> Result<Self> {
        let width = shape.width;
        let part = |part: &str| format!("{name}{part}");
        let words = [settings.vocab_size, width];
        let positions = [settings.max_position_embeddings, width];
        Ok(Self {
            words: reader.tensor(&part("embeddings.token_embedding.weight"), &words)?,
            positions: reader.tensor(&part("embeddings.position_embedding.weight"), &positions)?,
            stack: Stack::load(reader, &part("encoder.layers"), shape, mask)?,
            last_norm: norm(reader, &part("final_layer_norm"), width, shape.epsilon)?,
        })
    }

    /// Most tokens of a text.
    pub(crate) fn context(&self) -> usize {
        self.positions.dims().first().copied().unwrap_or(0)
    }

    /// Layers.
    pub(crate) fn layers(&self) -> usize {
        self.stack.layers.len()
    }

    /// The tokens' vectors after all layers and the last norm, `(tokens, width)`. `ids` are the tokens of all texts,
    /// one text after another with these `lengths`.
    pub(crate) fn forward(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        self.last_norm(&self.run(ids, lengths, self.layers(), |_, _| Ok(()))?)
    }

    /// The tokens' vectors after the first `count` layers, before the last norm; `seen` as in [`Stack::run`].
    pub(crate) fn run(
        &self,
        ids: &[u32],
        lengths: &[usize],
        count: usize,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let longest = self.context();
        if let Some(length) = lengths.iter().find(|length| **length > longest) {
            let reason = format!("a text of {length} tokens; the model takes at most {longest}");
            return Err(Error::InvalidInput(reason));
        }
        let device = self.words.device();
        let places: Vec<u32> = lengths.iter().flat_map(|length| 0..*length as u32).collect();
        let words = self.words.index_select(&Tensor::new(ids, device)?, 0)?;
        let positions = self.positions.index_select(&Tensor::new(places, device)?, 0)?;
        self.stack.run((words + positions)?, lengths, count, seen)
    }

    /// The norm after the last layer.
    pub(crate) fn last_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.last_norm.of(hidden)
    }
}
