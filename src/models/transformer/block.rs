//! One transformer block: self-attention or a gated delta net, for some models cross-attention, and a feed-forward network, each
//! added to the residual stream with the norms that the family has around it.

use std::f32::consts::FRAC_1_SQRT_2;

use candle_core::Tensor;

use super::adapter::{AdaptedLayer, RowAdapters};
use super::attention::{CrossAttention, CrossKeyValues, CrossRun, Pass};
use super::feed_forward::FeedForward;
use super::mixer::Mixer;
use super::norm::SublayerNorms;
use super::streams::Alternation;
use crate::error::{Error, Result};
use crate::kernels::{Activation, add, scale};

/// A block's weights.
pub(crate) struct Block {
    pub(super) mixer: Mixer,
    pub(super) attention_norms: SublayerNorms,
    pub(super) cross_attention: Option<(CrossAttention, SublayerNorms)>,
    pub(super) feed_forward: FeedForward,
    pub(super) feed_forward_norms: SublayerNorms,
    /// Its part in a model with several residual streams.
    pub(super) alternation: Option<Box<Alternation>>,
    pub(super) order: Order,
}

/// Order of attention and feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// It sees the sum with the attention's output.
    Sequential,
    /// Both see the same normed input, and the sum has both outputs (GPT-J, Phi).
    Parallel,
}

impl Block {
    /// `(rows, width)` to the same; with several residual streams, `(streams · rows, width)`.
    pub(crate) fn forward(&self, hidden: Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        if let Some(alternation) = &self.alternation {
            return self.alternate(alternation, hidden, pass);
        }
        match self.order {
            Order::Sequential => {
                let attention_output = self.mixer.forward(self.attention_norms.before(&hidden)?, pass)?;
                self.finish_adapted(attention_output, hidden, pass.cross, pass.adapters)
            }
            Order::Parallel => {
                let input = self.attention_norms.before(&hidden)?;
                let attention_output = self.mixer.forward(input.clone(), pass)?;
                let attention_output = self.project(&attention_output, pass.adapters)?;
                let hidden = self.attention_norms.add(attention_output, hidden)?;
                let output = self.feed_forward.forward_adapted(&input, pass.adapters)?;
                self.feed_forward_norms.add(output, hidden)
            }
        }
    }

    fn alternate(
        &self,
        alternation: &Alternation,
        streams: Tensor,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        let predictions = alternation.predict(&streams)?;
        drop(streams);
        let hidden = alternation.active(&predictions)?;
        let normed = self.attention_norms.before(&hidden)?;
        let around = alternation.around(&normed)?;
        let output = self.mixer.forward(normed, pass)?;
        let output = self.project(&output, pass.adapters)?;
        let hidden = add(&self.attention_norms.add(output, hidden)?, &around)?;
        let hidden = scale(hidden, FRAC_1_SQRT_2)?;
        let normed = self.feed_forward_norms.before(&hidden)?;
        let output = self.feed_forward.forward_adapted(&normed, pass.adapters)?;
        let hidden = self.feed_forward_norms.add(output, hidden)?;
        alternation.correct(&predictions, &hidden, pass.input.as_ref())
    }

    /// Rows of what attention or a gated delta net gives, through the projection after it.
    fn project(&self, rows: &Tensor, adapters: RowAdapters<'_>) -> Result<Tensor> {
        adapters.forward(AdaptedLayer::AttentionOutput, self.mixer.out_proj(), rows, Activation::Identity)
    }

    /// The first half of a sequential block with attention: queries, keys and values of rows, `(rows, 3 · width)`
    /// without grouping.
    pub(crate) fn qkv(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.mixer {
            Mixer::Attention(attention) => {
                attention.qkv(&self.attention_norms.before(hidden)?, RowAdapters::default())
            }
            Mixer::DeltaNet(_) => Err(Error::compute("a block has no attention whose parts could be had")),
        }
    }

    /// The second half of a sequential block, from what attention gives for the rows of `hidden`. Rows need
    /// not be those of whole sequences: none sees another here.
    pub(crate) fn finish(
        &self,
        attention_output: Tensor,
        hidden: Tensor,
        cross: &[CrossRun<'_>],
    ) -> Result<Tensor> {
        self.finish_adapted(attention_output, hidden, cross, RowAdapters::default())
    }

    fn finish_adapted(
        &self,
        attention_output: Tensor,
        hidden: Tensor,
        cross: &[CrossRun<'_>],
        adapters: RowAdapters<'_>,
    ) -> Result<Tensor> {
        let output = self.project(&attention_output, adapters)?;
        drop(attention_output);
        let mut hidden = self.attention_norms.add(output, hidden)?;
        if let Some((attention, norms)) = &self.cross_attention {
            let output = attention.forward(&norms.before(&hidden)?, cross)?;
            hidden = norms.add(output, hidden)?;
        }
        let normed = self.feed_forward_norms.before(&hidden)?;
        let output = self.feed_forward.forward_adapted(&normed, adapters)?;
        self.feed_forward_norms.add(output, hidden)
    }

    /// Keys and values of rows that the cross-attention sees, if the block has one.
    pub(super) fn cross_key_values(&self, rows: &Tensor) -> Result<Option<CrossKeyValues>> {
        self.cross_attention.as_ref().map(|(attention, _)| attention.key_values(rows)).transpose()
    }
}
