//! Jina Embeddings v5 text small (Jina AI, 2026): Qwen3, of which the last token's vector is taken, with an adapter for each
//! task in a folder of its own, as PEFT writes them. One of them is always on: a named prompt turns on that of its name,
//! and without one it is that of the first task.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model_actors::{Bytes, LoadContext};
use serde::Deserialize;
use serde_json::{Value, json};

use super::adapters::{Adapters, MAX_TASKS, OfTask, Shared, encode_by_task};
use super::decoding::{AttentionDirection, Embedder};
use super::{Architecture, Encoder, Task, TokenBatch, Watch};
use crate::architecture::{Family, parse, refuse_listed};
use crate::error::{Error, Result};
use crate::models::config_file::invalid;
use crate::models::decoder::Decoder;
use crate::models::transformer::{self, SafeTensors, Transformer, check_side};
use crate::source::{Files, Unread, read_json};
use crate::weights::WeightFiles;

/// The family's entry in the list.
pub(super) const FAMILY: Family<Box<dyn Architecture>> = Family {
    model_type: "jina_embeddings_v5",
    architectures: &["JinaEmbeddingsV5Model"],
    read: |file, config| Ok(Box::new(read(file, config)?)),
};

/// Settings beside Qwen3's.
#[derive(Deserialize)]
struct Own {
    /// Names of the folders with adapters; the first is on unless another is asked for.
    task_names: Vec<String>,
}

fn read(file: &Path, config: &Value) -> Result<AdaptedDecoder> {
    let Own { task_names } = parse(file, config)?;
    let is_name = |name: &String| {
        !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
    };
    if !(1..=MAX_TASKS).contains(&task_names.len()) || !task_names.iter().all(is_name) {
        return Err(invalid(file, format!("task_names cannot be {task_names:?}")));
    }
    let mut config = config.clone();
    if let Some(settings) = config.as_object_mut() {
        settings.insert("model_type".to_owned(), json!("qwen3"));
    }
    let decoder = Embedder::read(file, &config, AttentionDirection::Causal)?;
    let task = |name: String| Task { folder: Some(format!("adapters/{name}/")), name, instruction: None };
    Ok(AdaptedDecoder { decoder, tasks: task_names.into_iter().map(task).collect() })
}

/// A decoder with adapters that is not loaded.
struct AdaptedDecoder {
    decoder: Embedder,
    tasks: Vec<Task>,
}

impl Architecture for AdaptedDecoder {
    fn width(&self) -> usize {
        self.decoder.width()
    }

    fn vocabulary(&self) -> usize {
        self.decoder.vocabulary()
    }

