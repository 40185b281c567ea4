//! The outputs of BGE-M3 (Chen et al., 2024, arXiv 2402.03216) beside its vectors: a weight for each token, by which texts
//! that share words find each other, and a vector for each, for late interaction. Each is one linear layer in a file of its
//! own over the same token vectors.

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext, SparseVector, VectorArray};

use super::TokenBatch;
use crate::error::{Error, Result};
use crate::kernels::{Activation, Linear};
use crate::pooling::normalize;
use crate::source::Files;
use crate::tokens::Tokens;
use crate::weights::WeightFiles;

/// The two layers, and the tokens that say nothing.
pub(super) struct TokenOutputs {
    weights: Linear,
    vectors: Linear,
    silent: Vec<u32>,
    width: usize,
}

const WEIGHTS: &str = "sparse_linear.pt";
const VECTORS: &str = "colbert_linear.pt";
/// Tokens that get no weight.
const SILENT: [&str; 4] = ["<s>", "</s>", "<pad>", "<unk>"];

impl TokenOutputs {
    /// Reads the layers of a model of this width, if it has both.
    pub(super) fn read(
        files: &Files,
        folder: &str,
        width: usize,
        tokens: &Tokens,
        context: &LoadContext,
    ) -> Result<Option<Self>> {
        let read = |name: &str, out: usize| -> Result<Option<Linear>> {
            let Some(path) = files.optional(&format!("{folder}{name}"), context)? else { return Ok(None) };
            let weights = WeightFiles::of_file(files, path)?;
            let device = Device::Cpu;
            let reader = weights.reader("", &device, context);
            let layer = (reader.tensor("weight", &[out, width])?, reader.tensor("bias", &[out])?);
            weights.check_all_read(|_| false)?;
            Linear::new(&layer.0, Some(layer.1)).map(Some)
        };
        let Some(weights) = read(WEIGHTS, 1)? else { return Ok(None) };
        // The second may have any width; that of BGE-M3 is the model's own.
        let Some(vectors) = read(VECTORS, width)? else { return Ok(None) };
        let silent = SILENT.iter().filter_map(|token| tokens.id(token)).collect();
        Ok(Some(Self { weights, vectors, silent, width }))
    }

    /// Asks for the files of the layers.
    #[cfg(feature = "cluster")]
    pub(super) fn ask_for(files: &Files, folder: &str, context: &LoadContext) -> Result<()> {
        [WEIGHTS, VECTORS]
            .iter()
            .try_for_each(|name| files.optional(&format!("{folder}{name}"), context).map(drop))
    }

    /// Memory that they take.
    pub(super) fn bytes(&self) -> Bytes {
        let width = self.width as u64;
        Bytes(width.saturating_mul(width + 2).saturating_mul(4))
    }

    /// The weights of each text's tokens.
    pub(super) fn sparse(&self, hidden: &Tensor, batch: &TokenBatch) -> Result<Vec<SparseVector>> {
        let weights = finite(&self.weights, hidden, Activation::Relu)?;
        let mut weighed = batch.ids.iter().copied().zip(weights);
        let is_said = |(id, weight): &(u32, f32)| *weight > 0.0 && !self.silent.contains(id);
        let of_text = |length: &usize| {
            let text: Vec<(u32, f32)> = weighed.by_ref().take(*length).collect();
            SparseVector::new(text.into_iter().filter(is_said))
        };
        Ok(batch.lengths.iter().map(of_text).collect())
    }

    /// The vectors of each text's tokens, but for the one that begins it.
    pub(super) fn token_vectors(&self, hidden: &Tensor, batch: &TokenBatch) -> Result<Vec<VectorArray<f32>>> {
        let width = self.width;
        let mut values = finite(&self.vectors, hidden, Activation::Identity)?;
        values.chunks_exact_mut(width).for_each(normalize);
        let mut rest = values.as_slice();
        let of_text = |length: &usize| {
            let (text, after) = rest.split_at((length * width).min(rest.len()));
            rest = after;
            VectorArray::new(text.get(width..).unwrap_or_default().to_vec(), width)
        };
        Ok(batch.lengths.iter().map(of_text).collect())
    }
}

/// The numbers that a layer makes of all tokens.
fn finite(layer: &Linear, hidden: &Tensor, activation: Activation) -> Result<Vec<f32>> {
    let hidden = hidden.to_device(&Device::Cpu)?.contiguous()?;
    let values: Vec<f32> = layer.forward(&hidden, activation)?.flatten_all()?.to_vec1()?;
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(Error::NotFiniteOutput) }
}
