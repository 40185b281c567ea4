//! Several residual streams in place of one (alternating updates, AltUp), as Gemma 3n has them: a block predicts all of
//! them, works on one, and corrects all by what came of it. Beside that each block has a low-rank path around its
//! attention (LAuReL) and an input of its own for each token. The arithmetic of streams is in the kernels.

use std::f32::consts::FRAC_1_SQRT_2;

use candle_core::Tensor;

use super::norm::Norm;
use super::projection::Projection;
use crate::error::{Error, Result};
use crate::kernels::{Activation, add, correct, mix, multiply, scale, with_magnitude};

/// Computation before and after all blocks.
pub(crate) struct Streams {
    /// Projections of the embeddings to the streams after the first, and back from there.
    pub(super) embed: Vec<Projection>,
    pub(super) unembed: Vec<Projection>,
    pub(super) inputs: BlockInputs,
    pub(super) width: usize,
}

/// The inputs of blocks: what a table has for a token, and a projection of its embedding.
pub(super) struct BlockInputs {
    /// To the inputs of all blocks.
    pub(super) projection: Projection,
    pub(super) norm: Norm,
    /// Numbers of one block's input.
    pub(super) size: usize,
}

impl Streams {
    /// Rows, each a token's embedding and what the table has for it, to streams, `(streams · rows, width)`, and the inputs
    /// of all blocks, one block's after another's in each row.
    pub(super) fn begin(&self, rows: &Tensor) -> Result<(Tensor, Tensor)> {
        let all = rows.dim(1)?;
        let hidden = rows.narrow(1, 0, self.width)?.contiguous()?;
        let table = rows.narrow(1, self.width, all.saturating_sub(self.width))?.contiguous()?;
        let projected = self.inputs.projection.forward(&hidden, Activation::Identity)?;
        let projected = scale(projected, 1.0 / (self.width as f32).sqrt())?;
        let inputs = scale(add(&self.inputs.norm.forward(&projected)?, &table)?, FRAC_1_SQRT_2)?;
        let mut streams = vec![hidden.clone()];
        for projection in &self.embed {
            streams.push(with_magnitude(&projection.forward(&hidden, Activation::Identity)?, &hidden)?);
        }
        Ok((Tensor::cat(&streams, 0)?, inputs))
    }

    /// Numbers of one block's input.
    pub(super) fn input_size(&self) -> usize {
        self.inputs.size
    }

    /// The input of one block, `(rows, size)`.
    pub(super) fn input(&self, inputs: &Tensor, block: usize) -> Result<Tensor> {
        let size = self.inputs.size;
        Ok(inputs.narrow(1, block * size, size)?.contiguous()?)
    }

    /// Streams to rows, `(rows, width)`: their mean.
    pub(super) fn end(&self, streams: &Tensor) -> Result<Tensor> {
        let count = self.unembed.len() + 1;
        let rows = streams.dim(0)? / count;
        let stream = |index: usize| streams.narrow(0, index * rows, rows)?.contiguous();
        let first = stream(0)?;
        let mut sum = first.clone();
        for (index, projection) in (1..).zip(&self.unembed) {
            let projected = projection.forward(&stream(index)?, Activation::Identity)?;
            sum = add(&sum, &with_magnitude(&projected, &first)?)?;
        }
        scale(sum, 1.0 / count as f32)
    }
}

/// A block's part of it.
pub(crate) struct Alternation {
    /// Number of streams.
    pub(super) count: usize,
    /// Number of the stream that the block works on.
    pub(super) active: usize,
    /// Norm before the router, divided by the width.
    pub(super) router_norm: Norm,
    pub(super) router: Projection,
    pub(super) prediction: Projection,
    pub(super) correction: Projection,
    /// Factors on the stream that the block's input is weighed by.
    pub(super) output_scale: Tensor,
    pub(super) laurel_down: Projection,
    pub(super) laurel_up: Projection,
    pub(super) laurel_norm: Norm,
    /// Gate of the block's input.
    pub(super) gate: Projection,
    pub(super) activation: Activation,
    pub(super) projection: Projection,
    pub(super) norm: Norm,
}

impl Alternation {
    /// All streams as they are predicted to be after the block.
    pub(super) fn predict(&self, streams: &Tensor) -> Result<Tensor> {
        let routed = self.route(&self.active(streams)?)?;
        mix(streams, &self.prediction.forward(&routed, Activation::Identity)?)
    }

    /// The stream that the block works on, `(rows, width)`.
    pub(super) fn active(&self, streams: &Tensor) -> Result<Tensor> {
        let rows = streams.dim(0)? / self.count;
        Ok(streams.narrow(0, self.active * rows, rows)?.contiguous()?)
    }

    /// The path around attention, of normed rows.
    pub(super) fn around(&self, normed: &Tensor) -> Result<Tensor> {
        let down = self.laurel_down.forward(normed, Activation::Identity)?;
        let up = self.laurel_up.forward(&down, Activation::Identity)?;
        add(normed, &self.laurel_norm.forward(&up)?)
    }

    /// Corrects the predictions by what came of the block, and adds its input to all streams but the first.
    pub(super) fn correct(
        &self,
        predictions: &Tensor,
        activated: &Tensor,
        input: Option<&Tensor>,
    ) -> Result<Tensor> {
        let input = input.ok_or_else(|| Error::compute("residual streams: a block without its input"))?;
        let factors = self.correction.forward(&self.route(activated)?, Activation::Identity)?;
        let corrected = correct(predictions, activated, &(factors + 1.0)?, self.active)?;
        let scaled = multiply(&self.active(&corrected)?, &self.output_scale)?;
        let gated = multiply(&self.gate.forward(&scaled, self.activation)?, input)?;
        let added = self.norm.forward(&self.projection.forward(&gated, Activation::Identity)?)?;
        let rows = activated.dim(0)?;
        let others = self.count - 1;
        let rest = corrected.narrow(0, rows, others * rows)?.contiguous()?;
        let rest = add(&rest, &Tensor::cat(&vec![added; others], 0)?)?;
        Ok(Tensor::cat(&[&corrected.narrow(0, 0, rows)?.contiguous()?, &rest], 0)?)
    }

    fn route(&self, rows: &Tensor) -> Result<Tensor> {
        self.router.forward(&self.router_norm.forward(rows)?, Activation::Tanh)
    }
}
