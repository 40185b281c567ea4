//! Operations that models spend their time in, on tensors: linear layers, norms, activations, convolutions,
//! rotary embeddings, and attention over sequences of unlike length that lie one after another without
//! padding. On the processor they are fused loops on the caller's threads: the rayon pool that the caller
//! runs in, or its thread alone. On an accelerator they are candle's own operations. The modules are listed
//! in reading order, and each imports only those above it; how a model puts them together is left to the
//! families.

mod cpu;
#[cfg(test)]
mod random;
mod rows;
mod elementwise;
mod streams;
mod matmul;
mod activation;
mod linear;
mod layer_norm;
pub(crate) mod rms_norm;
mod group_norm;
pub(crate) mod glu;
mod convolution;
mod patchify;
pub(crate) mod ggml;
mod quantized;
mod integer;
mod panels;
pub(crate) mod packed;
pub(crate) mod rotary;
mod interleaved_rotary;
mod flash;
mod distance_vectors;
mod score_bias;
mod cross_attention;
pub(crate) mod self_attention;
pub(crate) mod causal;
mod output_gate;
pub(crate) mod delta_net;

pub(crate) use activation::Activation;
pub(crate) use convolution::Convolution;
pub(crate) use cpu::with_values;
pub(crate) use cross_attention::scaled_dot_product_attention;
pub(crate) use distance_vectors::{DistanceRows, DistanceVectors};
pub(crate) use elementwise::{Placed, add, add_parts, scale, soft_cap};
pub(crate) use flash::{Ahead, AttentionMask, SCORES_PER_THREAD};
pub(crate) use group_norm::GroupNorm;
pub(crate) use interleaved_rotary::rotate_interleaved;
pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::Linear;
pub(crate) use output_gate::{gated, split_gates};
pub(crate) use patchify::patchify;
#[cfg(test)]
pub(crate) use random::random;
pub(crate) use score_bias::{RelativeBias, ScoreBias, relative_position_bucket};
pub(crate) use streams::{correct, mix, multiply, with_magnitude};
