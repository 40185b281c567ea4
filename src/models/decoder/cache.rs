//! What a decoder remembers of one sequence.

use candle_core::{Device, Tensor};
#[cfg(test)]
use model_actors::Bytes;

use super::misfit;
use crate::error::Result;
use crate::kernels::causal::KeyValues;

/// The keys and values of one sequence in every layer. It grows with the sequence, and is owned by a worker.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<KeyValues>,
    length: usize,
    /// The rows that it was made from, as long as they may have to be computed once more.
    inputs: Vec<Tensor>,
}

impl Cache {
    pub(super) fn new(layers: usize, width: usize, device: &Device) -> Result<Self> {
        let layers = (0..layers).map(|_| KeyValues::new(width, device)).collect::<Result<_>>()?;
        Ok(Self { layers, length: 0, inputs: Vec::new() })
    }

    /// Tokens that it holds.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Bytes that it takes now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Bytes {
        let inputs = self.inputs.iter().map(|rows| 4 * rows.elem_count() as u64).sum::<u64>();
        Bytes(self.layers.iter().map(KeyValues::bytes).sum::<u64>() + inputs)
    }

    /// Forgets the sequence, keeping the memory for another.
    #[cfg(test)]
    pub(crate) fn clear(&mut self) {
        self.length = 0;
        self.inputs.clear();
    }

    pub(super) fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    pub(super) fn advance(&mut self, length: usize, rows: Option<Tensor>) {
        self.length = length;
        match rows {
            Some(rows) => self.inputs.push(rows),
            None => self.inputs.clear(),
        }
    }

    pub(super) fn layer(&mut self, index: usize) -> Result<&mut KeyValues> {
        self.layers.get_mut(index).ok_or_else(|| misfit("a cache of another model"))
    }
}
