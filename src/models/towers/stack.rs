//! A stack of transformer layers that norm their input first: `x + attention(norm(x))`, then `x + middle(norm(x))`.

use candle_core::Tensor;
use model_actors::Bytes;

use super::{Bias, linear, mixed, norm};
use crate::error::Result;
use crate::kernels::self_attention::SelfAttention;
use crate::kernels::{Activation, AttentionMask, LayerNorm, Linear, SCORES_PER_THREAD};
use crate::weights::WeightReader;

/// The sides of a stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackShape {
    pub(crate) width: usize,
    pub(crate) middle: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
}

impl StackShape {
    /// What a pass over so many rows needs, where the longest sequence has `longest` of them: the widest moment of a
    /// layer is its input, its norm and the middle layer, or these with the mixed queries, keys and values, and scores.
    pub(crate) fn scratch(&self, rows: usize, longest: usize) -> Bytes {
        let (width, middle) = (self.width as u64, self.middle as u64);
        let row =
            middle.saturating_mul(2).max(width.saturating_mul(4)).saturating_add(width.saturating_mul(3));
        let scores = longest.saturating_mul(longest).min(SCORES_PER_THREAD) as u64;
        Bytes(row.saturating_mul(rows as u64).saturating_add(scores).saturating_mul(4))
    }
}

/// The layers, and how they look at their input.
pub(crate) struct Stack {
    pub(crate) layers: Vec<Layer>,
    pub(crate) heads: usize,
    pub(crate) mask: AttentionMask,
}

impl Stack {
    /// Passes `(rows, width)` through the first `count` layers. `seen` is given what goes in as number 0, and what
    /// comes out of each layer as the number of layers so far, which is how transformers counts `hidden_states`; it can
    /// end the pass by an error.
    pub(crate) fn run(
        &self,
        input: Tensor,
        lengths: &[usize],
        count: usize,
        mut seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        seen(0, &input)?;
        let mut hidden = input;
        for (index, layer) in self.layers.iter().take(count).enumerate() {
            hidden = layer.forward(&hidden, lengths, self.heads, self.mask)?;
            seen(index + 1, &hidden)?;
        }
        Ok(hidden)
    }

    /// Loads the layers `{name}.0`, `{name}.1` … with the tensor names that CLIP and SigLIP share.
    pub(crate) fn load(
        reader: &WeightReader<'_>,
        name: &str,
        shape: &StackShape,
        mask: AttentionMask,
    ) -> Result<Self> {
        let layers = (0..shape.layers).map(|index| Layer::load(reader, &format!("{name}.{index}"), shape));
        Ok(Self { layers: layers.collect::<Result<_>>()?, heads: shape.heads, mask })
    }
}

/// One layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: LayerNorm,
    /// Query, key and value in one product: `(width)` to `(3 · width)`.
    pub(crate) mixed: Linear,
    pub(crate) attended: Linear,
    pub(crate) middle_norm: LayerNorm,
    pub(crate) middle: Middle,
}

/// The layer's second half.
pub(crate) enum Middle {
    /// `narrow(activation(wide(x)))`.
    Plain { wide: Linear, activation: Activation, narrow: Linear },
    /// SwiGLU: `narrow(silu(gate(x)) · wide(x))`.
    Gated { gate: Linear, wide: Linear, narrow: Linear },
}

impl Middle {
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { wide, activation, narrow } => {
                narrow.forward(&wide.forward(input, *activation)?, Activation::Identity)
            }
            Self::Gated { gate, wide, narrow } => {
                let gate = gate.forward(input, Activation::Silu)?;
                let wide = (wide.forward(input, Activation::Identity)? * gate)?;
                narrow.forward(&wide, Activation::Identity)
            }
        }
    }

    /// Loads `{name}.fc1` and `{name}.fc2`.
    pub(crate) fn load(reader: &WeightReader<'_>, name: &str, shape: &StackShape) -> Result<Self> {
        Ok(Self::Plain {
            wide: linear(reader, &format!("{name}.fc1"), shape.middle, shape.width, Bias::With)?,
            activation: shape.activation,
            narrow: linear(reader, &format!("{name}.fc2"), shape.width, shape.middle, Bias::With)?,
        })
    }
}

impl Layer {
    fn load(reader: &WeightReader<'_>, name: &str, shape: &StackShape) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let names = [part("self_attn.q_proj"), part("self_attn.k_proj"), part("self_attn.v_proj")];
        let width = shape.width;
        Ok(Self {
            attention_norm: norm(reader, &part("layer_norm1"), width, shape.epsilon)?,
            mixed: mixed(reader, names.each_ref().map(String::as_str), width, Bias::With)?,
            attended: linear(reader, &part("self_attn.out_proj"), width, width, Bias::With)?,
            middle_norm: norm(reader, &part("layer_norm2"), width, shape.epsilon)?,
            middle: Middle::load(reader, &part("mlp"), shape)?,
        })
    }

    /// `(rows, width)` to the same.
    pub(crate) fn forward(
        &self,
        input: &Tensor,
        lengths: &[usize],
        heads: usize,
        mask: AttentionMask,
    ) -> Result<Tensor> {
        let mixed = self.mixed.forward(&self.attention_norm.of(input)?, Activation::Identity)?;
        let attended =
            SelfAttention { heads, alibi_slopes: &[], mask, rope: None }.forward(&mixed, lengths)?;
        drop(mixed);
        let attended = (self.attended.forward(&attended, Activation::Identity)? + input)?;
        let middle = self.middle.forward(&self.middle_norm.of(&attended)?)?;
        Ok((attended + middle)?)
    }
}
