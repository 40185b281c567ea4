//! A decoder in memory: token embeddings, blocks and logits.

use std::ops::Range;

use candle_core::Tensor;

use super::config::{DecoderConfig, Embeddings};
use crate::error::{Error, Result};
use crate::kernels::packed::PackedLinear;
use crate::kernels::{Activation, Ahead, scale, soft_cap};
use crate::models::transformer::{Cache, Norm, Segment, Transformer};

/// A decoder's weights, which all workers share.
pub(crate) struct Decoder {
    pub(super) token_embeddings: PackedLinear,
    pub(super) block_inputs: Option<BlockInputTable>,
    pub(super) positions: Option<LearnedPositions>,
    pub(super) transformer: Transformer,
    /// Norm after the last block, unless the head has it.
    pub(super) norm: Option<Norm>,
    pub(super) logits: Logits,
    pub(super) config: DecoderConfig,
}

/// The inputs that blocks have of their own for each token.
pub(super) struct BlockInputTable {
    pub(super) table: PackedLinear,
    /// Number of tokens that it knows.
    pub(super) tokens: usize,
    pub(super) scale: f32,
}

/// Learned positions.
pub(super) struct LearnedPositions {
    pub(super) table: PackedLinear,
    /// The position of the first place.
    pub(super) first: usize,
    /// The norm of their sum with token embeddings.
    pub(super) norm: Option<Norm>,
}

/// The layer that makes logits of hidden states.
pub(super) enum Logits {
    /// A matrix of its own.
    Own(PackedLinear),
    /// The token embeddings.
    Tied,
    /// A layer and a norm before a matrix of its own, or before the token embeddings.
    Transformed { transform: PackedLinear, activation: Activation, norm: Norm, matrix: Option<PackedLinear> },
    /// Nothing: an embedder's.
    None,
}

impl Decoder {
    /// Number of tokens that it knows.
    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Maximum number of tokens of a sequence.
    pub(crate) fn context(&self) -> usize {
        self.config.context
    }

    /// An empty cache of a sequence that gets at least `known` tokens: those of its prompt, of which only a
    /// part may be in the first pass.
    pub(crate) fn cache(&self, known: usize) -> Result<Cache> {
        self.transformer.cache(known)
    }

    /// The same for a sequence that sees the rows of an image beside itself.
    pub(crate) fn cache_beside(&self, known: usize, rows: &Tensor) -> Result<Cache> {
        self.transformer.cache_beside(known, rows)
    }

