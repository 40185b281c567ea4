//! A text encoder: from tokens to rows of vectors, one for each token. Embedding models and the text halves
//! of CLIP and SigLIP are one; what is made of the rows is left to their users.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::self_attention::Whole;
use crate::kernels::{Activation, add};
use crate::models::transformer::{
    self, Bias, Linears, Names, Norm, Projection, Tensors, Transformer, TransformerConfig, is_tensor_of,
};

/// A text encoder that is not loaded.
#[derive(Debug, Clone)]
pub(crate) struct TextTowerConfig {
    /// Number of tokens that it knows.
    pub(crate) vocabulary: usize,
    /// Maximum number of tokens of a text.
    pub(crate) context: usize,
    /// Length of the embeddings that a layer brings to the width of the blocks, where it is another (ELECTRA).
    pub(crate) embedding_width: Option<usize>,
    pub(crate) positions: PositionsConfig,
    /// Number of kinds of segments, of which a text alone is the first; 0 for a model without.
    pub(crate) segments: usize,
    pub(crate) transformer: TransformerConfig,
    pub(crate) names: &'static TextTowerNames,
}

/// Learned positions that are added to token embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PositionsConfig {
    None,
    /// So many, one for each place of a text.
    Places(usize),
    /// So many, counted from the one after the padding token's, which padding itself has (RoBERTa).
    AfterPadding {
        count: usize,
        padding: u32,
    },
}

/// Names of a text encoder's tensors, without `.weight` and `.bias`; empty for what a family does not have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextTowerNames {
    pub(crate) token_embeddings: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) segments: &'static str,
    /// Norm of the embeddings' sum.
    pub(crate) embedding_norm: &'static str,
    /// The layer after it, from embeddings of another length.
    pub(crate) embedding_projection: &'static str,
    pub(crate) blocks: Names,
    /// Norm after the last block.
    pub(crate) norm: &'static str,
}

impl TextTowerConfig {
    /// True for the tensors, named on the encoder's path, that are loaded.
    pub(crate) fn uses(&self, tensor: &str) -> bool {
        let names = self.names;
        let positions = if self.positions == PositionsConfig::None { "" } else { names.positions };
        let single = [
            names.token_embeddings,
            positions,
            names.segments,
            names.embedding_norm,
            names.embedding_projection,
            names.blocks.relative_bias,
            names.norm,
        ];
        single.iter().any(|name| is_tensor_of(name, tensor))
            || (tensor.starts_with(names.blocks.blocks) && !tensor.ends_with(".inv_freq"))
    }

    /// True for the positions of a model that has vectors of distances in their place.
    pub(crate) fn has_no_effect(&self, tensor: &str) -> bool {
        let is_relative = self.transformer.attention.distance_vectors.is_some();
        is_relative && is_tensor_of(self.names.positions, tensor)
    }

    /// Loads the encoder.
    pub(crate) fn load(&self, tensors: &dyn Tensors, device: &Device) -> Result<TextTower> {
        let (config, names) = (&self.transformer, self.names);
        let width = config.width;
        let embedded = self.embedding_width.unwrap_or(width);
        let norm = |name: &str, width| match name {
            "" => Ok(None),
            name => tensors.norm(name, width, config.norm, config.epsilon).map(Some),
        };
        let table = |name: &str, count| {
            // A parameter that is no layer of its own has a name without an ending.
            let ending = if tensors.contains(name) { "" } else { ".weight" };
            tensors.tensor(&format!("{name}{ending}"), &[count, embedded])
        };
        let (count, padding) = match self.positions {
            PositionsConfig::None => (0, None),
            PositionsConfig::Places(count) => (count, None),
            PositionsConfig::AfterPadding { count, padding } => (count, Some(padding)),
        };
        let mut token_embeddings = table(names.token_embeddings, self.vocabulary)?;
        let mut segments = None;
        if self.segments > 0 {
            // The first segment is mostly the only one in use, so that it is a part of the tokens' vectors.
            let table = table(names.segments, self.segments)?;
            let first = table.get(0)?;
            token_embeddings = token_embeddings.broadcast_add(&first)?;
            segments = Some(table.broadcast_sub(&first)?);
        }
        let positions = if count > 0 { Some(table(names.positions, count)?) } else { None };
        Ok(TextTower {
            token_embeddings,
            segments,
            positions: positions.map(|table| Positions { table, padding }),
            embedding_norm: norm(names.embedding_norm, embedded)?,
            embedding_projection: match self.embedding_width {
                Some(embedded) => {
                    let parts = [(names.embedding_projection, width)];
                    Some(tensors.projection(&Linears::new(&parts, embedded, Bias::Yes))?)
                }
                None => None,
            },
            transformer: transformer::load(config, &names.blocks, tensors, device)?,
            norm: norm(names.norm, width)?,
            context: self.context,
            token_adapter: None,
        })
    }
}

/// A loaded text encoder.
pub(crate) struct TextTower {
    /// Each token's vector, `(vocabulary, width)`.
    token_embeddings: Tensor,
    /// Difference of each segment's vector from the first one's, `(segments, width)`.
    segments: Option<Tensor>,
    positions: Option<Positions>,
    embedding_norm: Option<Norm>,
    embedding_projection: Option<Projection>,
    transformer: Transformer,
    norm: Option<Norm>,
    context: usize,
    /// Matrices that an adapter adds to the tokens' vectors.
    token_adapter: Option<TokenAdapter>,
}

/// Matrices that an adapter adds to the vectors of tokens (LoRA).
pub(crate) struct TokenAdapter {
    /// `(vocabulary, rank)`.
    pub(crate) down: Tensor,
    /// `(rank, width)`.
    pub(crate) up: Tensor,
    /// Sum that it adds to the vector of the first segment, `(1, width)`.
    pub(crate) first_segment: Tensor,
}

