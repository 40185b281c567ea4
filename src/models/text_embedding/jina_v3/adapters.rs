//! Low-rank adapters (LoRA; Hu et al., 2022) of an encoder, one for each task, over weights that all tasks share. What a
//! task adds to a layer is computed beside the layer, so that it costs the memory of its own few numbers alone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::super::encoder::{has_no_effect, prefix_in};
use super::super::{Architecture, Encoder, Task, TokenBatch, Watch};
use crate::error::{Error, Result};
use crate::kernels::packed::PackedLinear;
use crate::kernels::packed::RowUse;
use crate::models::towers::{TextTower, TextTowerConfig, TokenAdapter};
use crate::models::transformer::{
    self, AdaptedProjection, Linears, LowRank, MatrixOrder, Projection, SafeTensors, Tensors,
};
use crate::weights::WeightFiles;

/// Beginnings of the names of the encoder's tensors.
const PREFIXES: [&str; 2] = ["roberta.", ""];
/// What stands in the name of a tensor with adapters, as PyTorch's parametrisation has it.
const PARAMETRIZED: &str = ".parametrizations.weight.";

/// An encoder with adapters that is not loaded.
pub(super) struct AdaptedEncoder {
    pub(super) tower: TextTowerConfig,
    /// In the order in which the file has their adapters.
    pub(super) tasks: Vec<Task>,
    /// Length of the rows between an adapter's two matrices.
    pub(super) rank: usize,
    /// Factor on what an adapter adds.
    pub(super) scaling: f64,
}

impl AdaptedEncoder {
    /// The name of the layer's weight that a tensor is, or belongs to, on the encoder's path.
    fn weight_of(tensor: &str) -> String {
        let name = PREFIXES.iter().find_map(|prefix| tensor.strip_prefix(prefix)).unwrap_or(tensor);
        name.split_once(PARAMETRIZED).map_or_else(|| name.to_owned(), |(layer, _)| format!("{layer}.weight"))
    }
}

impl Architecture for AdaptedEncoder {
    fn width(&self) -> usize {
        self.tower.transformer.width
    }

    fn vocabulary(&self) -> usize {
        self.tower.vocabulary
    }

    fn longest(&self) -> usize {
        self.tower.context
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn uses(&self, tensor: &str) -> bool {
        self.tower.uses(&Self::weight_of(tensor))
    }

    fn packs(&self, tensor: &str, eight_bit: bool) -> bool {
        let is_block = Self::weight_of(tensor).starts_with(self.tower.names.blocks.blocks);
        eight_bit && is_block && !tensor.contains(".lora_")
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        has_no_effect(&Self::weight_of(tensor))
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // What an adapter adds to the widest layer.
        let widest = self.tower.transformer.scratch(tokens, 1);
        self.tower.transformer.scratch(tokens, longest) + widest
    }

    fn load(
        &self,
        weights: &WeightFiles,
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let embeddings = format!("{}{PARAMETRIZED}original", self.tower.names.token_embeddings);
        let reader = weights.reader(prefix_in(weights, &PREFIXES, &embeddings), device, context);
        let file = SafeTensors::new(&reader, "", self.tower.transformer.workload);
        let shared = Shared { file: &file, layers: RefCell::default(), tensors: RefCell::default() };
        let of_task = |task| OfTask { shared: &shared, encoder: self, task };
        let base = self.tower.load(&of_task(None), device)?;
        let tasks = (0..self.tasks.len()).map(|task| {
            let tensors = of_task(Some(task));
            let (config, names) = (&self.tower.transformer, &self.tower.names.blocks);
            let blocks = transformer::load(config, names, &tensors, device)?;
            base.adapted(blocks, tensors.token_adapter(task)?)
        });
        let tasks = tasks.collect::<Result<_>>()?;
        Ok(Arc::new(AdaptedTowers { base, tasks }))
    }
}

/// What the tasks share: each layer and tensor of the base model, once it has been read.
struct Shared<'a> {
    file: &'a SafeTensors<'a>,
    layers: RefCell<HashMap<String, Arc<Projection>>>,
    tensors: RefCell<HashMap<String, Tensor>>,
}