    /// Token numbers to `(tokens, width)`, scaled as the family does; the inputs that blocks have of their own come after
    /// each token's vector.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a number that is no token.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let embeddings = self.token_embeddings.lookup(tokens)?;
        let embeddings = match self.config.embeddings {
            Embeddings::Scaled(factor) => scale(embeddings, factor)?,
            Embeddings::Plain | Embeddings::WithPositions | Embeddings::PlusPositions { .. } => embeddings,
        };
        let Some(BlockInputTable { table, tokens: known, scale: factor }) = &self.block_inputs else {
            return Ok(embeddings);
        };
        let place = |token: &u32| if (*token as usize) < *known { *token } else { 0 };
        let inputs = scale(table.lookup(&tokens.iter().map(place).collect::<Vec<_>>())?, *factor)?;
        Ok(Tensor::cat(&[&embeddings, &inputs], 1)?)
    }

    /// The next rows of several sequences, `(rows, width)`, through all blocks and the last norm: `(rows,
    /// width)`. As [`Transformer::forward`].
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a sequence beyond the context.
    pub(crate) fn forward(&self, rows: &Tensor, segments: &mut [Segment<'_>]) -> Result<Tensor> {
        self.forward_with(rows, segments, Ahead::Hidden, |_, hidden| Ok(hidden))
    }

    /// The same, where rows may see `ahead` whatever the masks of the blocks say, and `after` is given each
    /// block's number and output, and what it returns goes on.
    pub(crate) fn forward_with(
        &self,
        rows: &Tensor,
        segments: &mut [Segment<'_>],
        ahead: Ahead,
        after: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        for segment in segments.iter() {
            let end = segment.cache.length().saturating_add(segment.length);
            let context = self.context();
            if end > context {
                return Err(Error::InvalidInput(format!("{end} tokens; the model's context has {context}")));
            }
        }
        let hidden = match &self.positions {
            Some(LearnedPositions { table, first, norm }) => {
                let places = |segment: &Segment<'_>| {
                    let begin = first + segment.cache.length();
                    (begin..begin + segment.length).map(|place| place as u32)
                };
                let places: Vec<u32> = segments.iter().flat_map(places).collect();
                let positions = table.lookup(&places)?;
                match norm {
                    Some(norm) => norm.of_sum(rows, &positions)?,
                    None => (rows + positions)?,
                }
            }
            None => rows.clone(),
        };
        self.normed(self.transformer.forward(hidden, segments, ahead, after)?)
    }

    /// Whole texts of these lengths, `(tokens, width)`, through all blocks and the last norm; nothing is
    /// kept. `watch` is called before the first block and after each, and may end the pass.
    pub(crate) fn encode(
        &self,
        rows: &Tensor,
        lengths: &[usize],
        watch: impl Fn() -> Result<()>,
    ) -> Result<Tensor> {
        self.encode_through(&self.transformer, rows, lengths, watch)
    }

    /// The same through other blocks, such as those with an adapter.
    pub(crate) fn encode_through(
        &self,
        transformer: &Transformer,
        rows: &Tensor,
        lengths: &[usize],
        watch: impl Fn() -> Result<()>,
    ) -> Result<Tensor> {
        let blocks = 0..transformer.depth();
        self.normed(transformer.encode(rows.clone(), lengths, blocks, |_, _| watch())?)
    }

    fn normed(&self, hidden: Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward(&hidden),
            None => Ok(hidden),
        }
    }

    /// Hidden states, `(rows, width)`, to the logits of the next token, `(rows, vocabulary)`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = match &self.logits {
            Logits::Own(matrix) => matrix.forward(hidden, Activation::Identity)?,
            Logits::Tied => self.token_embeddings.forward(hidden, Activation::Identity)?,
            Logits::Transformed { transform, activation, norm, matrix } => {
                let hidden = norm.forward(&transform.forward(hidden, *activation)?)?;
                matrix.as_ref().unwrap_or(&self.token_embeddings).forward(&hidden, Activation::Identity)?
            }
            Logits::None => {
                let reason = "a decoder that was loaded without logits";
                return Err(Error::compute(reason));
            }
        };
        match self.config.logit_cap {
            Some(cap) => soft_cap(logits, cap),
            None => Ok(logits),
        }
    }

    /// As [`Transformer::numbers_per_token`].
    pub(crate) fn numbers_per_token(&self) -> Option<usize> {
        self.transformer.numbers_per_token()
    }

    /// As [`Transformer::copy`].
    pub(crate) fn copy(&self, cache: &Cache, tokens: Range<usize>) -> Option<Vec<f32>> {
        self.transformer.copy(cache, tokens)
    }

    /// As [`Transformer::fill`].
    pub(crate) fn fill(&self, cache: &mut Cache, copies: &[&[f32]], tokens: usize) -> Result<()> {
        self.transformer.fill(cache, copies, tokens)
    }

    /// As [`Transformer::lengthened`].
    pub(crate) fn lengthened(&self, tokens: usize) -> usize {
        self.transformer.lengthened(tokens)
    }

    /// True if a sequence's cache is of no use once the sequence has so many tokens: [`Cache::restart`] it
    /// then, and read the sequence again.
    pub(crate) fn outgrows(&self, cache: &Cache, tokens: usize) -> bool {
        self.transformer.outgrows(cache, tokens)
    }
}
