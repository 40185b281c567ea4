//! Low-rank adapters (LoRA; Hu et al., 2022) of embedders, one for each task, over weights that all tasks share. What a
//! task adds to a layer is computed beside the layer, so that it costs the memory of its own few numbers alone. Where a
//! model's files have the adapters is left to the families.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::TokenBatch;
use crate::error::{Error, Result};
use crate::kernels::packed::{PackedLinear, RowUse};
use crate::models::transformer::{
    AdaptedProjection, Linears, LowRankMatrices, MatrixOrder, Projection, SafeTensors, Tensors, low_rank,
};

/// Maximum number of tasks with an adapter.
pub(super) const MAX_TASKS: usize = 64;
/// Part of the name of a weight with adapters beside it, as PyTorch's parametrisation has it.
pub(super) const PARAMETRIZED: &str = ".parametrizations.weight.";

/// The matrices of adapters.
pub(super) trait Adapters {
    /// Matrices that a task adds to a linear layer, `(rank, in)` and `(out, rank)`, scaled; nothing for a layer without.
    fn matrices(
        &self,
        layer: &str,
        out_dim: usize,
        in_dim: usize,
        task: usize,
    ) -> Result<Option<(Tensor, Tensor)>>;
}

/// Weights that the tasks share: each layer and tensor of the base model, once it has been read.
pub(super) struct Shared<'a> {
    file: &'a SafeTensors<'a>,
    layers: RefCell<HashMap<String, Arc<Projection>>>,
    tensors: RefCell<HashMap<String, Tensor>>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(file: &'a SafeTensors<'a>) -> Self {
        Self { file, layers: RefCell::default(), tensors: RefCell::default() }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(tensor) = self.tensors.borrow().get(name) {
            return Ok(tensor.clone());
        }
        let original = name.strip_suffix(".weight").map(|layer| format!("{layer}{PARAMETRIZED}original"));
        let stored = original.filter(|original| self.contains(original));
        let tensor = self.file.tensor(stored.as_deref().unwrap_or(name), shape)?;
        self.tensors.borrow_mut().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn layer(&self, layers: &Linears<'_>) -> Result<Arc<Projection>> {
        let key = layers.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        if let Some(layer) = self.layers.borrow().get(&key) {
            return Ok(Arc::clone(layer));
        }
        let layer = Arc::new(self.file.projection(layers)?);
        self.layers.borrow_mut().insert(key, Arc::clone(&layer));
        Ok(layer)
    }
}

/// The tensors of a task, or of the base model.
pub(super) struct OfTask<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) adapters: &'a dyn Adapters,
    pub(super) task: Option<usize>,
}

/// The matrices of one task.
struct Task<'a>(&'a dyn Adapters, usize);

impl LowRankMatrices for Task<'_> {
    fn matrices(&self, layer: &str, out_dim: usize, in_dim: usize) -> Result<Option<(Tensor, Tensor)>> {
        self.0.matrices(layer, out_dim, in_dim, self.1)
    }
}

impl Tensors for OfTask<'_> {
    fn contains(&self, name: &str) -> bool {
        self.shared.contains(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.shared.tensor(name, shape)
    }

    fn packed(&self, layers: &Linears<'_>, rows: RowUse) -> Result<PackedLinear> {
        self.shared.file.packed(layers, rows)
    }

    fn projection(&self, layers: &Linears<'_>) -> Result<Projection> {
        let base = self.shared.layer(layers)?;
        let adapter = match self.task {
            Some(task) => low_rank(layers, &Task(self.adapters, task), self.shared.file.device())?,
            None => None,
        };
        Ok(Projection::Adapted(AdaptedProjection { base, adapter }))
    }

    fn stacked(&self, layers: &Linears<'_>, count: usize, order: MatrixOrder) -> Result<Vec<Projection>> {
        self.shared.file.stacked(layers, count, order)
    }
}

/// The rows of a pass whose texts are of several tasks: those of each task go through `encode` together, and then back to
/// their places.
pub(super) fn encode_by_task(
    batch: &TokenBatch,
    encode: impl Fn(Option<usize>, &TokenBatch) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut rows: Vec<Option<Tensor>> = vec![None; batch.lengths.len()];
    for (task, places) in batch.by_task() {
        let part = batch.some(&places);
        let hidden = encode(task, &part)?;
        let mut first = 0;
        for (place, length) in places.into_iter().zip(&part.lengths) {
            rows[place] = Some(hidden.narrow(0, first, *length)?);
            first += length;
        }
    }
    match rows.into_iter().flatten().collect::<Vec<_>>().as_slice() {
        [] => Err(Error::compute("a pass without texts")),
        [one] => Ok(one.contiguous()?),
        rows => Ok(Tensor::cat(rows, 0)?),
    }
}
