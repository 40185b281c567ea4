//! One layer of a decoder.

use candle_core::Tensor;

use super::experts::{Experts, Gated};
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::causal::{CausalAttention, LayerSegment};
use crate::kernels::packed::PackedLinear;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::rotary::RopeTable;

pub(super) struct Layer {
    pub(super) attention_norm: RmsNorm,
    /// Queries, keys and values in one product.
    pub(super) mixed: PackedLinear,
    pub(super) attention: CausalAttention,
    pub(super) attended: PackedLinear,
    /// On what attention gives, where the family has one.
    pub(super) attended_norm: Option<RmsNorm>,
    pub(super) feed_norm: RmsNorm,
    pub(super) feed: Feed,
    /// On what the feed-forward gives, where the family has one.
    pub(super) fed_norm: Option<RmsNorm>,
    /// Number of its rotary embedding.
    pub(super) rope: usize,
}

/// A layer's second half.
pub(super) enum Feed {
    Dense(Gated),
    Experts(Experts),
}

/// What a pass's rows are to each layer.
pub(super) struct Pass<'a, 'b> {
    pub(super) rope: &'a RopeTable,
    pub(super) segments: &'a mut [LayerSegment<'b>],
}

impl Layer {
    pub(super) fn forward(&self, hidden: Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let mixed = self.mixed.forward(&self.attention_norm.forward(&hidden)?, Activation::Identity)?;
        let attended = self.attention.forward(&mixed, pass.rope, pass.segments)?;
        drop(mixed);
        let attended = self.attended.forward(&attended, Activation::Identity)?;
        let hidden = (hidden + normed(attended, self.attended_norm.as_ref())?)?;
        let fed = self.feed.forward(&self.feed_norm.forward(&hidden)?)?;
        Ok((hidden + normed(fed, self.fed_norm.as_ref())?)?)
    }
}

fn normed(rows: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&rows),
        None => Ok(rows),
    }
}

impl Feed {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(gated) => gated.forward(input),
            Self::Experts(experts) => experts.forward(input),
        }
    }
}
