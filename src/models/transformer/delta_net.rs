//! The gated delta net of a block, in place of attention. The loop is a kernel; here it gets its weights.

use candle_core::Tensor;

use super::attention::{Pass, Sequences};
use super::projection::Projection;
use crate::error::{Error, Result};
use crate::kernels::causal::LayerSegment;
use crate::kernels::delta_net::GatedDeltaNet;
use crate::kernels::{Activation, Ahead};

/// A gated delta net.
pub(crate) struct DeltaNet {
    /// Projections to queries, keys, values and output gates in one product.
    pub(super) input_proj: Projection,
    /// Projections to betas and decays in one product.
    pub(super) gates_proj: Projection,
    pub(super) kernel: GatedDeltaNet,
    pub(super) out_proj: Projection,
}

impl DeltaNet {
    /// Normed rows, `(rows, width)`, to `(rows, value_heads · value_size)`, before the output projection.
    pub(super) fn forward(&self, input: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let Sequences::Cached(segments) = &mut pass.sequences else {
            return Err(misfit("it needs a state of each sequence"));
        };
        if pass.ahead == Ahead::Seen {
            return Err(misfit("a row sees no others than those before it"));
        }
        let states = segments.iter_mut().map(|segment| {
            let LayerSegment { past, length, .. } = *segment;
            Ok(LayerSegment { cache: segment.cache.delta_net()?, past, length })
        });
        let mut states = states.collect::<Result<Vec<_>>>()?;
        let projected = self.input_proj.forward(input, Activation::Identity)?;
        let gates = self.gates_proj.forward(input, Activation::Identity)?;
        self.kernel.forward(&projected, &gates, &mut states)
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("gated delta net: {reason}"))
}
