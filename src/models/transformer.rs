//! One transformer, configured: the blocks of every encoder, vision tower and decoder of this crate. A family
//! says what its blocks differ in as data ([`TransformerConfig`]) and what its file calls their tensors
//! ([`Names`]); one loader makes a [`Transformer`] of them, from safetensors or GGUF. Weights are shared by
//! all workers; what a sequence keeps between passes is its [`Cache`], which a worker owns. Embeddings before
//! the blocks and heads after them are left to the models: `towers`, `decoder` and the capabilities.

mod projection;
mod adapter;
mod norm;
mod rope;
mod config;
mod names;
mod layer_cache;
mod attention;
mod delta_net;
mod mixer;
mod streams;
mod cache;
mod feed_forward;
mod block;
mod stack;
mod tensors;
mod load;

pub(crate) use adapter::Adapter;
pub(crate) use attention::CrossKeyValues;
pub(crate) use block::Block;
pub(crate) use cache::{Cache, Segment};
pub(crate) use config::{
    AttentionConfig, AttentionSinks, Bias, Biases, DistanceVectorsConfig, ExpertForm, ExpertWeights,
    FeedForwardConfig, HeadNorms, LayerConfig, MixerConfig, NormKind, NormPlacement, OutputGate,
    RelativeBiasConfig, Sizes, StreamsConfig, TransformerConfig, ValueNorm, Workload, check_side,
    layer_count,
};
pub(crate) use feed_forward::FeedForward;
pub(crate) use load::{LowRankMatrices, load, load_adapter, load_feed_forward, low_rank};
pub(crate) use names::{
    CrossNames, DeltaNetForm, DeltaNetInputs, DeltaNetNames, ExpertNames, MatrixOrder, Names, QkvNames,
    StreamNames, UpNames, is_buffer, is_tensor_of,
};
pub(crate) use norm::Norm;
pub(crate) use projection::{AdaptedProjection, Projection};
pub(crate) use rope::{Rope, RopeParameters, RopeSettings, RopeShape};
pub(crate) use stack::Transformer;
pub(crate) use tensors::{Linears, RowOrder, SafeTensors, Tensors};