/// The tensors of a task, or of the base model.
struct OfTask<'a> {
    shared: &'a Shared<'a>,
    encoder: &'a AdaptedEncoder,
    task: Option<usize>,
}

impl OfTask<'_> {
    /// A matrix of a task's adapter: `A` or `B`, `(rows, columns)`.
    fn matrix(&self, layer: &str, name: &str, task: usize, rows: usize, columns: usize) -> Result<Tensor> {
        let count = self.encoder.tasks.len();
        let all = self.tensor(&format!("{layer}{PARAMETRIZED}0.lora_{name}"), &[count, rows, columns])?;
        Ok(all.get(task)?)
    }

    /// What a task adds to the vectors of a table, `(count, rank)` and `(rank, width)`.
    fn table(&self, name: &str, task: usize, count: usize) -> Result<(Tensor, Tensor)> {
        let (rank, width) = (self.encoder.rank, self.encoder.width());
        let up = (self.matrix(name, "B", task, rank, width)? * self.encoder.scaling)?;
        Ok((self.matrix(name, "A", task, count, rank)?, up))
    }

    fn token_adapter(&self, task: usize) -> Result<TokenAdapter> {
        let tower = &self.encoder.tower;
        let (down, up) = self.table(tower.names.token_embeddings, task, tower.vocabulary)?;
        let (segments, segment_up) = self.table(tower.names.segments, task, tower.segments)?;
        let first_segment = segments.narrow(0, 0, 1)?.matmul(&segment_up)?;
        Ok(TokenAdapter { down, up, first_segment })
    }

    fn low_rank(&self, layers: &Linears<'_>, task: usize) -> Result<LowRank> {
        let [(name, out_dim)] = layers.parts else {
            return Err(Error::compute("adapters of layers that are fused"));
        };
        let rank = self.encoder.rank;
        let down = self.matrix(name, "A", task, rank, layers.in_dim)?;
        let up = (self.matrix(name, "B", task, *out_dim, rank)? * self.encoder.scaling)?;
        LowRank::new(&down, &up)
    }
}

impl Tensors for OfTask<'_> {
    fn contains(&self, name: &str) -> bool {
        self.shared.file.contains(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(tensor) = self.shared.tensors.borrow().get(name) {
            return Ok(tensor.clone());
        }
        let original = name.strip_suffix(".weight").map(|layer| format!("{layer}{PARAMETRIZED}original"));
        let stored = original.filter(|original| self.contains(original));
        let tensor = self.shared.file.tensor(stored.as_deref().unwrap_or(name), shape)?;
        self.shared.tensors.borrow_mut().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn packed(&self, layers: &Linears<'_>, rows: RowUse) -> Result<PackedLinear> {
        self.shared.file.packed(layers, rows)
    }

    fn projection(&self, layers: &Linears<'_>) -> Result<Projection> {
        let key = layers.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        let known = self.shared.layers.borrow().get(&key).cloned();
        let base = match known {
            Some(base) => base,
            None => Arc::new(self.shared.file.projection(layers)?),
        };
        self.shared.layers.borrow_mut().insert(key, Arc::clone(&base));
        let adapter = self.task.map(|task| self.low_rank(layers, task)).transpose()?;
        Ok(Projection::Adapted(AdaptedProjection { base, adapter }))
    }

    fn stacked(&self, layers: &Linears<'_>, count: usize, order: MatrixOrder) -> Result<Vec<Projection>> {
        self.shared.file.stacked(layers, count, order)
    }
}

/// A loaded encoder without adapters, and with those of each task.
struct AdaptedTowers {
    base: TextTower,
    tasks: Vec<TextTower>,
}

impl Encoder for AdaptedTowers {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        // The texts of each task go through the blocks together, and then back to their places.
        let mut rows: Vec<Option<Tensor>> = vec![None; batch.lengths.len()];
        for (task, places) in batch.by_task() {
            let tower = match task {
                Some(task) => {
                    self.tasks.get(task).ok_or_else(|| Error::compute("a task without an adapter"))?
                }
                None => &self.base,
            };
            let part = batch.some(&places);
            let hidden = tower.encode_segments(&part.ids, &part.segments, &part.lengths, watch)?;
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
}
