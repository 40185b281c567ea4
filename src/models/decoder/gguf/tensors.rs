//! The tensors of a decoder in a GGUF file, with their rows in the order of safetensors files. Matrices stay quantised. A
//! bias that the file has is added, whatever the architecture: llama.cpp reads the biases of attention and feed-forward
//! network wherever they are.

use candle_core::{Device, Tensor};
use model_actors::LoadContext;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::packed::{Arithmetic, PackedLinear, QuantizedRows, RowUse};
use crate::models::transformer::{Bias, Linears, MatrixOrder, Projection, RowOrder, Tensors};
use crate::weights::in_order;

/// The tensors of a GGUF file.
pub(super) struct GgufTensors<'a> {
    pub(super) file: &'a GgufFile,
    /// Size of the heads whose queries and keys have their rows in llama.cpp's own order, in which the two
    /// numbers of a rotated pair are neighbours; nothing where no rows have.
    pub(super) permuted: Option<usize>,
    pub(super) device: &'a Device,
    pub(super) arithmetic: Arithmetic,
    pub(super) context: &'a LoadContext,
}

impl GgufTensors<'_> {
    /// The size of the heads of a layer whose rows are permuted.
    fn permuted(&self, name: &str) -> Option<usize> {
        self.permuted.filter(|_| name.ends_with(".attn_q") || name.ends_with(".attn_k"))
    }

    fn rows(&self, name: &str, out_dim: usize, in_dim: usize) -> Result<QuantizedRows> {
        let tensor = format!("{name}.weight");
        // Some matrices of one row are vectors.
        let is_vector = self.file.header().tensor(&tensor).is_some_and(|info| info.shape == [in_dim]);
        let shape: &[usize] = if is_vector && out_dim == 1 { &[in_dim] } else { &[out_dim, in_dim] };
        let stored = self.file.read(&tensor, shape, self.context)?;
        let bytes = match self.permuted(name) {
            Some(head_size) => in_order(&stored.bytes, out_dim, head_size),
            None => stored.bytes,
        };
        Ok(QuantizedRows { dtype: stored.dtype, bytes, out_dim })
    }

    fn bias(&self, name: &str, out_dim: usize) -> Result<Vec<f32>> {
        let values = self.file.numbers(&format!("{name}.bias"), &[out_dim], self.context)?;
        Ok(match self.permuted(name) {
            Some(head_size) => in_order(&values, out_dim, head_size),
            None => values,
        })
    }

    fn has_bias(&self, name: &str) -> bool {
        self.file.contains(&format!("{name}.bias"))
    }

    /// The bias of layers that become one: zeros for those without.
    fn biases(&self, layers: &Linears<'_>) -> Result<Option<Tensor>> {
        let required = layers.bias == Bias::Yes;
        if !required && !layers.parts.iter().any(|(name, _)| self.has_bias(name)) {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(layers.out_dim());
        for (name, out_dim) in layers.parts {
            match required || self.has_bias(name) {
                true => all.extend(self.bias(name, *out_dim)?),
                false => all.resize(all.len() + out_dim, 0.0),
            }
        }
        Ok(Some(Tensor::from_vec(all, layers.out_dim(), self.device)?))
    }
}

impl Tensors for GgufTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.file.numbers(name, shape, self.context)?;
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }

    fn packed(&self, layers: &Linears<'_>, rows: RowUse) -> Result<PackedLinear> {
        let parts = layers.parts.iter().map(|(name, out_dim)| self.rows(name, *out_dim, layers.in_dim));
        let weight = match (layers.order, layers.parts) {
            (RowOrder::AsStored, _) => parts.collect::<Result<_>>()?,
            (order, [_]) => {
                parts.map(|rows| rows.map(|rows| in_memory(rows, order))).collect::<Result<_>>()?
            }
            _ => return Err(Error::compute("layers whose rows are in another order, and which are fused")),
        };
        let bias = self.biases(layers)?.map(|bias| match layers.order {
            RowOrder::AsStored => Ok(bias),
            order => Tensor::from_vec(order.apply(bias.to_vec1::<f32>()?, 1), layers.out_dim(), self.device),
        });
        let bias = bias.transpose()?;
        PackedLinear::quantized(weight, layers.in_dim, bias, self.device, rows, self.arithmetic)
    }

    fn stacked(&self, layers: &Linears<'_>, count: usize, _: MatrixOrder) -> Result<Vec<Projection>> {
        let mut experts: Vec<(Vec<QuantizedRows>, Vec<f32>)> = Vec::new();
        let has_bias = layers.bias == Bias::Yes || layers.parts.iter().any(|(name, _)| self.has_bias(name));
        for (name, out_dim) in layers.parts {
            let out_dim = *out_dim;
            let shape = [count, out_dim, layers.in_dim];
            let stored = self.file.read(&format!("{name}.weight"), &shape, self.context)?;
            // So many are in the file.
            experts.resize_with(count, Default::default);
            let size = stored.bytes.len().checked_div(count).unwrap_or(0).max(1);
            for ((rows, _), bytes) in experts.iter_mut().zip(stored.bytes.chunks_exact(size)) {
                rows.push(QuantizedRows { dtype: stored.dtype, bytes: bytes.to_vec(), out_dim });
            }
            let biases = match layers.bias == Bias::Yes || self.has_bias(name) {
                true => self.file.numbers(&format!("{name}.bias"), &[count, out_dim], self.context)?,
                false => vec![0.0; count.saturating_mul(out_dim)],
            };
            let all = biases.chunks_exact(out_dim.max(1));
            experts.iter_mut().zip(all).for_each(|((_, bias), own)| bias.extend_from_slice(own));
        }
        let (in_dim, device, rows) = (layers.in_dim, self.device, RowUse::MultipliedOnly);
        let layer = |(weight, bias): (Vec<QuantizedRows>, Vec<f32>)| {
            let bias = match has_bias {
                true => Some(Tensor::from_vec(bias, layers.out_dim(), device)?),
                false => None,
            };
            PackedLinear::quantized(weight, in_dim, bias, device, rows, self.arithmetic)
                .map(Projection::Packed)
        };
        experts.into_iter().map(layer).collect()
    }
}

/// A matrix with its rows in the order of memory.
fn in_memory(rows: QuantizedRows, order: RowOrder) -> QuantizedRows {
    let row = rows.bytes.len() / rows.out_dim.max(1);
    QuantizedRows { bytes: order.apply(rows.bytes, row), ..rows }
}
