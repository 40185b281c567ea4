//! The attention of a block: of a sequence with itself, with a KV cache or without, and of a sequence with
//! other rows (cross-attention). The loops are kernels; here they get their weights.

use candle_core::Tensor;

use super::adapter::{AdaptedLayer, RowAdapters};
use super::config::OutputGate;
use super::layer_cache::LayerCache;
use super::projection::Projection;
use crate::error::{Error, Result};
use crate::kernels::causal::{CausalAttention, LayerSegment};
use crate::kernels::rotary::RopeTable;
use crate::kernels::self_attention::{SelfAttention, Whole};
use crate::kernels::{
    Activation, Ahead, DistanceVectors, ScoreBias, gated, scaled_dot_product_attention, split_gates,
};

/// The sequences of a pass, whose rows lie one after another without padding.
pub(crate) enum Sequences<'a, 'b> {
    /// Whole sequences, of which nothing is kept.
    Whole(Whole<'a>),
    /// The next rows of sequences whose caches have what is kept of the earlier ones.
    Cached(&'a mut [LayerSegment<'b, LayerCache>]),
}

/// A pass through one block.
pub(crate) struct Pass<'a, 'b> {
    /// One table for each rotary embedding of the model, with a row for each row of the pass.
    pub(crate) rope_tables: &'a [RopeTable],
    pub(crate) sequences: Sequences<'a, 'b>,
    /// For each sequence in order the keys and values of its cross-attention; empty in a model without.
    pub(crate) cross: &'a [CrossRun<'a>],
    /// Whether cached rows see those after them, whatever their block's mask says.
    pub(crate) ahead: Ahead,
    /// The block's own input of each row, in a model with several residual streams.
    pub(crate) input: Option<Tensor>,
    pub(crate) adapters: RowAdapters<'a>,
}

/// Multi-head or grouped-query self-attention.
pub(crate) struct Attention {
    /// Query, key and value projections in one product.
    pub(super) qkv_proj: Projection,
    pub(super) output_gate: OutputGate,
    pub(super) kernel: CausalAttention,
    /// For each head what a step of distance takes off a score (ALiBi); empty for none.
    pub(super) alibi_slopes: Vec<f32>,
    /// Learned vectors of distances, in place of it and of the kernel's biases.
    pub(super) distance_vectors: Option<DistanceVectors>,
    /// Number of the block whose keys and values it sees, if they are not its own.
    pub(super) key_values_of: Option<usize>,
    /// Number of its rotary embedding.
    pub(super) rope: Option<usize>,
    pub(super) out_proj: Projection,
}

impl Attention {
    /// Queries, keys and values of normed rows, `(rows, (heads + 2 · kv_heads) · head_size)`; with output gates, each
    /// head's gate after its query.
    pub(super) fn qkv(&self, input: &Tensor, adapters: RowAdapters<'_>) -> Result<Tensor> {
        adapters.forward(AdaptedLayer::Qkv, &self.qkv_proj, input, Activation::Identity)
    }

    /// `(rows, heads · head_size)`, before the output projection.
    pub(super) fn attend(&self, qkv: Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        match self.output_gate {
            OutputGate::None => self.ungated(&qkv, pass),
            OutputGate::EachHead => {
                let (plain, gate) = split_gates(&qkv, self.kernel.heads, self.kernel.size)?;
                drop(qkv);
                gated(&self.ungated(&plain, pass)?, &gate)
            }
        }
    }