#[derive(Clone)]
struct Positions {
    /// Each position's vector.
    table: Tensor,
    /// The token that is not counted.
    padding: Option<u32>,
}

impl TextTower {
    /// The same embeddings and norms with an adapter's blocks.
    pub(crate) fn adapted(&self, transformer: Transformer, tokens: TokenAdapter) -> Result<Self> {
        if self.embedding_projection.is_some() {
            return Err(Error::compute("adapters of an encoder that projects its embeddings"));
        }
        Ok(Self {
            token_embeddings: self.token_embeddings.clone(),
            segments: self.segments.clone(),
            positions: self.positions.clone(),
            embedding_norm: self.embedding_norm.clone(),
            embedding_projection: None,
            transformer,
            norm: self.norm.clone(),
            context: self.context,
            token_adapter: Some(tokens),
        })
    }

    /// Number of blocks.
    pub(crate) fn depth(&self) -> usize {
        self.transformer.depth()
    }

    /// The tokens' vectors after all blocks and the last norm, `(tokens, width)`. `ids` are the tokens of all
    /// texts, one text after another with these `lengths`; `watch` is called before the first block and after
    /// each, and can end the pass by an error.
    pub(crate) fn encode(
        &self,
        ids: &[u32],
        lengths: &[usize],
        watch: impl Fn() -> Result<()>,
    ) -> Result<Tensor> {
        self.encode_segments(ids, &[], Whole::of(lengths), watch)
    }

    /// The same for tokens of several segments, none for those of the first alone, and for texts that may end with tokens
    /// which no token attends to.
    pub(crate) fn encode_segments(
        &self,
        ids: &[u32],
        segments: &[u32],
        texts: Whole<'_>,
        watch: impl Fn() -> Result<()>,
    ) -> Result<Tensor> {
        let tokens = self.embed(ids, segments)?;
        self.last_norm(&self.through(tokens, ids, texts, self.depth(), |_, _| watch())?)
    }

    /// The tokens' vectors after the first `count` blocks, before the last norm; `seen` as in
    /// [`Transformer::encode`].
    pub(crate) fn run(
        &self,
        ids: &[u32],
        lengths: &[usize],
        count: usize,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        self.through(self.embed(ids, &[])?, ids, Whole::of(lengths), count, seen)
    }

    /// The tokens' vectors with those of their segments.
    fn embed(&self, ids: &[u32], segments: &[u32]) -> Result<Tensor> {
        let device = self.token_embeddings.device();
        let numbers = Tensor::new(ids, device)?;
        let tokens = self.token_embeddings.index_select(&numbers, 0)?;
        let tokens = match &self.token_adapter {
            Some(TokenAdapter { down, up, first_segment }) => {
                let added = down.index_select(&numbers, 0)?.matmul(up)?;
                add(&tokens, &added.broadcast_add(first_segment)?)?
            }
            None => tokens,
        };
        if segments.iter().all(|segment| *segment == 0) {
            return Ok(tokens);
        }
        let table = self.segments.as_ref().ok_or_else(|| Error::compute("the model has no segments"))?;
        let (known, most) = (table.dim(0)?, segments.iter().max().copied().unwrap_or(0));
        if most as usize >= known {
            let reason =
                format!("the tokenizer makes {} segments of a pair; the model has {known}", most + 1);
            return Err(Error::InvalidInput(reason));
        }
        Ok((tokens + table.index_select(&Tensor::new(segments, device)?, 0)?)?)
    }

    fn through(
        &self,
        tokens: Tensor,
        ids: &[u32],
        texts: Whole<'_>,
        count: usize,
        seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let lengths = texts.lengths;
        if let Some(length) = lengths.iter().find(|length| **length > self.context) {
            let reason = format!("a text of {length} tokens; the model takes at most {}", self.context);
            return Err(Error::InvalidInput(reason));
        }
        let positions = self.positions.as_ref().map(|positions| positions.of(ids, lengths)).transpose()?;
        let hidden = match (&self.embedding_norm, positions) {
            (Some(norm), Some(positions)) => norm.of_sum(&tokens, &positions)?,
            (Some(norm), None) => norm.forward(&tokens)?,
            (None, Some(positions)) => (tokens + positions)?,
            (None, None) => tokens,
        };
        let hidden = match &self.embedding_projection {
            Some(projection) => projection.forward(&hidden, Activation::Identity)?,
            None => hidden,
        };
        self.transformer.encode_whole(hidden, texts, 0..count, seen)
    }

    /// The norm after the last block.
    pub(crate) fn last_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward(hidden),
            None => Ok(hidden.clone()),
        }
    }
}

impl Positions {
    fn of(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let places: Vec<u32> = match self.padding {
            None => lengths.iter().flat_map(|length| 0..*length as u32).collect(),
            Some(padding) => places_after(padding, ids, lengths),
        };
        Ok(self.table.index_select(&Tensor::new(places, self.table.device())?, 0)?)
    }
}

/// Each token's place among those of its text that are not padding, counted from the one after padding's own.
fn places_after(padding: u32, mut ids: &[u32], lengths: &[usize]) -> Vec<u32> {
    let mut places = Vec::with_capacity(ids.len());
    for length in lengths {
        let (text, rest) = ids.split_at((*length).min(ids.len()));
        let mut place = padding;
        places.extend(text.iter().map(|id| match *id == padding {
            true => padding,
            false => {
                place += 1;
                place
            }
        }));
        ids = rest;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_inside_a_text_is_not_counted() {
        assert_eq!(places_after(1, &[0, 5, 1, 6, 2, 0, 2], &[5, 2]), [2, 3, 1, 4, 5, 2, 3]);
    }
}