    fn longest(&self) -> usize {
        self.decoder.longest()
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn default_task(&self) -> Option<usize> {
        Some(0)
    }

    fn uses(&self, tensor: &str) -> bool {
        self.decoder.uses(tensor)
    }

    fn packs(&self, tensor: &str, eight_bit: bool) -> bool {
        self.decoder.packs(tensor, eight_bit)
    }

    fn has_no_effect(&self, tensor: &str) -> bool {
        self.decoder.has_no_effect(tensor)
    }

    fn scratch(&self, tokens: usize, longest: usize) -> Bytes {
        // What an adapter adds to the widest layer.
        self.decoder.scratch(tokens, longest) + self.decoder.scratch(tokens, 1)
    }

    fn load(&self, _: &WeightFiles, _: &Device, _: &LoadContext) -> Result<Arc<dyn Encoder>> {
        Err(Error::compute("a model that is loaded with its adapters alone"))
    }

    fn load_adapted(
        &self,
        weights: &WeightFiles,
        adapters: &[Adapter],
        device: &Device,
        context: &LoadContext,
    ) -> Result<Arc<dyn Encoder>> {
        let config = &self.decoder.0;
        let reader = weights.reader("", device, context);
        let whole = SafeTensors::new(&reader, "", config.transformer.workload);
        let file = whole.at(config.prefix_in(weights));
        let shared = Shared::new(&file);
        let adapters = InFolders { adapters, device, context };
        let of_task = |task| OfTask { shared: &shared, adapters: &adapters, task };
        let base = config.load_from(&of_task(None), &whole, device)?;
        let tasks = (0..self.tasks.len()).map(|task| {
            transformer::load(&config.transformer, &config.names.blocks, &of_task(Some(task)), device)
        });
        let tasks = tasks.collect::<Result<_>>()?;
        Ok(Arc::new(AdaptedBlocks { base, tasks }))
    }
}

/// The files of an adapter.
pub(in crate::models) struct Adapter {
    weights: WeightFiles,
    /// Length of the rows between its two matrices.
    rank: usize,
    /// Factor on what it adds.
    scaling: f64,
}

/// `adapter_config.json`.
#[derive(Deserialize)]
struct AdapterConfig {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
}

/// Settings of adapters that change what they add and are not read; each with the value that has no effect.
const NOT_READ: [(&str, &str); 11] = [
    ("peft_type", "\"LORA\""),
    ("bias", "\"none\""),
    ("lora_bias", "false"),
    ("use_dora", "false"),
    ("fan_in_fan_out", "false"),
    ("modules_to_save", "null"),
    ("rank_pattern", "{}"),
    ("alpha_pattern", "{}"),
    ("layer_replication", "null"),
    ("trainable_token_indices", "null"),
    ("target_parameters", "null"),
];

impl Adapter {
    /// Opens the adapter in a folder.
    ///
    /// # Errors
    /// Those of reading its two files; [`Error::UnsupportedSetting`] for one that is more than two matrices a layer.
    pub(super) fn open(files: &Files, folder: &str, context: &LoadContext) -> Result<Self> {
        let file = files.required(&format!("{folder}adapter_config.json"), context)?;
        let settings: Value = read_json(&file)?;
        if files.unread == Unread::Refused {
            refuse_listed(&file, &settings, &NOT_READ)?;
        }
        let AdapterConfig { r: rank, lora_alpha, use_rslora } = parse(&file, &settings)?;
        check_side(&file, "r", rank)?;
        let divisor = if use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        if !lora_alpha.is_finite() {
            return Err(invalid(&file, format!("lora_alpha is {lora_alpha}")));
        }
        let weights = WeightFiles::open_named(files, folder, "adapter_model", context)?;
        Ok(Self { weights, rank, scaling: lora_alpha / divisor })
    }

    /// Bytes of its matrices in memory.
    pub(super) fn bytes(&self) -> Bytes {
        self.weights.bytes_in_memory(|_| true, |_| false)
    }

    /// Refuses one with a tensor that belongs to no layer.
    pub(super) fn check_all_read(&self) -> Result<()> {
        self.weights.check_all_read(|_| false)
    }
}

/// Adapters in folders of their own.
struct InFolders<'a> {
    adapters: &'a [Adapter],
    device: &'a Device,
    context: &'a LoadContext,
}

impl Adapters for InFolders<'_> {
    fn matrices(
        &self,
        layer: &str,
        out_dim: usize,
        in_dim: usize,
        task: usize,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let Adapter { weights, rank, scaling } =
            self.adapters.get(task).ok_or_else(|| Error::compute("a task without an adapter"))?;
        let reader = weights.reader("base_model.model.", self.device, self.context);
        let paths = ["", "model."].map(|path| format!("{path}{layer}.lora_"));
        let Some(path) = paths.iter().find(|path| reader.contains(&format!("{path}A.weight"))) else {
            return Ok(None);
        };
        let down = reader.tensor(&format!("{path}A.weight"), &[*rank, in_dim])?;
        let up = reader.tensor(&format!("{path}B.weight"), &[out_dim, *rank])?;
        Ok(Some((down, (up * *scaling)?)))
    }
}

/// A loaded decoder, and its blocks with the adapters of each task.
struct AdaptedBlocks {
    base: Decoder,
    tasks: Vec<Transformer>,
}

impl Encoder for AdaptedBlocks {
    fn encode(&self, batch: &TokenBatch, watch: &Watch<'_>) -> Result<Tensor> {
        encode_by_task(batch, |task, texts| {
            let blocks = self.tasks.get(task.unwrap_or(0));
            let blocks = blocks.ok_or_else(|| Error::compute("a task without an adapter"))?;
            self.base.encode_through(blocks, &self.base.embed(&texts.ids)?, &texts.lengths, watch)
        })
    }
}