    fn ungated(&self, qkv: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let rope = match self.rope {
            Some(rope) => Some(pass.rope_tables.get(rope).ok_or_else(|| misfit("no rotary embedding"))?),
            None => None,
        };
        let kernel = &self.kernel;
        match &mut pass.sequences {
            Sequences::Whole(whole) => {
                let bias = match (&self.distance_vectors, &kernel.relative_bias, self.alibi_slopes.as_slice())
                {
                    (Some(vectors), ..) => ScoreBias::Vectors(vectors),
                    (None, Some(relative), _) => ScoreBias::Relative(relative),
                    (None, None, []) => ScoreBias::None,
                    (None, None, slopes) => ScoreBias::Slopes(slopes),
                };
                SelfAttention { heads: kernel.heads, scale: kernel.scale, bias, mask: kernel.mask, rope }
                    .forward(qkv, *whole)
            }
            Sequences::Cached(segments) => {
                let caches = segments.iter_mut().map(|segment| {
                    let LayerSegment { past, length, .. } = *segment;
                    Ok(LayerSegment { cache: segment.cache.key_values()?, past, length })
                });
                let mut segments = caches.collect::<Result<Vec<_>>>()?;
                let none = RopeTable::new(0);
                let rope = rope.unwrap_or(&none);
                match kernel.mask.seeing(pass.ahead) {
                    mask if mask == kernel.mask => kernel.forward(qkv, rope, &mut segments),
                    mask => CausalAttention { mask, ..kernel.clone() }.forward(qkv, rope, &mut segments),
                }
            }
        }
    }
}

/// Attention of a sequence's rows to rows of something else, such as an image.
pub(crate) struct CrossAttention {
    pub(super) query_proj: Projection,
    /// Key and value projections in one product.
    pub(super) kv_proj: Projection,
    pub(super) out_proj: Projection,
    pub(super) heads: usize,
    pub(super) scale: f64,
}

/// Keys and values that a cross-attention sees, `(1, rows, width)` each.
#[derive(Debug, Clone)]
pub(crate) struct CrossKeyValues {
    keys: Tensor,
    values: Tensor,
}

impl CrossKeyValues {
    /// From rows of a key and a value side by side, `(rows, 2 · width)`.
    pub(crate) fn split(rows: &Tensor) -> Result<Self> {
        let width = rows.dim(1)? / 2;
        let half = |first| rows.narrow(1, first, width)?.contiguous()?.unsqueeze(0);
        Ok(Self { keys: half(0)?, values: half(width)? })
    }

    /// The keys and values of some of the rows.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let some = |tensor: &Tensor| tensor.narrow(1, first, count)?.contiguous();
        Ok(Self { keys: some(&self.keys)?, values: some(&self.values)? })
    }

    /// The attention of `queries`, `(rows, width)`, to all of the keys: `(rows, width)`.
    pub(crate) fn attend(&self, queries: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        let queries = queries.unsqueeze(0)?;
        let output = scaled_dot_product_attention(&queries, &self.keys, &self.values, heads, scale, None)?;
        Ok(output.squeeze(0)?)
    }
}

/// The rows of a pass that share keys and values.
pub(crate) struct CrossRun<'a> {
    pub(crate) key_values: &'a CrossKeyValues,
    pub(crate) length: usize,
}

impl CrossAttention {
    /// Keys and values of the rows that are seen.
    pub(super) fn key_values(&self, rows: &Tensor) -> Result<CrossKeyValues> {
        CrossKeyValues::split(&self.kv_proj.forward(rows, Activation::Identity)?)
    }

    /// `(rows, width)` to the same; `runs` cover the rows in order.
    pub(super) fn forward(&self, input: &Tensor, runs: &[CrossRun<'_>]) -> Result<Tensor> {
        let queries = self.query_proj.forward(input, Activation::Identity)?;
        let (mut first, mut outputs) = (0, Vec::with_capacity(runs.len()));
        for run in runs {
            let queries = queries.narrow(0, first, run.length)?;
            outputs.push(run.key_values.attend(&queries, self.heads, self.scale)?);
            first += run.length;
        }
        if first != queries.dim(0)? {
            return Err(misfit("the rows of a cross-attention are not covered"));
        }
        self.out_proj.forward(&Tensor::cat(&outputs, 0)?, Activation::Identity)
    }
}

fn misfit(reason: &str) -> Error {
    Error::compute(format!("attention: {reason}"))
}
