//! The encoder of Jina Embeddings v3 with its adapters, which are in the file of the weights: for each matrix and each
//! table a tensor with the first matrices of all tasks, and one with the second.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};

use super::super::adapters::{Adapters, OfTask, PARAMETRIZED, Shared, encode_by_task};
use super::super::encoder::{has_no_effect, prefix_in};
use super::super::{Architecture, Encoder, Task, TokenBatch, Watch};
use crate::error::{Error, Result};
use crate::models::towers::{TextTower, TextTowerConfig, TokenAdapter};
use crate::models::transformer::{self, SafeTensors};
use crate::weights::WeightFiles;

/// Beginnings of the names of the encoder's tensors.
const PREFIXES: [&str; 2] = ["roberta.", ""];

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
        let shared = Shared::new(&file);
        let adapters = InOneFile { shared: &shared, encoder: self };
        let of_task = |task| OfTask { shared: &shared, adapters: &adapters, task };
        let base = self.tower.load(&of_task(None), device)?;
        let tasks = (0..self.tasks.len()).map(|task| {
            let (config, names) = (&self.tower.transformer, &self.tower.names.blocks);
            let blocks = transformer::load(config, names, &of_task(Some(task)), device)?;
            base.adapted(blocks, adapters.of_tokens(task)?)
        });
        let tasks = tasks.collect::<Result<_>>()?;
        Ok(Arc::new(AdaptedTowers { base, tasks }))
    }
}

/// Adapters beside the weights.
struct InOneFile<'a> {
    shared: &'a Shared<'a>,
    encoder: &'a AdaptedEncoder,
}

impl InOneFile<'_> {
    /// A task's matrix `A` or `B`, `(rows, columns)`.
    fn matrix(&self, layer: &str, name: &str, task: usize, rows: usize, columns: usize) -> Result<Tensor> {
        let count = self.encoder.tasks.len();
        let name = format!("{layer}{PARAMETRIZED}0.lora_{name}");
        Ok(self.shared.tensor(&name, &[count, rows, columns])?.get(task)?)
    }

    /// Matrices that a task adds to the vectors of a table, `(count, rank)` and `(rank, width)`.
    fn of_table(&self, name: &str, task: usize, count: usize) -> Result<(Tensor, Tensor)> {
        let (rank, width) = (self.encoder.rank, self.encoder.width());
        let up = (self.matrix(name, "B", task, rank, width)? * self.encoder.scaling)?;
        Ok((self.matrix(name, "A", task, count, rank)?, up))
    }

    fn of_tokens(&self, task: usize) -> Result<TokenAdapter> {
        let tower = &self.encoder.tower;
        let (down, up) = self.of_table(tower.names.token_embeddings, task, tower.vocabulary)?;
        let (segments, segment_up) = self.of_table(tower.names.segments, task, tower.segments)?;
        let first_segment = segments.narrow(0, 0, 1)?.matmul(&segment_up)?;
        Ok(TokenAdapter { down, up, first_segment })
    }
}

impl Adapters for InOneFile<'_> {
    fn matrices(
        &self,
        layer: &str,
        out_dim: usize,
        in_dim: usize,
        task: usize,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let rank = self.encoder.rank;
        let down = self.matrix(layer, "A", task, rank, in_dim)?;
        Ok(Some((down, (self.matrix(layer, "B", task, out_dim, rank)? * self.encoder.scaling)?)))
    }
}

/// A loaded encoder without adapters, and with those of each task.
struct AdaptedTowers {
    base: TextTower,
    tasks: Vec<TextTower>,
}

impl Encoder for AdaptedTowers {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        encode_by_task(batch, |task, texts| {
            let tower = match task {
                Some(task) => {
                    self.tasks.get(task).ok_or_else(|| Error::compute("a task without an adapter"))?
                }
                None => &self.base,
            };
            tower.encode_segments(&texts.ids, &texts.segments, texts.whole(), watch)
        })
    }
}
